"""Images grow during a run, without a graph compiled after its start; validation has a size of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import worker_progressive
from fastcnn.config import Config, OptimizerSettings
from fastcnn.config.progressive import milestones_of, never_reached, size_at, sizes_left
from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.config.validate import check
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import ImageLoader
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.cached import CachedLoader
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.open import open_source
from fastcnn.data.transforms.mixing import Mixing
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine.state import StepOptions, TrainState, build_state
from fastcnn.engine.step import train_step
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime.distributed import Ranks
from fastcnn.setup.warmup import InputShapes, warm_up_sizes
from fastcnn.transfer.freeze import Frozen
from ranks import run_ranks
from runs import interrupt_after, records
from small_network import small
from training import CPU, TASK

BACKENDS = [
    pytest.param("dali", marks=pytest.mark.skipif(not has_dali(), reason="DALI is not installed")),
    "torch",
    "cached",
    "synthetic",
]
FLAGS = (
    *("--arch", "small_network:small", "--amp-dtype", "fp32", "--channels-last", "on", "--batch-size", "16"),
    *("--workers", "1", "--data-backend", "torch", "--output-dir", "run", "--lr", "0.05"),
)
"""10 updates an epoch on the demo set of the tests."""


# Which size when


@pytest.mark.parametrize(
    ("milestones", "expected"),
    [
        ((2, 5), [16, 16, 24, 24, 24, 32, 32]),
        ((1.5, 2.5), [16, 16, 24, 32, 32, 32, 32]),  # an epoch's images are of one size
        ((3, 3), [16, 16, 16, 32, 32, 32, 32]),
    ],
)
def test_a_size_begins_with_the_first_epoch_after_its_milestone(milestones, expected):
    assert [size_at((16, 24, 32), milestones, epoch) for epoch in range(7)] == expected


def test_sizes_share_the_epochs_unless_milestones_are_told():
    config = Config(progressive=(16, 24, 32))
    assert milestones_of(config, 9) == (3, 6)
    assert milestones_of(Config(progressive=(16, 32), progressive_milestones=(7.0,)), 9) == (7,)
    assert sizes_left(config, 9, 0) == [16, 24, 32]
    assert sizes_left(config, 9, 4) == [24, 32]
    assert sizes_left(config, 8.5, 8) == [32]
    assert sizes_left(config, 9, 9) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"progressive": (16, 24), "img_size": 32}, "--img-size 32"),
        ({"progressive": (16, 24), "progressive_milestones": (1.0, 2.0)}, "--progressive-milestones"),
    ],
    ids=["size", "milestones"],
)
def test_what_does_not_fit_is_refused_in_a_line(settings, named, wording):
    with pytest.raises(ValueError, match=f"^{named}: .*$") as caught:
        check(Config(**settings))
    wording(caught.value)


@pytest.mark.parametrize(
    ("told", "epochs"),
    [({}, 2), ({"progressive_milestones": (1.0, 2.0)}, 1.5)],
    ids=["equal", "milestones"],
)
def test_a_run_that_ends_before_its_last_size_is_told_so(told, epochs, wording):
    config = Config(progressive=(16, 24, 32), **told)
    wording(never_reached(config, epochs))
    assert never_reached(config, 3) == ""
    assert never_reached(Config(), 1) == ""


# Loaders


def make_loaders(source: Source, backend: Any, size: int, val_size: int | None = None, **changes: Any) -> Any:
    transform = Transform(size=size, progressive=True, **changes)
    settings = LoaderSettings(data_backend=backend, batch_size=4, workers=2)
    return build_loaders(source, transform, settings, ranks=Ranks(), device=CPU, seed=0, val_size=val_size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crop", ["pad", "random-resized"])
def test_after_a_change_of_size_batches_are_those_of_a_loader_of_that_size(photos, backend, crop):
    source = open_source(DataSettings(data=str(photos)), seed=0)
    loader, val = make_loaders(source, backend, 48, train_crop=crop)
    right, _ = make_loaders(source, backend, 32, train_crop=crop)
    try:
        it = iter(loader)
        assert next(it).images.shape[-1] == 48
        next(it)  # more are under way
        loader.resize(32)
        got = list(loader)
        right.load_state_dict({"epoch": 0, "consumed": 8})
        expected = list(right)
        assert len(got) == len(expected) == 3
        for a, b in zip(got, expected):
            assert a.images.shape == (4, 3, 32, 32)
            assert a.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.targets, b.targets)
        loader.set_epoch(1)
        loader.resize(48)
        assert next(iter(loader)).images.shape[-1] == 48
        assert next(iter(val)).images.shape[-1] == 48
    finally:
        for each in (loader, right, val):
            each.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_images_have_the_size_that_they_are_told(photos, backend):
    source = open_source(DataSettings(data=str(photos)), seed=0)
    train, val = make_loaders(source, backend, 32, val_size=40)
    _, alone = make_loaders(source, backend, 40)
    try:
        assert next(iter(train)).images.shape[-1] == 32
        for a, b in zip(val, alone):
            assert a.images.shape == (4, 3, 40, 40)
            assert torch.equal(a.images, b.images)
    finally:
        for loader in (train, val, alone):
            loader.close()


def test_padding_grows_with_the_size_unless_it_is_told():
    assert Transform(size=32).padding == 4
    assert Transform(size=48).padding == 6
    assert Transform(size=48, crop_padding=2).padding == 2


def test_small_images_that_change_their_size_do_not_lie_on_the_device_ready_to_be_cut(demo):
    source = open_source(DataSettings(data=str(demo)), seed=0)
    size = source.native_size
    assert size is not None
    for progressive in (True, False):
        transform = Transform(size=size, train_crop="pad", progressive=progressive)
        settings = LoaderSettings(data_backend="cached", batch_size=4, workers=1)
        loaders = build_loaders(source, transform, settings, ranks=Ranks(), device=CPU, seed=0)
        assert [isinstance(loader, CachedLoader) for loader in loaders] == [not progressive, True]
        for loader in loaders:
            loader.close()


# Runs


def sizes_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the sides of the images of all steps from now on."""
    seen: list[int] = []

    def step(state: TrainState, task: Any, batches: list[Batch], metrics: Any) -> None:
        seen.extend(batch.images.shape[-1] for batch in batches)
        train_step(state, task, batches, metrics)

    monkeypatch.setattr("fastcnn.engine.epoch.train_step", step)
    return seen


def test_a_run_grows_its_images_and_ends_with_the_largest(train, demo, monkeypatch, capsys, wording):
    seen, paddings, resize = sizes_of_steps(monkeypatch), [], ImageLoader.resize

    def look(self: ImageLoader, size: int) -> None:
        resize(self, size)
        paddings.append(self.transform.padding)

    monkeypatch.setattr(ImageLoader, "resize", look)
    flags = ("--compile", "off", "--data", demo, "--epochs", "5", "--progressive-milestones", "1", "3")
    assert train(*FLAGS, *flags, "--progressive", "16", "24", "32") == 0
    assert seen == [16] * 10 + [24] * 20 + [32] * 20
    assert paddings == [2, 3, 3, 4, 4]  # an eighth
    content = torch.load("run/last.pt")
    assert (content["img_size"], content["val_img_size"]) == (32, 32)
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if re.match(r"epoch \d+: images", line)]
    assert [re.findall(r"\d+", line) for line in said] == [["1", "16"], ["2", "24"], ["4", "32"]]
    wording(said[0])
    assert "warning: --epochs" not in out
    wording(next(line for line in out.splitlines() if line.split()[:2] == ["--img-size", "32"]))


def test_a_run_too_short_for_its_sizes_begins_with_a_warning(train, demo, capsys, wording):
    flags = ("--compile", "off", "--data", demo, "--epochs", "1", "--progressive", "16", "24")
    assert train(*FLAGS, *flags) == 0
    out = capsys.readouterr().out
    wording(next(line for line in out.splitlines() if line.startswith("warning: --epochs 1 ")))


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_with_its_size_to_the_same_bits(
    train, demo, monkeypatch
):
    flags = (*FLAGS, "--data", demo, "--epochs", "3", "--deterministic", "--progressive", "16", "24", "32")
    assert train(*flags, "--output-dir", "whole") == 0
    interrupt_after(14, lambda: train(*flags, "--output-dir", "parts", "--checkpoint-steps", "7"))
    seen = sizes_of_steps(monkeypatch)
    assert train("--resume", "parts/last.pt", "--arch", "small_network:small", "--workers", "1") == 0
    assert seen == [24] * 6 + [32] * 10
    whole, parts = torch.load("whole/last.pt"), torch.load("parts/last.pt")
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
    a, b = records(Path("whole"), "epoch"), records(Path("parts"), "epoch")
    assert [(r["step"], r["train"], r["val"]) for r in a] == [(r["step"], r["train"], r["val"]) for r in b]


def test_predictions_are_made_at_the_size_of_validation(train, demo, monkeypatch):
    from fastcnn.cli.main import main
    from fastcnn.engine.state import Normalized

    flags = ("--compile", "off", "--data", demo, "--epochs", "1", "--img-size", "24", "--val-img-size", "40")
    assert train(*FLAGS, *flags) == 0
    assert torch.load("run/best.pt")["val_img_size"] == 40
    seen, forward = [], Normalized.forward

    def look(self: Normalized, images: Tensor, mix: Tensor | None = None) -> object:
        seen.append(tuple(images.shape[-2:]))
        return forward(self, images, mix)

    monkeypatch.setattr(Normalized, "forward", look)
    image = next((demo / "val").rglob("*.jpg"))
    assert main(["predict", "run/best.pt", str(image), "--arch", "small_network:small"]) == 0
    assert seen == [(40, 40)]


# Compilation


def state_of(**settings: Any) -> TrainState:
    torch.manual_seed(0)
    network = small(10).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, OptimizerSettings(weight_decay=0.0), lr=0.05)
    schedule = Schedule(peak=0.05, steps_per_epoch=5, epochs=2, kind="constant")
    return build_state(network, optimizer, schedule, StepOptions(**settings), mean=[0.5] * 3, std=[0.25] * 3)


def shapes(*sizes: int, val_size: int) -> InputShapes:
    return InputShapes(sizes=sizes, val_size=val_size, batch_size=4, channels=3)


@pytest.mark.parametrize("settings", [{}, {"mixing": Mixing(mixup=1.0), "ema_decay": 0.9}])
def test_warming_up_leaves_no_trace(settings):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 4, 24, 24, 3), dtype=torch.uint8, generator=generator)
    targets, real = torch.tensor([1, 2, 3, 4]), torch.ones(4, dtype=torch.bool)

    def trained(warm_up: Callable[[TrainState], object]) -> dict[str, Any]:
        state, metrics = state_of(**settings), TASK.metrics(CPU)
        warm_up(state)
        assert all(p.grad is None for p in state.network.parameters())
        state.train_model.train()
        for images in pixels:
            train_step(state, TASK, [Batch(images.permute(0, 3, 1, 2), targets, real)], metrics)
        return {**state.network.state_dict(), "loss": torch.tensor(metrics.compute()["loss"])}

    cold = trained(lambda _: None)
    warm = trained(lambda state: warm_up_sizes(state, shapes(16, 24, val_size=32)))
    assert all(torch.equal(cold[name], warm[name]) for name in cold)
    assert cold["1.num_batches_tracked"] == 3


def test_what_is_frozen_stays_in_evaluation_mode_while_warming_up():
    state = state_of()
    state.frozen = Frozen(state.network, ["0", "1"])
    warm_up_sizes(state, shapes(16, val_size=16))
    assert not state.network.get_submodule("1").training
    assert state.network.get_submodule("5").training


def count_graphs(monkeypatch: pytest.MonkeyPatch, backend: str) -> list[int]:
    """Gets the number of graphs that were compiled until the warm-up's end."""
    from torch._dynamo.utils import counters

    compile, after = torch.compile, []

    def warm_up_and_count(*args: Any) -> None:
        warm_up_sizes(*args)
        after.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(torch, "compile", lambda model, **told: compile(model, backend=backend, **told))
    monkeypatch.setattr("fastcnn.setup.warmup.warm_up_sizes", warm_up_and_count)
    counters.clear()
    return after


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("--mixup", "0.2", "--cutmix", "1", "--tta", "flip", "--model-ema"),
    ],
)
def test_a_run_over_three_sizes_compiles_nothing_after_its_start(train, demo, monkeypatch, backend, extra):
    from torch._dynamo.utils import counters

    after = count_graphs(monkeypatch, backend)
    seen = sizes_of_steps(monkeypatch)
    flags = (*FLAGS, "--data", demo, "--compile", "on", "--epochs", "3", "--val-img-size", "40", *extra)
    assert train(*flags, "--progressive", "16", "24", "32") == 0
    assert seen == [16] * 10 + [24] * 10 + [32] * 10
    assert after == [4]  # one for each size of training, one for validation
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


@pytest.mark.slow
def test_more_sizes_than_torch_would_compile_are_compiled_too(monkeypatch):
    from torch._dynamo.utils import counters

    count_graphs(monkeypatch, "eager")
    sizes = list(range(16, 36, 2))
    with torch._dynamo.config.patch(recompile_limit=8):
        warm_up_sizes(state_of(compile=True), shapes(*sizes, val_size=40))
    assert counters["stats"]["unique_graphs"] == len(sizes) + 1 == 11


@pytest.mark.slow
def test_two_processes_warm_up_together_and_compile_nothing_later():
    first, second = run_ranks(worker_progressive.results)
    assert first["graphs"] == second["graphs"] == [4, 4]
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"]))
