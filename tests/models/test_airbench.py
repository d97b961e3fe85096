"""airbench94's network: what whitens patches is computed from images, and never trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.config import Config, OptimizerSettings
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.first_images import first_images
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.headers import scan
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine import checkpoint
from fastcnn.engine.state import StepOptions, build_state, unfreeze
from fastcnn.engine.step import train_step
from fastcnn.models import build
from fastcnn.models.airbench import WHITEN_EPS, AirbenchNet, airbench_small
from fastcnn.models.external import with_sync_bn
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.setup import network as setup_network
from fastcnn.setup import transforms
from fastcnn.transfer.freeze import Frozen, frozen_layers
from small_tasks import small_batch, task_for

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"widths": (25, 30, 35), "num_classes": 10}
PAD = Transform(size=8, channels=3, train_crop="pad")


def small(**options: Any) -> AirbenchNet:
    torch.manual_seed(0)
    return AirbenchNet(**{**SMALL, **options})


def smooth_images(count: int = 20, channels: int = 3, seed: int = 0) -> Tensor:
    """Neighbouring pixels and channels are alike, as in photos."""
    coarse = torch.randn(count, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, 12, mode="bicubic")
    return fine + 0.1 * torch.randn(fine.shape, generator=torch.Generator().manual_seed(seed + 1))


# The network


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_and_of_variance_1_and_their_negatives_follow(channels):
    network, images = small(in_chans=channels), smooth_images(channels=channels)
    network.init_from_images(images)
    patches = F.conv2d(images, network.whiten.weight)
    half = 4 * channels
    assert patches.shape[1] == 2 * half
    torch.testing.assert_close(patches[:, half:], -patches[:, :half])
    found = patches[:, :half].transpose(0, 1).flatten(1)
    moments = found @ found.T / found.shape[1]
    filters = network.whiten.weight[:half].flatten(1)
    variances = 1 / filters.square().sum(1) - WHITEN_EPS
    torch.testing.assert_close(
        moments, torch.diag(variances / (variances + WHITEN_EPS)), atol=1e-4, rtol=1e-4
    )


def test_filters_are_exact_where_one_variance_is_far_above_the_others():
    network, images = small(), smooth_images() + 1000
    network.init_from_images(images)
    patches = F.unfold(images.double(), 2).transpose(0, 1).flatten(1)
    found = network.whiten.weight[:12].flatten(1).double()
    variances = 1 / found.square().sum(1) - WHITEN_EPS
    exact = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1])
    torch.testing.assert_close(variances, exact, rtol=1e-3, atol=1e-6)


def test_filters_do_not_depend_on_how_many_images_are_looked_at_together(monkeypatch):
    network, images = small(), smooth_images()
    network.init_from_images(images)
    together = network.whiten.weight.clone()
    monkeypatch.setattr("fastcnn.models.airbench.CHUNK", 7)
    network.init_from_images(images)
    flipped = torch.sign((network.whiten.weight * together).sum((1, 2, 3)))
    torch.testing.assert_close(
        network.whiten.weight * flipped.view(-1, 1, 1, 1), together, rtol=1e-3, atol=1e-3
    )


def test_the_first_filters_of_a_convolution_pass_their_input_on():
    network = small()
    for block in (network.block1, network.block2, network.block3):
        for conv in (block.conv1, block.conv2):
            x = torch.randn(2, conv.in_channels, 5, 5)
            y = conv(x)
            torch.testing.assert_close(y[:, : conv.in_channels], x)
            if conv.out_channels > conv.in_channels:
                assert y[:, conv.in_channels :].std() > 0.1


@torch.no_grad()
def test_a_forward_pass_is_the_published_one():
    network = small().eval()
    for block in (network.block1, network.block2, network.block3):
        for norm in (block.norm1, block.norm2):
            norm.bias.normal_()
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    state = network.state_dict()

    def norm_of(name: str, x: Tensor) -> Tensor:
        mean, var, bias = (
            state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "bias")
        )
        return F.gelu((x - mean) / (var + 1e-5).sqrt() + bias)

    images = torch.randn(2, 3, 32, 32)
    x = F.gelu(F.conv2d(images, state["whiten.weight"], state["whiten.bias"]))
    for name in ("block1", "block2", "block3"):
        x = F.max_pool2d(F.conv2d(x, state[f"{name}.conv1.weight"], padding=1), 2)
        x = norm_of(f"{name}.norm1", x)
        x = norm_of(f"{name}.norm2", F.conv2d(x, state[f"{name}.conv2.weight"], padding=1))
    assert x.shape[2:] == (3, 3)
    x = F.linear(F.max_pool2d(x, 3).flatten(1), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(network(images), x, rtol=1e-4, atol=1e-5)


def test_norms_remember_their_last_batches_and_have_no_scale_that_trains():
    network = small()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.4}
    assert all(not norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)


# What does not train


def fixed(network: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in network.named_parameters() if not p.requires_grad}


FIXED = {"whiten.weight"} | {f"block{i}.norm{j}.weight" for i in (1, 2, 3) for j in (1, 2)}


@pytest.mark.parametrize("opt", ["sgd", "muon"])
def test_a_step_leaves_what_does_not_train_and_moves_the_rest_and_so_does_its_average(opt):
    network = small()
    network.init_from_images(smooth_images())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=0.01), lr=0.01)
    schedule = Schedule(peak=0.01, steps_per_epoch=4, epochs=1, kind="constant")
    state = build_state(
        network, optimizer, schedule, StepOptions(ema_decay=0.9), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    task = task_for("resnet20")
    state.train_model.train()
    batch = Batch(*small_batch("resnet20", 16, torch.Generator().manual_seed(0))[:3])
    for _ in range(2):
        train_step(state, task, [batch], task.metrics(CPU))
    same = {key for key, p in network.named_parameters() if torch.equal(p, before[key])}
    assert same == set(fixed(network)) == FIXED
    assert state.ema is not None
    average = state.ema.average
    assert {key for key, _ in network.named_parameters() if torch.equal(average[key], before[key])} == FIXED


def test_unfreezing_lets_train_what_trained_before_alone():
    network = small()
    frozen = Frozen(network, frozen_layers(network, "backbone", None))
    optimizer = build_optimizer(network, OptimizerSettings(opt="muon", weight_decay=0.01), lr=0.01)
    schedule = Schedule(peak=0.01, steps_per_epoch=4, epochs=1)
    state = build_state(network, optimizer, schedule, mean=(0.5,) * 3, std=(0.25,) * 3, frozen=frozen)
    assert "block2.conv1.weight" in fixed(network)
    unfreeze(state)
    assert set(fixed(network)) == FIXED


def test_synchronized_norms_have_no_scale_that_trains_either():
    network = with_sync_bn(small(), "airbench")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in network.modules())
    assert set(fixed(network)) == FIXED


# The images that it starts from


def split_of(count: int = 40) -> Split:
    """Image i is of value i, all over."""
    values = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Split(np.arange(count) // 20, images=np.broadcast_to(values, (count, 8, 8, 3)))


def test_the_first_images_are_spread_evenly_over_the_split_and_normalized():
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
    images = first_images(split_of(), PAD, mean=mean, std=std, count=14, workers=1)
    assert images.shape == (14, 3, 8, 8)
    assert images.dtype == torch.float32
    values = np.linspace(0, 39, 14).astype(int) / 255
    for channel in range(3):
        expected = torch.tensor((values - mean[channel]) / std[channel], dtype=torch.float32)
        torch.testing.assert_close(images[:, channel, 3, 4], expected)


def test_a_small_split_is_looked_at_as_a_whole():
    images = first_images(split_of(3), PAD, mean=(0.0,) * 3, std=(1.0,) * 3, count=100, workers=1)
    torch.testing.assert_close(images[:, 0, 0, 0] * 255, torch.tensor([0.0, 1.0, 2.0]))


def test_photos_are_seen_as_in_evaluation_and_bad_ones_are_left_out(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = sorted((photos / "train").rglob("*.jpg"))
    bad = tmp_path / "bad.jpg"
    content = bytearray(good[1].read_bytes())
    content[2:80] = bytes(78)
    bad.write_bytes(content)
    files = scan("test", [str(good[0]), str(bad), str(good[2])])
    transform = Transform(size=32, channels=3)
    split = Split(np.zeros(3, dtype=np.int64), files)
    images = first_images(split, transform, mean=(0.0,) * 3, std=(1.0,) * 3, count=3, workers=1)
    assert images.shape == (2, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    assert capsys.readouterr().err == ""


# A run


def whitening(path: Path) -> Tensor:
    return checkpoint.load(path)["model"]["whiten.weight"]


@pytest.fixture
def runs(train, demo):
    """Runs of one epoch on the demo set, as `runs(output_dir, more flags)`."""
    flags = ["--arch", "airbench_small", "--data", demo, "--img-size", 16, "--batch-size", 16]
    flags += ["--workers", 1, "--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off"]
    flags += ["--data-backend", "torch", "--opt", "muon", "--epochs", 1]
    return lambda output, *more: train(*flags, "--output-dir", output, *more)


@pytest.mark.slow
def test_a_run_starts_from_its_training_images_and_goes_on_as_it_was(runs, tmp_path, demo, monkeypatch):
    seen: list[Tensor] = []
    start = AirbenchNet.init_from_images

    def timer(network: AirbenchNet, images: Tensor) -> None:
        seen.append(images)
        start(network, images)

    monkeypatch.setattr(AirbenchNet, "init_from_images", timer)
    assert runs("whole", "--epochs", 2) == 0
    (images,) = seen
    assert images.shape == (len(list((demo / "train").rglob("*.jpg"))), 3, 16, 16)
    expected = airbench_small(10)
    start(expected, images)
    whole = checkpoint.load(tmp_path / "whole/last.pt")["model"]
    torch.testing.assert_close(whole["whiten.weight"], expected.whiten.weight.detach())

    assert runs("parts", "--epochs", 2, "--sched", "constant", "--warmup-epochs", 0) == 0
    assert len(seen) == 2
    assert runs("half", "--epochs", 1, "--sched", "constant", "--warmup-epochs", 0) == 0
    assert runs("half", "--epochs", 2, "--resume", "half/last.pt") == 0
    assert len(seen) == 3, "a run that goes on has its filters"
    parts, half = (checkpoint.load(tmp_path / name / "last.pt")["model"] for name in ("parts", "half"))
    assert all(torch.equal(parts[key], half[key]) for key in parts)

    assert runs("other", "--weights", "parts/best.pt") == 0
    assert len(seen) == 3, "weights bring their filters"
    assert torch.equal(whitening(tmp_path / "other/last.pt"), parts["whiten.weight"])


def test_a_backbone_starts_from_images_and_every_rank_gets_what_the_first_one_found(monkeypatch):
    network = build("unet/airbench_small", 3)
    config = Config(arch="unet/airbench_small", img_size=8, in_chans=3, crop_padding=1, hflip=0.5, workers=1)
    config = dataclasses.replace(config, scale=(0.5, 1.0), train_crop="pad", crop_mode="center")
    source = Source(name="test", train=split_of(), val=split_of(), class_names=("a", "b"))
    transform = transforms.transform_of(config, source, ())
    before = network.get_parameter("backbone.whiten.weight").clone()
    setup_network.initialize_from_images(network, config, source, transform)
    found = network.get_parameter("backbone.whiten.weight").detach().clone()
    assert not torch.equal(found, before)

    def another(compute: Any) -> dict[str, Tensor]:
        return {key: value + 1 for key, value in compute().items()}

    monkeypatch.setattr(setup_network, "from_main", another)
    setup_network.initialize_from_images(network, config, source, transform)
    torch.testing.assert_close(network.get_parameter("backbone.whiten.weight").detach(), found + 1)


def test_synthetic_data_shows_a_network_nothing(train, monkeypatch):
    monkeypatch.setattr(AirbenchNet, "init_from_images", lambda *_: pytest.fail("there are no images"))
    flags = ["--arch", "airbench_small", "--data", "synthetic", "--img-size", 16, "--batch-size", 16]
    flags += ["--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off"]
    assert train(*flags, "--epochs", 0.02, "--output-dir", "run") == 0


@pytest.mark.slow
def test_compiled_in_bf16_its_gradients_are_the_eager_ones():
    network = small().to(memory_format=torch.channels_last).train()
    images, targets = smooth_images(), torch.arange(20) % 10
    found = []
    for run in (network, torch.compile(network, dynamic=False)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(run(images), targets)
        network.zero_grad()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()  # NaN is not
