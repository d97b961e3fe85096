"""fastcnn/engine/state.py: what a network is compiled with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcnn.engine import state
from fastcnn.engine.state import StepOptions, build_state, compiler_options
from fastcnn.optim.schedules import Schedule

FORCED = {"force_layout_optimization": True}
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("version", "device", "channels_last", "expected"),
    [
        ("2.14.1+cu130", CUDA, False, FORCED),
        ("2.13.0", CUDA, False, FORCED),
        ("2.12.1+cu130", CUDA, False, None),
        ("2.14.1+cu130", CUDA, True, None),
        ("2.14.1+cpu", CPU, False, None),
    ],
)
def test_the_layout_is_forced_for_nchw_networks_on_cuda_where_torch_loses_it(
    monkeypatch, version, device, channels_last, expected
):
    monkeypatch.setattr(torch, "__version__", version)
    assert compiler_options(device, channels_last=channels_last) == expected


def test_a_torch_without_the_option_is_not_given_it(monkeypatch):
    from torch._inductor import config

    class Other:
        """A configuration without the option."""

    monkeypatch.setattr(torch, "__version__", "2.15.0")
    monkeypatch.setattr(torch._inductor, "config", Other)
    assert compiler_options(CUDA, channels_last=False) is None
    assert hasattr(config, "force_layout_optimization")


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_is_compiled_with_the_options_of_its_layout(monkeypatch, channels_last):
    given: list[Any] = []

    def compile(model: nn.Module, *, dynamic: bool, options: Any) -> nn.Module:
        given.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(state, "compiler_options", lambda device, channels_last: (device, channels_last))
    network = nn.Conv2d(3, 4, 3)
    schedule = Schedule(peak=0.1, steps_per_epoch=10, epochs=1, kind="constant")
    options = StepOptions(compile=True, channels_last=channels_last)
    optimizer = torch.optim.SGD(network.parameters())
    build_state(network, optimizer, schedule, options, mean=[0.5] * 3, std=[0.5] * 3)
    assert given == [(CPU, channels_last)]


def test_forced_a_backward_graph_is_converted_too():
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    def backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        geometry = [1, 1], [1, 1], [1, 1]
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, *geometry, False, [0, 0], 1, [True, True, False]
        )

    graph = torch.fx.symbolic_trace(backward)
    with config.patch(FORCED):
        assert GraphLowering.decide_layout_opt(graph, is_inference=False)
