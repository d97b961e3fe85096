"""Transfer learning: what is frozen stays so to the last bit, learns at its share of the rate, and can be
unfrozen, resumed and loaded again."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcnn
from fastcnn.config import NetworkSettings, OptimizerSettings
from fastcnn.data.sources.demo import VERSION
from fastcnn.engine.epoch import Callbacks, train_epoch
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.state import StepOptions, TrainState, build_state, unfreeze
from fastcnn.engine.step import train_step
from fastcnn.errors import UserError
from fastcnn.models import MODELS, ConvNet, build
from fastcnn.models.create import build_network
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.transfer.adapt import load_weights
from fastcnn.transfer.freeze import Frozen, describe_frozen, frozen_layers, lr_scales
from fastcnn.transfer.weights import download_pretrained
from networks import each
from runs import interrupt_after
from training import CPU, MEAN, STD, TASK, batches, loader_of, step_twice_without_waiting

pytestmark = pytest.mark.usefixtures("one_core")


def shell(arch: str) -> ConvNet:
    """The network without memory or numbers."""
    with torch.device("meta"):
        return build(arch, 10)


# Which layers


@pytest.mark.parametrize(
    ("arch", "until", "last"),
    [
        ("resnet20", "conv1", "bn1"),  # which is in the same group
        ("resnet20", "bn1", "bn1"),
        ("resnet20", "layer1", "layer1.2"),
        ("resnet20", "layer1.0", "layer1.0"),
        ("resnet20", "layer2.1.conv2", "layer2.1"),
        ("resnet20", "layer3.2", "layer3.2"),
        ("vgg11", "features", "features.18"),
        ("vit_b_32", "encoder.pos_embedding", "encoder.pos_embedding"),
        ("vit_b_32", "encoder.layers", "encoder.ln"),
    ],
)
def test_layers_are_frozen_up_to_the_one_that_is_named(arch, until, last):
    network = shell(arch)
    names = frozen_layers(network, "none", until)
    groups = network.layer_groups()
    count = next(i for i, group in enumerate(groups) if last in group) + 1
    assert names == [name for group in groups[:count] for name in group]
    assert names[-1] == last


@pytest.mark.parametrize("arch", each(MODELS))
def test_the_backbone_is_all_but_the_last_group(arch):
    network = shell(arch)
    before = [p for p in network.parameters() if p.requires_grad]
    frozen = Frozen(network, frozen_layers(network, "backbone", None))
    left = {name for name, p in network.named_parameters() if p.requires_grad}
    assert left == {f"{network.classifier_name}.weight", f"{network.classifier_name}.bias"}
    assert len(frozen.parameters) == len(before) - 2


def test_nothing_is_frozen_unless_told():
    assert frozen_layers(shell("resnet20"), "none", None) == []


@pytest.mark.parametrize("until", ["layer4", "relu", "layer3.2.conv3", "fc"])
def test_a_layer_that_cannot_be_frozen_is_one_line_with_the_nearest(until, wording):
    with pytest.raises(ValueError, match=f"^--freeze-until {until}: .*$") as caught:
        frozen_layers(shell("resnet20"), "none", until)
    wording(caught.value)


def test_a_network_without_a_backbone_is_one_line(wording):
    with pytest.raises(ValueError, match="^--freeze backbone:") as caught:
        frozen_layers(nn.Sequential(nn.Linear(3, 2)), "backbone", None)
    wording(caught.value)


def test_what_is_frozen_is_said_with_its_share(wording):
    network = shell("resnet20")
    names = frozen_layers(network, "backbone", None)
    wording(describe_frozen(network, names, None))
    wording(describe_frozen(network, names, 3))


def test_dropout_before_frozen_layers_is_off_and_after_them_on():
    network = nn.Sequential(
        nn.Linear(4, 4),
        nn.Dropout(),
        nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
        nn.Dropout(),
        nn.Linear(4, 2),
    )
    frozen = Frozen(network, ["0", "2"])
    network.train()
    frozen.hold()
    assert [network[i].training for i in range(5)] == [False, False, False, True, True]
    assert not network.get_submodule("2.1").training


def test_what_never_trained_does_not_begin_to_when_the_rest_is_unfrozen():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    network.get_parameter("0.bias").requires_grad_(False)
    Frozen(network, ["0"]).release()
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]


# Training


def state_of(
    freeze: str, opt: Any = "sgd", scales: dict[str, float] | None = None, **settings: Any
) -> TrainState:
    torch.manual_seed(0)
    network = build("resnet20", num_classes=10).to(memory_format=torch.channels_last)
    names = frozen_layers(network, freeze, None)
    frozen = Frozen(network, names) if names else None
    optimizer = build_optimizer(
        network, OptimizerSettings(opt=opt, weight_decay=0.1), lr=0.05, lr_scales=scales
    )
    schedule = Schedule(peak=0.05, steps_per_epoch=3, epochs=2, kind="constant")
    return build_state(
        network, optimizer, schedule, StepOptions(**settings), mean=MEAN, std=STD, frozen=frozen
    )


def epoch(state: TrainState, count: int = 3) -> None:
    metrics = TASK.metrics(CPU)
    callbacks = Callbacks(on_log=lambda interval: False)
    train_epoch(state, TASK, loader_of(batches(count)), metrics, log_interval=10, callbacks=callbacks)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("opt", ["sgd", "nesterov", "adamw", "muon"])
def test_only_the_classifier_changes_on_a_frozen_backbone(opt):
    state = state_of("backbone", opt, clip_grad=1.0, ema_decay=0.9)
    before = copy.deepcopy(state.network.state_dict())
    epoch(state)
    evaluate(state, TASK, loader_of(batches(1)))
    epoch(state)  # evaluation has put all modules into its own mode
    assert changed(before, state.network.state_dict()) == {"fc.weight", "fc.bias"}
    assert state.ema is not None
    assert changed(state.ema.average, {**before, **state.ema.average, "fc.bias": before["fc.bias"]}) == {
        "fc.bias"
    }
    assert changed(before, {**before, **state.ema.average}) == {"fc.weight", "fc.bias"}


def test_without_freezing_everything_changes():
    state = state_of("none")
    before = copy.deepcopy(state.network.state_dict())
    epoch(state)
    assert changed(before, state.network.state_dict()) == set(before)


@pytest.mark.parametrize("opt", ["sgd", "nesterov", "adamw", "muon"])
def test_after_unfreezing_everything_changes(opt):
    state = state_of("backbone", opt)
    epoch(state)
    unfreeze(state)
    assert state.frozen is None
    before = copy.deepcopy(state.network.state_dict())
    epoch(state)
    assert changed(before, state.network.state_dict()) == set(before)


def test_ranks_do_not_average_the_statistics_of_frozen_layers(monkeypatch):
    fixed: list[list[Tensor]] = []
    monkeypatch.setattr(
        "fastcnn.engine.evaluate.average_buffers", lambda network, buffers: fixed.append(buffers)
    )
    state = state_of("backbone", ema_decay=0.9)
    evaluate(state, TASK, loader_of(batches(1)))
    own = {id(buffer) for buffer in state.network.buffers()}
    assert [{id(buffer) for buffer in buffers} for buffers in fixed] == [own, own]


def test_a_step_on_a_frozen_backbone_asks_nothing_of_the_device(monkeypatch):
    step_twice_without_waiting(state_of("backbone", clip_grad=1.0, ema_decay=0.9), monkeypatch)


@pytest.mark.slow
def test_a_compiled_network_is_frozen_and_unfrozen_like_an_eager_one():
    from torch._dynamo.utils import counters

    eager, compiled = state_of("backbone"), state_of("backbone", compile=True)
    counters.clear()
    before = copy.deepcopy(compiled.network.state_dict())
    for state in (eager, compiled):
        epoch(state)
    assert changed(before, compiled.network.state_dict()) == {"fc.weight", "fc.bias"}
    evaluate(compiled, TASK, loader_of(batches(1)))
    graphs = counters["stats"]["unique_graphs"]
    epoch(compiled)
    epoch(eager)
    assert counters["stats"]["unique_graphs"] == graphs
    for state in (eager, compiled):
        unfreeze(state)
        epoch(state, 1)
    assert counters["stats"]["unique_graphs"] == graphs + 1
    for a, b in zip(eager.network.parameters(), compiled.network.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


# Shares of the learning rate


def test_the_backbone_has_its_share_of_the_learning_rate():
    scales = lr_scales(shell("resnet20"), backbone=0.1, decay=1.0)
    assert {name for name, scale in scales.items() if scale == 1} == {"fc.weight", "fc.bias"}
    assert {scale for name, scale in scales.items() if not name.startswith("fc")} == {0.1}
    assert set(scales) == {name for name, _ in shell("resnet20").named_parameters()}


def test_the_learning_rate_decays_from_the_classifier_to_the_input():
    scales = lr_scales(shell("lenet5"), backbone=1.0, decay=0.5)
    by_layer = {name.partition(".")[0]: scale for name, scale in scales.items()}
    assert by_layer == {"conv1": 1 / 16, "conv3": 1 / 8, "conv5": 1 / 4, "fc6": 1 / 2, "fc7": 1}


def test_both_shares_multiply():
    scales = lr_scales(shell("lenet5"), backbone=0.1, decay=0.5)
    assert [scales[f"{name}.bias"] for name in ("fc7", "fc6", "conv5")] == pytest.approx([1, 0.05, 0.025])


def test_a_share_of_the_learning_rate_is_a_share_of_the_first_movement():
    moved = []
    for scales in ({}, {"conv1.weight": 0.1}):
        state = state_of("none", scales=scales)
        before = copy.deepcopy(state.network.state_dict())
        train_step(state, TASK, batches(1), TASK.metrics(CPU))
        moved.append({name: value - before[name] for name, value in state.network.state_dict().items()})
    torch.testing.assert_close(moved[1]["conv1.weight"], 0.1 * moved[0]["conv1.weight"], rtol=1e-3, atol=1e-6)
    assert torch.equal(moved[1]["fc.weight"], moved[0]["fc.weight"])


# Classifiers


@pytest.mark.parametrize("arch", ["resnet20", "vgg11", "vit_b_32", "torchvision/alexnet"])
def test_a_classifier_with_a_hidden_layer_is_the_last_group(arch):
    with torch.device("meta"):
        network = build_network(
            NetworkSettings(arch=arch, num_classes=7, in_chans=3, head="mlp", head_hidden=32)
        )
    names = frozen_layers(network, "backbone", None)
    Frozen(network, names)
    assert [len(p) for p in network.parameters() if p.requires_grad] == [32, 32, 7, 7]


# Runs

QUICK = (
    *("--arch", "resnet20", "--img-size", "16", "--amp-dtype", "fp32", "--batch-size", "32"),
    *("--data-backend", "torch", "--workers", "1", "--lr", "0.05"),
)


ADAPTIVE = ("--opt", "adamw", "--model-ema", "--layer-decay", "0.75")
MOBILE = (
    *("--opt", "rmsproptf", "--model-ema", "--model-ema-steps", "3", "--clip-grad", "0.1", "--clip-mode"),
    *("value", "--sched", "triangular", "--drop", "0.2", "--drop-path", "0.2", "--lr", "0.002"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "extra"),
    [
        *(pytest.param(saved, (), marks=pytest.mark.slow) for saved in (3, 5, 12)),
        pytest.param(7, ADAPTIVE, marks=pytest.mark.slow),
        (4, MOBILE),
    ],
    ids=["frozen", "between", "unfrozen", "unfrozen adamw", "frozen rmsprop and dropout"],
)
def test_a_frozen_run_resumed_ends_in_the_same_bits(train, demo, saved, extra):
    flags = (*QUICK, "--data", demo, "--epochs", "3", "--freeze", "backbone", "--unfreeze-epoch", "2", *extra)
    flags += ("--deterministic",)
    assert train(*flags, "--output-dir", "whole") == 0  # 5 steps an epoch
    interrupt_after(saved, lambda: train(*flags, "--output-dir", "parts", "--checkpoint-steps", saved))
    assert train("--resume", "parts/last.pt", "--deterministic") == 0
    whole, parts = torch.load("whole/last.pt"), torch.load("parts/last.pt")
    assert changed(whole["model"], parts["model"]) == set()
    assert changed(whole["weights"], parts["weights"]) == set()


def test_a_run_says_what_is_frozen_and_when_that_ends(train, demo, capsys, wording):
    flags = (*QUICK, "--data", demo, "--epochs", "2", "--freeze-until", "layer2", "--unfreeze-epoch", "2")
    assert train(*flags, "--output-dir", "run") == 0
    out = capsys.readouterr().out
    wording.line(out, "frozen up")
    assert out.index("epoch 1/2") < out.index("\nepoch 2: ") < out.index("epoch 2/2")
    wording.line(out, "epoch 2: all")


@pytest.mark.slow
def test_a_frozen_run_goes_on_unfrozen_when_told(train, demo):
    flags = (*QUICK, "--data", demo, "--freeze", "backbone", "--output-dir", "run")
    assert train(*flags, "--epochs", "1") == 0
    before = torch.load("run/last.pt")["model"]
    assert train("--resume", "run/last.pt", "--epochs", "2") == 0
    frozen = torch.load("run/last.pt")["model"]
    assert changed(before, frozen) <= {"fc.weight", "fc.bias"}
    assert train("--resume", "run/last.pt", "--epochs", "3", "--unfreeze-epoch", "3") == 0
    assert changed(frozen, torch.load("run/last.pt")["model"]) > {"conv1.weight", "bn1.running_mean"}


def test_a_run_with_a_hidden_layer_becomes_a_network_again(train, demo):
    head = ("--head", "mlp", "--head-hidden", "8")
    assert train(*QUICK, "--data", demo, "--epochs", "1", *head, "--output-dir", "run") == 0
    network = fastcnn.load("run/best.pt")
    assert network.get_parameter("fc.3.weight").shape == (10, 8)
    assert changed(network.state_dict(), torch.load("run/best.pt")["weights"]) == set()


@pytest.mark.slow
def test_what_the_optimizer_and_the_network_are_made_of_stays_in_a_resumed_run(train, demo, capsys):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--output-dir", "run") == 0
    for name, then, now in (
        ("layer_decay", "1.0", "0.5"),
        ("backbone_lr_scale", "1.0", "0.5"),
        ("head", "linear", "mlp"),
    ):
        flag = "--" + name.replace("_", "-")
        assert train("--resume", "run/last.pt", "--epochs", "2", flag, now) == 2
        expected = f"--resume run/last.pt: its {name} is {then}, this run's is {now}; use the same\n"
        assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints_from_before_these_settings_are_resumed_and_loaded(train, demo):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--output-dir", "run") == 0
    content = torch.load("run/last.pt")
    for name in (
        "pretrained",
        "weights",
        "head",
        "head_hidden",
        "freeze",
        "backbone_lr_scale",
        "layer_decay",
    ):
        del content["config"][name]
    for group in content["optimizer"]["param_groups"]:
        del group["lr_scale"]
    torch.save(content, "run/last.pt")
    assert train("--resume", "run/last.pt", "--epochs", "2") == 0
    torch.save(content, Path("old.pt"))
    assert isinstance(fastcnn.load("old.pt"), nn.Module)


def test_a_layer_that_is_not_there_ends_the_run_before_it_starts(train, demo, capsys, wording):
    assert train(*QUICK, "--data", demo, "--freeze-until", "layer9") == 2
    error = capsys.readouterr().err
    assert "--freeze-until" in error
    wording(error)
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_frozen_layers_without_weights_are_warned_of(train, demo, capsys, wording):
    flags = (*QUICK, "--data", demo, "--epochs", "1", "--freeze", "backbone")
    assert train(*flags, "--unfreeze-epoch", "9") == 0
    said = capsys.readouterr().out
    wording.line(said, "warning: the frozen")
    wording.line(said, "warning: --unfreeze-epoch")


def test_other_weights_for_a_run_that_goes_on_are_one_line(train, demo, capsys, wording):
    assert train(*QUICK, "--data", demo, "--epochs", "1", "--output-dir", "run") == 0
    capsys.readouterr()
    assert train("--resume", "run/last.pt", "--data", demo, "--weights", "other.pt") == 2
    message = capsys.readouterr().err
    assert "--weights other.pt: " in message
    wording(message)


@pytest.mark.parametrize(
    "arch", ["lenet5", "alexnet", "vgg11_cifar", "googlenet", "resnet20", "densenet121", "mobilenet_v3_small"]
)
def test_a_backbone_takes_the_weights_of_the_whole_network(arch):
    whole, backbone = build(arch, num_classes=7), build(arch, num_classes=5)
    backbone.remove_head()
    assert load_weights(backbone, backbone.without_head(whole.state_dict())) == []
    loaded = whole.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in backbone.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["unet/lenet5", "yolo/lenet5"])
def test_masks_and_boxes_start_from_a_network_for_classification(
    train, demo, tmp_path, monkeypatch, capsys, arch, wording
):
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(demo, tmp_path / "cache" / f"shapes-v{VERSION}")
    quick = ("--epochs", "1", "--amp-dtype", "fp32", "--workers", "1", "--img-size", "32")
    assert train("--arch", "lenet5", *quick, "--output-dir", "first") == 0
    told = ("--weights", "first/best.pt", "--freeze", "backbone")
    assert train("--arch", arch, *quick, *told, "--output-dir", "second") == 0
    said = capsys.readouterr().out
    wording.line(said, "starting from")
    wording.line(said, "frozen up")
    before, after = (torch.load(f"{run}/last.pt")["model"] for run in ("first", "second"))
    kept = [name for name in before if name.startswith(("conv1", "conv3"))]
    assert len(kept) == 4
    assert all(torch.equal(before[name], after[f"backbone.{name}"]) for name in kept)
    # And then from their own: other classes start fresh, all else is loaded.
    assert train("--arch", arch, *quick, "--weights", "second/best.pt", "--output-dir", "third") == 0


def test_pretrained_weights_are_those_of_the_backbone(monkeypatch, wording):
    asked: list[str] = []
    monkeypatch.setattr("fastcnn.transfer.weights.torchvision_weights", asked.append)
    for arch in ("unet/resnet50", "yolo", "yolov1/mobilenet_v2"):
        download_pretrained(arch)
    assert asked == ["resnet50", "resnet18", "mobilenet_v2"]
    with pytest.raises(UserError, match="^--pretrained:") as caught:
        download_pretrained("unet")
    wording(caught.value)
