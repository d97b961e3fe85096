"""fastcnn/bench/training_steps.py: every switch computes what eager PyTorch computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcnn.bench.training_steps import (
    Optimizations,
    Workload,
    build_own_step,
    build_step,
    four_channels,
    pointwise_as_product,
    without_kernels,
)
from fastcnn.models import build
from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm
from tape import TapeRecorder

SMALL = Workload("resnet20", 16, 4, "cpu")


def losses(step, count: int = 4) -> list[float]:
    return [float(step()) for _ in range(count)]


@pytest.fixture(scope="module")
def eager() -> list[float]:
    return losses(build_step(SMALL, Optimizations()))


def test_the_loss_falls_so_the_step_trains(eager):
    assert eager[-1] < eager[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"channels_last": True}, 5e-4),
        ({"fused": True}, 1e-4),
        ({"keep_memory": True}, 1e-6),
        ({"pointwise_as_product": True}, 1e-4),
        ({"four_channels": True}, 1e-4),
        ({"kernels": "ours"}, 1e-4),
        ({"kernels": "accelerate"}, 1e-4),
        ({"bf16": True}, 2e-2),
        ({"bf16": True, "bf16_weights": True}, 2e-2),
        ({"channels_last": True, "fused": True, "four_channels": True, "pointwise_as_product": True}, 5e-4),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_switch_changes_the_speed_not_the_losses(eager, changes, error):
    assert losses(build_step(SMALL, Optimizations(**changes))) == pytest.approx(eager, rel=error, abs=0)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["model", "step"])
def test_compiled_steps_have_the_losses_of_eager_ones(eager, way):
    compiled = build_step(SMALL, Optimizations(compile=way, channels_last=True, fused=True))
    assert losses(compiled) == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"fused": True}, {"bf16": True, "bf16_weights": True}])
def test_a_recorded_step_begins_where_the_step_does(changes, monkeypatch):
    usual = losses(build_step(SMALL, Optimizations(**changes)))
    monkeypatch.setattr("fastcnn.bench.training_steps.CudaRecorder", lambda device: TapeRecorder())
    assert losses(build_step(SMALL, Optimizations(cuda_graph=True, **changes))) == pytest.approx(
        usual, rel=1e-2
    )


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"compile": "step", "bf16": True, "bf16_weights": True}])
def test_a_recorded_step_has_the_losses_of_the_step(changes):
    problem = Workload("resnet20", 16, 4, "cuda")
    usual = losses(build_step(problem, Optimizations(fused=True, **changes)))
    recorded = losses(build_step(problem, Optimizations(fused=True, cuda_graph=True, **changes)))
    assert recorded == pytest.approx(usual, rel=2e-2)


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_fastcnn_s_own_step_starts_from_the_same_loss(eager, dtype, error):
    own = losses(build_own_step(SMALL, dtype, channels_last=True, compile=False))
    assert own[0] == pytest.approx(eager[0], rel=error)
    assert own[-1] < own[0]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_is_a_product(stride):
    convolution = nn.Conv2d(5, 7, 1, stride=stride)
    x = torch.randn(2, 5, 9, 8)
    expected = convolution(x)
    pointwise_as_product(convolution)
    assert type(convolution) is not nn.Conv2d
    torch.testing.assert_close(convolution(x), expected)


def test_other_convolutions_stay_convolutions():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, groups=2))
    pointwise_as_product(network)
    assert all(type(layer) is nn.Conv2d for layer in network)


def test_the_fourth_channel_is_zero_and_changes_nothing():
    network = nn.Sequential(nn.Conv2d(3, 6, 3))
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = network(images)
    padded = four_channels(network, images)
    assert padded.shape == (2, 4, 8, 8)
    assert padded.is_contiguous(memory_format=torch.channels_last)
    assert not padded[:, 3].any()
    torch.testing.assert_close(network(padded), expected)


@pytest.mark.slow
def test_eager_networks_have_none_of_our_layers():
    for name in ("mobilenet_v2", "alexnet"):
        network = build(name, num_classes=10)
        assert any(isinstance(m, (DepthwiseConv2d, LocalResponseNorm)) for m in network.modules())
        images = torch.randn(1, 3, 224, 224)
        network.eval()
        with torch.no_grad():
            expected = network(images)
            without_kernels(network)
            assert not any(isinstance(m, (DepthwiseConv2d, LocalResponseNorm)) for m in network.modules())
            torch.testing.assert_close(network(images), expected)


def test_the_masters_take_the_gradients_and_give_the_weights():
    step = build_step(SMALL, Optimizations(bf16=True, bf16_weights=True))
    weights = [w for w in step_weights(step) if w.dtype == torch.bfloat16]
    before = [w.clone() for w in weights]
    step()
    assert weights
    assert any(not torch.equal(a, b) for a, b in zip(before, weights))


def step_weights(step) -> list[torch.Tensor]:
    """The parameters of the network that a step trains, out of its closures."""
    seen: list[object] = [step]
    found: list[torch.Tensor] = []
    for item in seen:
        for cell in getattr(item, "__closure__", None) or ():
            value = cell.cell_contents
            if isinstance(value, nn.Module):
                found += list(value.parameters())
            elif callable(value) and value not in seen:
                seen.append(value)
    return found


def test_cross_entropy_is_over_as_many_classes_as_imagenet_has(eager):
    assert eager[0] == pytest.approx(
        float(F.cross_entropy(torch.zeros(1, 1000), torch.zeros(1).long())), rel=0.3
    )
