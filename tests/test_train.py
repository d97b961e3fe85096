"""The command, end to end on small files."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import fastcnn
import worker_fits
from fastcnn.data.loaders.registry import has_dali
from fastcnn.runtime import machine
from fastcnn.runtime.signals import HARD_EXIT_MESSAGE
from fastcnn.setup import cpu_trials
from networks import each
from ranks import command, run_ranks
from runs import QUICK, QUICK_SETTINGS, as_flags, interrupt_after, records

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")


class Job(NamedTuple):
    """A run of a task."""

    arch: str
    data: Path
    lr: float
    metric: str
    others: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return {"arch": self.arch, "data": str(self.data), **QUICK_SETTINGS, **self.others}

    @property
    def flags(self) -> tuple[str, ...]:
        return as_flags(self.settings)

    @property
    def folder(self) -> Path:
        return Path("runs") / f"{self.arch.replace('/', '-')}-shapes"


TASKS = ("classification", "segmentation", "detection")


def job_of(task: str, demo: Path, annotated: Path) -> Job:
    """Small networks on small images."""
    if task == "segmentation":
        return Job("unet/lenet5", annotated, 0.1, "miou", {"img_size": 32})
    if task == "detection":
        return Job("yolo/lenet5", annotated, 0.01, "map", {"img_size": 32, "strides": (4,)})
    return Job("lenet5", demo, 0.1, "acc1", {})


def jobs(*default: str) -> pytest.MarkDecorator:
    """A test's job of each task; of those not in `default`, slow."""
    tasks = [task if task in default else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]
    return pytest.mark.parametrize("job", tasks, indirect=True)


JOBS_AND_BACKENDS = pytest.mark.parametrize(
    ("job", "backend"),
    [
        pytest.param(
            task, backend, marks=[*marks, *([] if default or task == TASKS[0] else [pytest.mark.slow])]
        )
        for task in TASKS
        for backend, marks, default in (
            ("dali", [needs_dali], False),
            ("torch", [], task == "segmentation"),
            ("cached", [], False),
        )
    ],
    indirect=["job"],
)
"""Classification by every backend, segmentation by torchvision's; the other pairs are slow."""


@pytest.fixture(params=TASKS)
def job(request: pytest.FixtureRequest, demo: Path, annotated: Path) -> Job:
    return job_of(request.param, demo, annotated)


@JOBS_AND_BACKENDS
def test_a_folder_of_jpegs_trains_and_leaves_everything_in_its_run_folder(whole_train, job, capsys, backend):
    flags = (*job.flags, "--data-backend", backend)
    assert whole_train(*flags, "--epochs", "3", "--lr", job.lr, "--momentum", "0.8") == 0
    names = {path.name for path in job.folder.iterdir()}
    pictures = {"curves.png"} if job.metric == "acc1" else {"curves.png", "validation.png"}
    assert names >= {"last.pt", "best.pt", "config.yaml", "metrics.jsonl", *pictures}
    assert ("validation.png" in names) == ("validation.png" in pictures)
    epochs = records(job.folder, "epoch")
    assert [record["epoch"] for record in epochs] == [1, 2, 3]
    assert [record["step"] for record in epochs] == [10, 20, 30]
    assert all(record["val"]["samples"] == 50 for record in epochs)
    assert epochs[-1]["train"]["loss"] < epochs[0]["train"]["loss"]
    assert epochs[-1]["val"][job.metric] > 1
    assert epochs[-1]["train"].get(job.metric, 100) > 1  # a detector's would be too dear in training
    for name in pictures:
        with Image.open(job.folder / name) as picture:
            picture.load()
            assert picture.width > 500
            assert np.ptp(np.asarray(picture.convert("L"))) > 100
    out = capsys.readouterr().out.splitlines()
    best = max(record["val"][job.metric] for record in epochs)
    figures = rf"{best:.2f}% of 50 images \(epoch \d\), [\d,]+ img/s, total time [\d:]+"
    line = rf"best {job.metric} {figures}, {job.folder}"
    assert re.fullmatch(line, out[-1])
    assert sum(line.startswith("epoch 1/3  train loss") for line in out) == 1
    assert "\r" not in "".join(out)
    assert out[0].startswith(f"{job.arch} on {job.data}: ")
    told = (
        f"--data-backend {backend}, --batch-size 16, --workers 1, --epochs 3, --lr {job.lr}, --momentum 0.8"
    )
    assert set(told.split(", ")) <= set(out[0].partition(": ")[2].split(", "))


def test_tensorboard_gets_what_the_log_gets(train, demo):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(*QUICK, "--data", demo, "--epochs", "2") == 0
    events = accumulator.EventAccumulator("runs/lenet5-shapes").Reload()
    logged = records(Path("runs/lenet5-shapes"), "epoch")
    drawn = events.Scalars("epoch/val/acc1")
    assert [event.step for event in drawn] == [record["step"] for record in logged]
    assert [event.value for event in drawn] == pytest.approx([record["val"]["acc1"] for record in logged])
    assert {"train/lr", "train/metrics/loss", "train/data_wait"} <= set(events.Tags()["scalars"])


@jobs("classification")
def test_the_saved_settings_repeat_the_run(train, job):
    own = {"acc1": ("--label-smoothing", "0.1"), "miou": ("--seg-loss", "dice"), "map": ()}[job.metric]
    assert train(*job.flags, "--epochs", "1", *own) == 0
    assert train("--config", job.folder / "config.yaml") == 0
    folders = job.folder, job.folder.with_name(f"{job.folder.name}-2")
    first, second = (records(folder, "epoch")[0] for folder in folders)
    assert first["train"] == second["train"]
    assert first["val"] == second["val"]


@JOBS_AND_BACKENDS
@pytest.mark.parametrize(
    "extra",
    [
        (),
        pytest.param(
            ("--model-ema", "--opt", "adamw", "--grad-accum-steps", "2"), marks=pytest.mark.slow, id="more"
        ),
    ],
)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_bits(train, job, backend, extra):
    flags = (*job.flags, "--data-backend", backend, "--epochs", "2", "--lr", "0.01", *extra)
    flags += ("--deterministic", "--log-interval", "2")
    assert train(*flags, "--output-dir", "whole") == 0
    saved = 3 if extra else 7  # of 5 and 10 steps an epoch
    interrupt_after(saved, lambda: train(*flags, "--output-dir", "parts", "--checkpoint-steps", saved))
    assert torch.load("parts/last.pt")["step"] == saved
    assert train(*flags, "--output-dir", "parts", "--resume") == 0
    whole, parts = torch.load("whole/last.pt"), torch.load("parts/last.pt")
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
    if whole["ema"]:
        averages = parts["ema"]["average"]
        assert all(torch.equal(tensor, averages[name]) for name, tensor in whole["ema"]["average"].items())
    a, b = records(Path("whole"), "epoch"), records(Path("parts"), "epoch")
    assert [(r["step"], r["train"], r["val"]) for r in a] == [(r["step"], r["train"], r["val"]) for r in b]


@pytest.mark.parametrize("opt", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_run_resumed_in_another_memory_format_ends_in_the_same_weights(train, demo, opt):
    flags = (*QUICK, "--data", demo, "--epochs", "2", "--opt", opt, "--model-ema")
    assert train(*flags, "--output-dir", "whole") == 0
    interrupt_after(10, lambda: train(*flags, "--output-dir", "parts"))
    assert train("--output-dir", "parts", "--resume", "parts/last.pt", "--no-channels-last") == 0
    whole, parts = (torch.load(f"{name}/last.pt", weights_only=True) for name in ("whole", "parts"))
    torch.testing.assert_close(parts["model"], whole["model"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parts["weights"], whole["weights"], rtol=1e-3, atol=1e-5)


@jobs("classification")
def test_resume_auto_starts_when_there_is_nothing_and_goes_on_when_there_is(train, job, capsys, wording):
    flags = (*job.flags, "--lr", "0.01", "--warmup-epochs", "0", "--resume", "auto")
    assert train(*flags, "--epochs", "1") == 0
    wording.line(capsys.readouterr().out, "no checkpoint")
    assert train(*flags, "--epochs", "2") == 0
    wording.line(capsys.readouterr().out, "Resuming")
    assert [record["epoch"] for record in records(job.folder, "epoch")] == [1, 2]


def test_a_resumed_run_drops_a_setting_whose_default_is_written(train, demo):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--mixup", "0.2", "--label-smoothing", "0.1") == 0
    last = Path("runs/lenet5-shapes/last.pt")
    assert train("--resume", last, "--epochs", "2", "--mixup", "0") == 0
    config = torch.load(last)["config"]
    assert (config["mixup"], config["label_smoothing"]) == (0.0, 0.1)


def test_a_checkpoint_alone_says_how_to_go_on(train, demo, capsys):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--model-ema", "--momentum", "0.7") == 0
    last = Path("runs/lenet5-shapes/last.pt")
    assert train("--resume", last, "--epochs", "2", "--wd", "0.03") == 0
    epochs = records(last.parent, "epoch")
    assert [record["epoch"] for record in epochs] == [1, 2]
    content = torch.load(last)
    assert content["ema"] is not None
    assert content["config"]["batch_size"] == 16
    groups = content["optimizer"]["param_groups"]
    assert [(group["weight_decay"], group["momentum"]) for group in groups] == [(0.03, 0.7), (0.0, 0.7)]
    capsys.readouterr()
    assert train("--resume", last, "--test-only") == 0
    assert f"acc1 {epochs[-1]['val']['acc1']:.2f}%" in capsys.readouterr().out


def test_a_dtype_that_another_processor_chose_is_chosen_again_where_it_is_emulated(
    train, demo, monkeypatch, with_bf16, capsys
):
    flags = as_flags({"arch": "lenet5", **QUICK_SETTINGS, "amp_dtype": "auto"})
    with monkeypatch.context() as patch:
        way = cpu_trials.Arithmetic("bf16", True)
        patch.setattr("fastcnn.setup.plan.probe_arithmetic", lambda *_, **__: (way, "fastest"))
        assert train(*flags, "--data", demo, "--epochs", "1") == 0
    last = Path("runs/lenet5-shapes/last.pt")
    assert torch.load(last)["config"]["amp_dtype"] == "bf16"
    monkeypatch.setenv(machine.NATIVE_DTYPES, "fp32")
    capsys.readouterr()
    assert train("--resume", last, "--epochs", "2") == 0
    assert "--amp-dtype fp32" in re.sub(" +", " ", capsys.readouterr().out)
    assert torch.load(last)["config"]["amp_dtype"] == "fp32"


def test_an_emulated_dtype_is_used_where_it_was_asked_for_with_a_warning(
    train, demo, without_bf16, capsys, wording
):
    flags = as_flags({"arch": "lenet5", **QUICK_SETTINGS, "amp_dtype": "bf16"})
    assert train(*flags, "--data", demo, "--epochs", "1") == 0
    wording.line(capsys.readouterr().out, "warning: --amp-dtype bf16")
    assert torch.load("runs/lenet5-shapes/last.pt")["config"]["amp_dtype"] == "bf16"


@pytest.mark.parametrize(
    ("task", "batch_size", "steps"),
    [
        *(("classification", size, steps) for size, steps in ((8, 6), (40, 1), (100, 0))),
        pytest.param("classification", 16, 3, marks=pytest.mark.slow),
        ("segmentation", 8, 6),
        pytest.param("detection", 8, 6, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_epoch_goes_on_at_the_same_fraction_with_another_batch_size(
    train, demo, annotated, task, batch_size, steps
):
    job = job_of(task, demo, annotated)
    flags = (*job.flags, "--epochs", "2", "--output-dir", "run", "--log-interval", "1", "--lr", "0.01")
    interrupt_after(7, lambda: train(*flags, "--checkpoint-steps", "7"))  # of 10: 48 of 160 images are left
    other = "torch" if has_dali() else "cached"
    changes = ("--batch-size", batch_size, "--data-backend", other, "--log-interval", "1")
    assert train("--resume", "run/last.pt", *changes) == 0
    per_epoch = 160 // batch_size
    resumed = [r for r in records(Path("run"), "train") if r["progress"] > 0.7]
    in_first = [r["step"] for r in resumed if r["progress"] <= 1]
    assert in_first == list(range(per_epoch - steps + 1, per_epoch + 1))
    first, second = records(Path("run"), "epoch")
    assert first["train"]["samples"] == 7 * 16 + steps * batch_size
    assert second["step"] == 2 * per_epoch


def test_in_the_middle_of_an_epoch_the_order_may_not_change(train, demo, capsys, wording):
    flags = (*QUICK, "--data", demo, "--output-dir", "mid", "--epochs", "1")
    interrupt_after(7, lambda: train(*flags, "--checkpoint-steps", "7"))
    capsys.readouterr()
    assert train("--resume", "mid/last.pt", "--seed", "3") == 2
    error = capsys.readouterr().err
    assert "--seed" in error
    wording(error)
    assert train("--resume", "mid/last.pt", "--aug-repeats", "2") == 2
    message = capsys.readouterr().err
    assert "--aug-repeats" in message
    wording(message)
    assert train("--resume", "mid/last.pt", "--seed", "3", "--test-only") == 0


def test_minutes_between_checkpoints(train, demo, monkeypatch):
    clock = itertools.count(step=10.0)  # seconds, at each look
    monkeypatch.setattr("fastcnn.engine.loop.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    saved: list[int] = []
    monkeypatch.setattr(
        "fastcnn.engine.checkpoint.save", lambda path, content, best: saved.append(content["step"])
    )
    flags = (*QUICK, "--data", demo, "--epochs", "1", "--log-interval", "1", "--data-backend", "torch")
    assert train(*flags, "--checkpoint-minutes", "0.5") == 0
    assert len(saved) >= 3
    assert set(saved) > {10}


def test_bad_files_are_named_counted_and_listed_and_never_end_the_run(train, tmp_path, demo, capsys, wording):
    shutil.copytree(demo, tmp_path / "photos")
    for phase, name in (("train", "blue_cross"), ("val", "red_star")):
        folder = tmp_path / "photos" / phase / name
        first, second, *_ = sorted(folder.iterdir())
        first.write_text("not an image")
        second.write_bytes(second.read_bytes()[:500])
    flags = (*QUICK, "--data", tmp_path / "photos", "--epochs", "1")
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert "--max-bad-fraction 0.01: " in error
    wording(error)
    assert error.count("\n") == 1
    assert not Path("runs").exists()
    assert train(*flags, "--max-bad-fraction", "0.05") == 0
    out = capsys.readouterr().out
    wording.line(out, "2 of 160")
    assert len(re.findall(r"undecodable validation image: ", out)) == 2
    assert re.search(r"best acc1 .* 48 images .* 2 undecodable ", out)
    listed = (Path("runs/lenet5-photos") / "bad-files.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["training"] * 2 + ["validation"] * 2
    assert records(Path("runs/lenet5-photos"), "epoch")[0]["val"]["bad"] == 2


def test_the_fastest_loader_is_chosen_and_the_figures_are_said(whole_train, demo, capsys):
    assert whole_train(*QUICK, "--data", demo, "--epochs", "1") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "--data-backend" in line)
    found = re.search(r"--data-backend +(\w+) +img/s alone: (.*)", line)
    assert found is not None
    speeds = {name: int(speed.replace(",", "")) for name, speed in re.findall(r"(\w+) ([\d,]+)", found[2])}
    assert speeds[found[1]] == max(speeds.values())
    assert set(speeds) == {"torch", "cached", *(["dali"] if has_dali() else [])}


@jobs("detection")
def test_test_only_validates_a_checkpoint_and_changes_nothing(train, job, capsys):
    assert train(*job.flags, "--epochs", "2", "--lr", job.lr) == 0
    before = {path: path.read_bytes() for path in job.folder.iterdir()}
    capsys.readouterr()
    assert train(*job.flags, "--test-only", "--resume", job.folder / "last.pt") == 0
    val = records(job.folder, "epoch")[-1]["val"]
    out = capsys.readouterr().out
    digits = 1 if job.metric == "map" else 2
    assert f"val loss {val['loss']:.3f}  " in out
    assert f"  {job.metric} {val[job.metric]:.{digits}f}%" in out
    assert val[job.metric] > 1
    assert out.endswith("  50 images\n")
    assert {path: path.read_bytes() for path in job.folder.iterdir()} == before


@jobs("classification", "segmentation")
def test_checkpoints_hold_plain_types_and_the_networks_own_names(train, job):
    assert train(*job.flags, "--epochs", "1", "--model-ema") == 0
    content = torch.load(job.folder / "best.pt", weights_only=True)
    network = fastcnn.load(job.folder / "best.pt")
    weights, average = network.state_dict(), content["ema"]["average"]
    assert set(content["model"]) == set(content["weights"]) == set(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in average.items())
    assert {name for name, tensor in weights.items() if tensor.is_floating_point()} == set(average)
    network.load_state_dict(content["model"])
    colour = "blue_cross" if job.metric == "acc1" else "blue cross" if job.metric == "map" else "class 0"
    assert content["class_names"][0] == colour
    assert content["mean"] == [0.485, 0.456, 0.406]
    assert content["config"]["arch"] == job.arch


@jobs("detection")
def test_fit_is_the_command_from_python(tmp_path, monkeypatch, one_core, job):
    monkeypatch.chdir(tmp_path)
    result = fastcnn.fit(**job.settings, epochs=2, lr=job.lr, data_backend="torch")
    assert result.folder == job.folder
    assert result.best["epoch"] in (1, 2)
    assert result.val["samples"] == 50
    assert result.images_per_second > 0
    outputs = result.network(torch.zeros(1, 3, 32, 32))
    demo = {"acc1": (1, 10), "miou": (1, 11, 32, 32), "map": (1, 5 * 5 * 3, 15)}
    assert (outputs.raw if job.metric == "map" else outputs).shape == demo[job.metric]


@pytest.mark.parametrize("arch", each(["lenet5", "unet/lenet5", "yolo/lenet5"], ["lenet5"]))
def test_the_demo_set_and_synthetic_data_need_no_data(train, monkeypatch, tmp_path, capsys, arch):
    """And no settings but the epochs, and what does not fit so small a backbone."""
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    from fastcnn.data.sources import demo as demo_set

    demo_set.write(demo_set.demo_root(), train_per_class=4, val_per_class=2)
    own = {"unet/lenet5": ("--img-size", "32"), "yolo/lenet5": ("--img-size", "32", "--strides", "4")}
    flags = ("--arch", arch, *own.get(arch, ()), "--epochs", "1")
    name = arch.replace("/", "-")
    assert train(*flags) == 0
    assert f"runs/{name}-demo" in capsys.readouterr().out
    monkeypatch.setattr("fastcnn.data.sources.torchvision.synthetic_source.__defaults__", (64, 16, 10))
    monkeypatch.setattr("fastcnn.data.sources.masks.source.synthetic_mask_source.__defaults__", (64, 16, 10))
    monkeypatch.setattr("fastcnn.data.sources.boxes.source.synthetic_box_source.__defaults__", (64, 16, 10))
    assert train(*flags, "--data", "synthetic") == 0
    assert f"runs/{name}-synthetic" in capsys.readouterr().out


def test_a_lr_that_explodes_stops_with_the_step_and_keeps_the_last_checkpoint(train, demo, capsys, wording):
    flags = (*QUICK, "--arch", "small_network:small", "--data", demo, "--log-interval", "2")
    flags += ("--sched", "constant")
    assert train(*flags, "--epochs", "1", "--lr", "0.01", "--output-dir", "run") == 0
    before = Path("run/last.pt").read_bytes()
    capsys.readouterr()
    assert train(*flags, "--epochs", "2", "--lr", "1e30", "--output-dir", "run", "--resume") == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"fastcnn: error: .* step 1\d, epoch 2, .*--lr.*\n", error)
    wording(re.sub(r"step 1\d", "step N", error))
    assert Path("run/last.pt").read_bytes() == before


@pytest.mark.slow
def test_too_many_bad_files_found_while_training_stop_all_processes_with_one_line(
    tmp_path, monkeypatch, demo
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, "photos")
    for path in sorted(Path("photos/train/blue_cross").iterdir())[:6]:  # good heads and ends, damaged between
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
        png = bytearray(path.with_suffix(".png").read_bytes())
        png[len(png) // 2] ^= 0xFF
        path.with_suffix(".png").write_bytes(png)
    flags = (*QUICK, "--data", "photos", "--epochs", "9", "--log-interval", "2", "--data-backend", "torch")
    statuses, _, errors = zip(*run_ranks(worker_fits.command, str(tmp_path), *flags))
    assert set(statuses) == {2}
    err = "".join(errors)
    assert len(re.findall(r"^warning: undecodable training image: .*png", err, re.MULTILINE)) >= 2
    assert len(re.findall(r"^fastcnn: error: --max-bad-fraction 0.01: \d of 160 .*", err, re.MULTILINE)) == 1


@pytest.fixture(scope="module")
def good(tmp_path_factory, demo) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    fastcnn.fit(
        **job_of("classification", demo, demo).settings,
        epochs=1,
        data_backend="torch",
        output_dir=str(folder),
    )
    return folder / "last.pt"


MISTAKES = [
    (("--epoch", "3"), "--epoch"),
    (("--lr", "abc"), "--lr abc"),
    (("--opt", "adam"), "--opt adam"),
    (("--epochs",), "--epochs"),
    (("--config", "bad.yaml"), "--config bad.yaml"),
    (("--resume", "pickle.pt"), "--resume pickle.pt"),
    (("--data", ""), "--data"),
    (("--arch", "resnet-50"), "--arch resnet-50"),
    (("--data", "nowhere"), "--data nowhere"),
    (("--batch-size", "161"), "--batch-size 161"),
    (("--grad-accum-steps", "11"), "--grad-accum-steps 11"),
    (("--img-size", "64"), "--img-size 64"),
    (("--num-classes", "9"), "--num-classes 9"),
    (("--val-split", "0.5"), "--val-split"),
    (("--device", "cpu", "--amp-dtype", "fp16"), "--amp-dtype fp16"),
    (("--device", "cpu", "--sync-bn"), "--sync-bn"),
    (("--data", "synthetic", "--data-backend", "torch"), "--data-backend torch"),
    (("--test-only",), "--test-only"),
    (("--resume", "good.pt", "--arch", "resnet20"), "--resume good.pt"),
    (("--resume", "good.pt", "--opt", "adamw"), "--resume good.pt"),
    (("--resume", "none.pt"), "--resume none.pt"),
    (("--resume", "broken.pt"), "--resume broken.pt"),
    (("--resume", "foreign.pt"), "--resume foreign.pt"),
    (("--output-dir", "file"), "--output-dir file"),
    (("--config", "nowhere.yaml"), "--config nowhere.yaml"),
    (("--workers", "0", "--data-backend", "dali"), "--data-backend dali"),
    (("--epochs", "0"), "--epochs 0.0"),
    (("--arch", "unet/resnet17"), "--arch unet/resnet17"),
    (("--arch", "unet_small"), "--data classes"),
    (("--arch", "unet_small", "--data", "gap"), "gap/images/train/1.jpg"),
    (("--arch", "unet_small", "--data", "annotated", "--head", "mlp"), "--head mlp"),
    (("--arch", "unet_small", "--data", "annotated", "--class-weights", "1", "2"), "--class-weights"),
    (("--arch", "yolo"), "--data classes"),
    (("--arch", "yolo/lenet5", "--data", "annotated", "--strides", "5"), "--strides 5"),
    (("--arch", "yolo", "--data", "annotated", "--anchors", "1", "2", "3"), "--anchors 1.0 2.0 3.0"),
]


def folder_with_a_gap(root: Path, annotated: Path) -> None:
    """Three images to train on and to validate on each; one has no mask."""
    for phase in ("train", "val"):
        for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
            (root / kind / phase).mkdir(parents=True)
            for i, path in enumerate(sorted((annotated / kind / phase).rglob(f"*{suffix}"))[:3]):
                shutil.copy(path, root / kind / phase / f"{i}{suffix}")
    (root / "masks/train/1.png").unlink()


@pytest.mark.parametrize(("flags", "named"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_a_mistake_gives_one_line_and_status_2_and_leaves_nothing(
    train, demo, annotated, good, capsys, flags, named, wording
):
    Path("classes").symlink_to(demo)
    Path("annotated").symlink_to(annotated)
    folder_with_a_gap(Path("gap"), annotated)
    shutil.copy(good, "good.pt")
    Path("broken.pt").write_bytes(b"PK nonsense")
    Path("pickle.pt").write_text("hello world")
    Path("bad.yaml").write_text("epochs: three")
    Path("file").write_text("")
    torch.save({"weights": 1}, "foreign.pt")
    made = set(Path().iterdir())
    assert train(*QUICK, "--data", "classes", *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fastcnn: error: {named}")
    assert captured.err.count("\n") == 1
    if "dali" not in flags:  # else it depends on whether it is installed
        wording(captured.err)
    assert set(Path().iterdir()) == made


def test_images_without_masks_are_left_out_when_told_so(train, annotated, capsys, wording):
    folder_with_a_gap(Path("gap"), annotated)
    flags = (*QUICK, "--arch", "unet_small", "--img-size", "32", "--batch-size", "2", "--data", "gap")
    assert train(*flags, "--bad-labels", "skip", "--epochs", "1") == 0
    wording.line(capsys.readouterr().out, "skipped")
    assert records(Path("runs/unet_small-gap"), "epoch")[0]["val"]["samples"] == 3


def test_a_second_run_does_not_overwrite_the_first(train, demo, capsys, wording):
    flags = (*QUICK, "--data", demo, "--epochs", "1")
    assert train(*flags, "--output-dir", "run") == 0
    assert train(*flags, "--output-dir", "run") == 2
    message = capsys.readouterr().err
    assert "--output-dir run: " in message
    wording(message)
    assert train(*flags, "--output-dir", "run", "--resume", "--arch", "lenet5_relu") == 2
    message = capsys.readouterr().err
    assert "lenet5_relu" in message
    wording(message)


ENDLESS = (
    *(*QUICK, "--data-backend", "torch", "--epochs", "100000", "--output-dir", "run", "--log-interval", "5"),
    "--data",
)


def wait_for_a_checkpoint() -> None:
    deadline = time.monotonic() + 100
    while not Path("run/last.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_what_a_signal_leaves(number: signal.Signals, out: str, ranks: int) -> None:
    assert f"stopped by {number.name}: continue with --resume run/last.pt" in out
    content = torch.load("run/last.pt")
    assert content["step"] >= max(record["step"] for record in records(Path("run"), "train"))
    assert len(content["ranks"]) == ranks


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_leaves(tmp_path, monkeypatch, demo, number, status):
    monkeypatch.chdir(tmp_path)
    with command(tmp_path, *ENDLESS, str(demo)) as process:
        assert process.pid is not None
        wait_for_a_checkpoint()
        os.kill(process.pid, number)
        process.join(60)
        out = Path("out.txt").read_text()
        assert process.exitcode == status, out
    check_what_a_signal_leaves(number, out, 1)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_signal_to_torchrun_saves_and_ends_all_processes(tmp_path, monkeypatch, demo):
    monkeypatch.chdir(tmp_path)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastcnn.train"]
    process = subprocess.Popen(
        [sys.executable, *launch, *ENDLESS, str(demo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_a_checkpoint()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err  # torchrun's own
    check_what_a_signal_leaves(signal.SIGTERM, out, 2)
    with pytest.raises(ProcessLookupError):  # no process of its session is left
        os.killpg(process.pid, 0)


def test_another_ctrl_c_ends_the_process_at_once_with_one_line():
    code = (
        "import os, signal\n"
        "from fastcnn.runtime import signals\n"
        "signals.HARD_EXIT_DELAY = 0\n"
        "with signals.stop_on_signals(exits=True) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(bool(stop), flush=True)\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "True\n", HARD_EXIT_MESSAGE)


@pytest.mark.slow
def test_another_ctrl_c_in_the_middle_of_a_save_loses_nothing_that_was_saved(tmp_path, monkeypatch, demo):
    monkeypatch.chdir(tmp_path)
    code = (
        "import os, signal, sys, torch\n"
        "from fastcnn import train\n"
        "from fastcnn.runtime import signals\n"
        "signals.HARD_EXIT_DELAY = 0\n"
        "save, saves = torch.save, []\n"
        "def slow(content, file):\n"
        "    class File:\n"
        "        def write(self, data):\n"
        "            if len(saves) == 3:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "            return file.write(data)\n"
        "        flush = file.flush\n"
        "    saves.append(1)\n"
        "    save(content, File())\n"
        "torch.save = slow\n"
        "sys.exit(train.main())\n"
    )
    flags = (*QUICK, "--data", str(demo), "--epochs", "9", "--output-dir", "run", "--data-backend", "torch")
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, HARD_EXIT_MESSAGE)
    assert torch.load("run/last.pt")["epoch"] == 2


@pytest.mark.slow
def test_a_resumed_epoch_goes_on_at_the_same_fraction_with_another_number_of_processes(
    train, tmp_path, demo, wording
):
    flags = (*QUICK, "--data", demo, "--epochs", "2", "--output-dir", "run", "--deterministic")
    interrupt_after(4, lambda: train(*flags, "--checkpoint-steps", "4"))  # of 10
    more = ("--log-interval", "1", "--data-backend", "torch")
    answers = run_ranks(worker_fits.command, str(tmp_path), "--resume", "run/last.pt", *more)
    assert [status for status, _, _ in answers] == [0, 0], answers
    wording.line(answers[0][1], "Resuming")
    first, second = records(Path("run"), "epoch")
    assert first["train"]["samples"] == second["train"]["samples"] == 160
    assert [first["step"], second["step"]] == [5, 10]


@pytest.mark.slow
def test_two_processes_validate_every_image_once_and_only_the_first_speaks(tmp_path, monkeypatch, demo):
    monkeypatch.chdir(tmp_path)
    flags = ("--data", str(demo), "--data-backend", "torch", "--epochs", "2", "--output-dir", "run")
    (first, out, err), (second, silent, _) = run_ranks(worker_fits.command, str(tmp_path), *QUICK, *flags)
    assert (first, second) == (0, 0), err
    epochs = records(Path("run"), "epoch")
    assert [record["val"]["samples"] for record in epochs] == [50, 50]
    assert [record["train"]["samples"] for record in epochs] == [160, 160]
    assert out.count("auto-selected settings") == 1
    assert silent == ""
    content = torch.load("run/last.pt")
    assert len(content["ranks"]) == 2
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in content["model"])


SIZES = (16, 5)
"""Of validation batches. Those of 5 hold the same images in two processes as in one, so that their losses are
comparable; those of 16 are filled up."""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory, demo, annotated) -> tuple[Path, list[list[dict[str, float]]]]:
    """Runs of two processes for each task, and what each process found: after the last epoch, and when these
    are validated once more, in batches of either size."""
    root = tmp_path_factory.mktemp("two")
    runs = []
    for task in TASKS:
        job, folder = job_of(task, demo, annotated), str(root / task)
        own = {**job.settings, "data_backend": "torch", "workers": 1}
        epochs = 4 if task == "detection" else 2  # until its metric is above 0
        runs.append({**own, "epochs": epochs, "lr": job.lr, "output_dir": folder})
        runs += [{**own, "batch_size": n, "resume": folder, "test_only": True} for n in SIZES]
    return root, run_ranks(worker_fits.results, runs)


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_and_validate_every_image_once_and_measure_what_one_does(
    of_two, one_core, demo, annotated, task
):
    root, found = of_two
    assert found[0] == found[1]
    trained, *again = found[0][3 * TASKS.index(task) :][:3]
    epoch = records(root / task, "epoch")[-1]
    assert epoch["train"]["samples"] == 160
    assert epoch["val"] == trained
    assert again[0] == trained
    job = job_of(task, demo, annotated)
    for size, of_ranks in zip(SIZES, again):
        told = {**job.settings, "batch_size": size, "data_backend": "torch"}
        alone = fastcnn.fit(**told, resume=str(root / task), test_only=True).val
        loss = alone.pop("loss")
        assert {name: of_ranks[name] for name in alone} == pytest.approx(alone, rel=1e-6)
        assert alone["samples"] == 50
        assert alone[job.metric] > 1
        if size == 5:
            assert of_ranks["loss"] == pytest.approx(loss, rel=1e-5)
        if task == "segmentation":  # counts of pixels
            assert {name: of_ranks[name] for name in alone} == alone


@pytest.mark.slow
def test_two_compiled_processes_train(tmp_path, monkeypatch, demo):
    monkeypatch.chdir(tmp_path)
    run = ("--data", str(demo), "--epochs", "2", "--output-dir", "run", "--compile", "on")
    flags = (*QUICK, *run, "--lr", "0.1", "--data-backend", "torch")
    answers = run_ranks(worker_fits.command, str(tmp_path), *flags, timeout=280)
    assert [status for status, _, _ in answers] == [0, 0], answers
    losses = [record["train"]["loss"] for record in records(Path("run"), "epoch")]
    assert losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_network_learns_shapes_beside_colours(train, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path))
    assert train("--arch", "resnet20") == 0
    best = max(record["val"]["acc1"] for record in records(Path("runs/resnet20-demo"), "epoch"))
    assert best > 60  # colour alone: at most 50
