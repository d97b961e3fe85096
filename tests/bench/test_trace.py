"""fastcnn/bench/trace.py: whose time is whose, and what it could be at least."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcnn.bench import roofline, trace
from fastcnn.bench.trace import Cost

RATES = 1e9, {"float32": 1e12, "bfloat16": 4e12}


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 8, 5, stride=2, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.linear = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.dilated(self.strided(x)).relu())
        x = self.linear(x.mean((2, 3)))
        return (
            torch.bmm(x[:, :, None], x[:, None]).sum()
            + torch.baddbmm(x[:, None, :1], x[:, None], x[:, :, None]).sum()
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_traced_step_has_the_operations_that_are_counted(dtype):
    network, x = Everything(), torch.randn(2, 3, 17, 16)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = network(x)
        loss.float().backward()
        network.zero_grad()

    costs = trace.measure(step)
    counted = roofline.count(step)
    assert sum(cost.calls * cost.flops for cost in costs) == sum(o.flops for o in counted)
    moved = sum(cost.calls * cost.bytes for cost in costs)
    assert moved == pytest.approx(sum(o.bytes for o in counted), rel=0.06)
    assert moved <= sum(o.bytes for o in counted)  # what a gradient does not need is not read
    assert {cost.dtype for cost in costs if cost.flops} == {dtype}
    assert costs == sorted(costs, key=lambda cost: -cost.seconds)
    assert all(cost.seconds >= 0 for cost in costs)


def test_what_happens_within_a_convolution_is_the_convolution_s():
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3)
    costs = trace.measure(lambda: [F.conv2d(x, weight).relu() for _ in range(3)])
    names = [cost.name for cost in costs]
    assert {"convolution", "relu"} <= set(names)
    assert not {"_convolution", "mkldnn_convolution", "thnn_conv2d"} & set(names)
    (convolution,) = (cost for cost in costs if cost.name == "convolution")
    assert convolution.calls == 3
    assert convolution.shapes == "2x4x9x9 6x4x3x3 float32"
    assert convolution.flops == 2 * 2 * 6 * 49 * 36
    assert convolution.bytes == 4 * (2 * 4 * 81 + 6 * 36 + 2 * 6 * 49)


def operation(
    name: str, id: int, begin: float, end: float, *shapes: list[int], kind: str = "c10::BFloat16"
) -> Any:
    args = {"External id": id, "Input Dims": list(shapes), "Input type": [kind] * len(shapes)}
    return {"ph": "X", "cat": "cpu_op", "name": name, "tid": 1, "ts": begin, "dur": end - begin, "args": args}


def kernel(name: str, id: int | None, microseconds: float) -> Any:
    args = {} if id is None else {"External id": id}
    return {"ph": "X", "cat": "kernel", "name": name, "tid": 7, "ts": 0.0, "dur": microseconds, "args": args}


def test_on_a_gpu_kernels_are_costs_of_what_launched_them():
    x, weight, output = [8, 16, 4, 4], [32, 16, 1, 1], [8, 32, 4, 4]
    backward = operation("aten::convolution_backward", 1, 0, 100, output, x, weight)
    backward["args"]["Concrete Inputs"] = [
        "",
        "",
        "",
        "[0]",
        "[1, 1]",
        "[0, 0]",
        "[1, 1]",
        "False",
        "[0, 0]",
        "1",
    ]
    backward["args"]["Concrete Inputs"] += ["[True, True, False]"]
    found = trace.read(
        [
            {"ph": "M", "name": "process_name"},
            {"ph": "X", "cat": "user_annotation", "name": "Optimizer.step", "tid": 1, "ts": 0, "dur": 500},
            operation("CompiledFunctionBackward", 5, -10, 300),
            backward,
            operation("aten::cudnn_convolution_backward", 2, 10, 90, output, x, weight),
            operation("triton_red_fused_native_batch_norm_0", 3, 110, 120, x, [16], kind="float"),
            operation("aten::zeros", 4, 130, 140),
            kernel("dgrad", 2, 30.0),
            kernel("wgrad", 2, 50.0),
            kernel("triton_red_fused_native_batch_norm_0", 3, 15.0),
            kernel("nccl", None, 4.0),
        ],
        steps=2,
    )
    assert [(cost.name, cost.calls, cost.seconds) for cost in found] == [
        ("convolution_backward", 0.5, pytest.approx(40e-6)),
        ("triton_red_fused_native_batch_norm_0", 0.5, pytest.approx(7.5e-6)),
        ("nccl", 0.5, pytest.approx(2e-6)),
    ]
    convolution, norm, other = found
    assert convolution.flops == 2 * 2 * 8 * 32 * 16 * 16
    assert convolution.bytes == 2 * (8 * 32 * 16 + 2 * (8 * 16 * 16 + 32 * 16))
    assert (norm.flops, norm.bytes, norm.shapes) == (0, 4 * (8 * 16 * 16 + 16), "8x16x4x4 16 float32")
    assert other.floor(*RATES) is None


def test_the_floor_is_the_longer_of_computing_and_moving():
    def floor(name: str, calls: float, flops: int, bytes: int, dtype: str) -> float | None:
        work = {"flops": flops, "bytes": bytes}
        return Cost(name=name, shapes="", calls=calls, seconds=1.0, dtype=dtype, **work).floor(*RATES)

    assert floor("mm", 3, 2 * 10**12, 10**9, "float32") == 3 * 2
    assert floor("mm", 3, 2 * 10**12, 10**9, "float16") == 3 * 1
    assert floor("triton_poi", 2, 0, 5 * 10**8, "uint8") == 2 * 0.5


def test_operations_of_two_threads_do_not_nest():
    other = operation("aten::relu", 2, 10, 60, [4])
    other["tid"] = 2
    costs = trace.read([operation("aten::mul", 1, 0, 100, [4]), other], steps=1)
    assert {cost.name: cost.seconds for cost in costs} == {
        "mul": pytest.approx(100e-6),
        "relu": pytest.approx(50e-6),
    }
