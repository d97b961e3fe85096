"""Single layers of well-known networks, forward and backward: layouts, dtypes, the compiler and our kernels.

    python -m pytest benchmarks/bench_layers.py
    python -m pytest benchmarks/bench_layers.py -k "vgg16 and conv" --quick

Sides, eager except where noted, on tensors that are already on the device:
  fp32 NCHW             PyTorch's default
  fp32 channels-last
  bf16 channels-last    autocast: input and upstream gradient in bf16, weights in fp32, cast in each call
  compiled              bf16 channels-last with torch.compile; on a CPU fp32 channels-last
  fastcnn_kernels       its layer in bf16 channels-last, where it has one, as in a network

The sides take turns in one process. On a CPU the process keeps freed memory, as `fastcnn train` does:
otherwise the time is dominated by the operating system's clearing of pages.

A call computes the layer's output and the gradients of its input and weights; a network's first layer needs
no input gradient. Results are first compared with float64: the JSON file has the largest error relative to
the root mean square of the exact values. FLOPs are those of the forward pass by PyTorch's FlopCounterMode,
plus as many for each gradient, since it counts a depthwise convolution's weight gradient as that of a dense
one. Layers without products have none. Bytes are a lower bound: the forward and the backward pass read and
write each of their tensors once.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from comparison import Comparison, time_in_turn
from fastcnn.bench import timing
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm
from sizes import LAYERS, Layer

DEVICE = choose_device("auto", Ranks())
TURN_SECONDS, MOST_CALLS = 0.02, 50
CALL_LIMIT = 120.0
"""Time limit in seconds of a side's first call, with compilation; a slower side is left out."""
CHECKED = 8
"""Images whose results are compared with float64's."""


class Way(NamedTuple):
    """Dtype, layout, compilation and implementation of a side."""

    dtype: torch.dtype
    channels_last: bool = True
    compiled: bool = False
    ours: bool = False


BASELINE, COMPILED, OURS = "fp32 NCHW", "compiled", "fastcnn_kernels"
WAYS = {
    BASELINE: Way(torch.float32, channels_last=False),
    "fp32 channels-last": Way(torch.float32),
    "bf16 channels-last": Way(torch.bfloat16),
    COMPILED: Way(torch.bfloat16 if DEVICE.type == "cuda" else torch.float32, compiled=True),
    OURS: Way(torch.bfloat16, ours=True),
}


def why_left_out(row: Layer, side: str, device: torch.device, *, quick: bool) -> str | None:
    """Reason for not measuring a side; None if it is measured."""
    if WAYS[side].dtype == torch.bfloat16 and not machine.is_native("bf16", device):
        return machine.NO_BF16
    if side == COMPILED and quick:
        return "nothing is compiled with --quick"
    if side == OURS and row.kind not in ("depthwise", "lrn"):
        return f"fastcnn_kernels has no layer for {row.kind}"
    if side == OURS and device.type != "cuda" and row.kind != "depthwise":
        return "without a CUDA GPU fastcnn_kernels runs PyTorch's own implementation"
    return None


def build(row: Layer, *, ours: bool) -> nn.Module:
    """Build the layer, with the same random weights each time."""
    torch.manual_seed(0)
    if row.kind in ("conv", "depthwise"):
        geometry: dict[str, Any] = {"stride": row.stride, "padding": row.padding, "bias": False}
        if ours:
            return DepthwiseConv2d(row.channels, row.kernel, **geometry)
        groups = row.channels if row.kind == "depthwise" else 1
        return nn.Conv2d(row.channels, row.out_channels, row.kernel, groups=groups, **geometry)
    if row.kind == "norm-relu":
        return nn.Sequential(nn.BatchNorm2d(row.channels), nn.ReLU(inplace=True))
    if row.kind == "lrn":
        return (LocalResponseNorm if ours else nn.LocalResponseNorm)(row.kernel)
    if row.kind == "pool":
        return nn.MaxPool2d(row.kernel, row.stride, row.padding)
    return nn.Linear(row.channels, row.out_channels)


def tensors(row: Layer, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Input and upstream gradient in float32, rounded to bf16 so that all sides read the same numbers."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = (
        shape_of(row, batch_size, row.channels, row.size),
        shape_of(row, batch_size, row.out_channels, out_side(row)),
    )
    # Local response normalization needs large inputs to have an effect: alpha times their squares is about 1.
    scale = 100 if row.kind == "lrn" else 1
    x, dy = (torch.randn(shape, generator=generator, device=device) for shape in shapes)
    return (scale * x).bfloat16().float(), dy.bfloat16().float()


def shape_of(row: Layer, batch_size: int, channels: int, side: int) -> tuple[int, ...]:
    return (batch_size, channels) if row.kind == "linear" else (batch_size, channels, side, side)


def out_side(row: Layer) -> int:
    return row.size if row.kind == "lrn" else row.out_size


def call_of(
    row: Layer, layer: nn.Module, x: Tensor, dy: Tensor, way: Way
) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call that computes the output and the gradients of input and weights."""
    layer = layer.to(x.device, torch.float64 if way.dtype == torch.float64 else torch.float32).train()
    x, dy = (t.to(way.dtype) for t in (x, dy))
    if x.ndim == 4 and way.channels_last:
        layer = layer.to(memory_format=torch.channels_last)
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    run = torch.compile(layer, fullgraph=True, dynamic=False) if way.compiled else layer
    wanted = [*([] if row.first else [x.requires_grad_()]), *layer.parameters()]

    def autocast() -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=way.dtype == torch.bfloat16)

    with torch.no_grad(), autocast():
        dy = dy.to(layer(x).dtype)  # float32 if autocast does not cast the operator

    def call() -> tuple[Tensor, ...]:
        with autocast():
            y = run(x)
        return y.detach(), *torch.autograd.grad(y, wanted, dy)

    return call


def differences(row: Layer, found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    """Largest errors of output and input gradient, relative to the root mean square of the exact values."""
    names = ["output"] if row.first else ["output", "input_grad"]
    return {
        f"{name}_off": float((a.double() - b).abs().max() / b.square().mean().sqrt())
        for name, a, b in zip(names, found, exact)
    }


def operations(row: Layer) -> int:
    """FLOPs of forward and backward; a multiply-add counts as two."""
    layer = build(row, ours=False).to("meta")
    shape = shape_of(row, row.batch_size, row.channels, row.size)
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(shape, device="meta"))
    return counter.get_total_flops() * (2 if row.first else 3)


def least_bytes(row: Layer, itemsize: int) -> int:
    """Lower bound of the bytes moved by forward and backward.

    Forward moves input, weights and output; backward the output's gradient, input and weights again, and the
    gradients of both. Weights and their gradients are float32. Max pooling does not read its input again, and
    its saved positions are not counted.
    """
    x = row.batch_size * row.channels * row.size**2
    y = row.batch_size * row.out_channels * out_side(row) ** 2
    weights = sum(p.numel() for p in build(row, ours=False).parameters())
    again = 0 if row.kind == "pool" else x
    return itemsize * (x + y + y + again + (0 if row.first else x)) + 4 * 3 * weights


def calls_in_a_turn(call: Callable[[], Any], device: torch.device) -> int:
    """Number of calls that take `TURN_SECONDS`, so that short disturbances average out."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        timing.wait_for(device)
        seconds.append(time.perf_counter() - start)
    return min(MOST_CALLS, max(1, math.ceil(TURN_SECONDS / min(seconds))))


def rates(row: Layer, way: Way, seconds: float) -> dict[str, Any]:
    """Dtype, layout, and the rates of a side by its seconds per call."""
    moved = least_bytes(row, way.dtype.itemsize)
    return {
        "dtype": str(way.dtype).removeprefix("torch."),
        "layout": "channels-last" if way.channels_last else "NCHW",
        "bytes": moved,
        "gflop_per_second": operations(row) / seconds / 1e9,
        "gb_per_second": moved / seconds / 1e9,
    }


@functools.cache
def measure(row: Layer, *, quick: bool) -> Comparison:
    torch.set_num_threads(machine.cores_per_process(Ranks()))
    torch.backends.cudnn.benchmark = True
    torch._dynamo.reset()  # else the ninth layer exceeds the recompilation limit
    if quick:
        row = row._replace(batch_size=2)
    reasons = {side: why_left_out(row, side, DEVICE, quick=quick) for side in WAYS}
    ways = {side: way for side, way in WAYS.items() if reasons[side] is None}

    def prepare(batch_size: int) -> dict[str, Callable[[], Any]]:
        x, dy = tensors(row, batch_size, DEVICE)
        return {side: call_of(row, build(row, ours=way.ours), x, dy, way) for side, way in ways.items()}

    # Check each side against float64 on a few images; this also compiles them.
    few = min(CHECKED, row.batch_size)
    calls = prepare(few)
    in_float64 = Way(torch.float64, channels_last=False)
    exact = call_of(row, build(row, ours=False), *tensors(row, few, DEVICE), in_float64)()
    sides: dict[str, dict[str, Any]] = {}
    for side, call in calls.items():
        start = time.perf_counter()
        found = call()
        taken = time.perf_counter() - start
        if taken > CALL_LIMIT and side != BASELINE:
            reasons[side] = f"a call of {few} images took {taken:.0f} s"
            del ways[side]
        else:
            sides[side] = differences(row, found, exact)
    del exact

    # Time the sides in turn.
    calls = {side: call for side, call in calls.items() if side in ways}
    if few < row.batch_size:
        calls = prepare(row.batch_size)
    in_a_turn = calls_in_a_turn(calls[BASELINE], DEVICE)
    rounds = 3 if quick else 15
    warmup = 1 if quick else 3
    seconds = time_in_turn(calls, DEVICE, rounds=rounds, warmup=warmup, calls=in_a_turn)
    for side, way in ways.items():
        sides[side] |= rates(row, way, statistics.median(seconds[side]))
    return Comparison(
        what=f"layer-{row}",
        baseline=BASELINE,
        seconds=seconds,
        device=DEVICE,
        work=row.batch_size,
        settings={
            **row._asdict(),
            "flops": operations(row),
            "warm_up": warmup,
            "calls": in_a_turn,
            "tf32": torch.backends.cudnn.allow_tf32 and DEVICE.type == "cuda",
        },
        sides=sides,
        left_out={side: reason for side, reason in reasons.items() if reason is not None},
    )


@pytest.mark.parametrize("side", WAYS)
@pytest.mark.parametrize("row", LAYERS["cuda" if DEVICE.type == "cuda" else "cpu"], ids=str)
def test_layer(row, side, quick, save, play):
    if DEVICE.type == "cpu":
        machine.keep_freed_memory()
    comparison = measure(row, quick=quick)
    save(comparison)
    play(comparison, side)
