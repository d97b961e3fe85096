"""Measurement of a row of `bench_kernels.py`: tensors, check against a wider dtype, clocks, ceilings."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from comparison import time_in_turn
from fastcnn.bench import timing
from fastcnn_kernels import dispatch
from fastcnn_kernels.layers import Depthwise, Norm
from kernel_sides import Run, floor_bytes, out_size, sides_of

COPY_BYTES, MATRIX = 2**30, 8192
WARM_UP, HOST_CALLS, MOST_SETS = 3, 200, 64

Measure = Callable[[dict[str, list[Run]], int, torch.device], dict[str, list[float]]]


class Item(NamedTuple):
    """A row to measure."""

    what: Literal["ceilings", "device", "host"]
    layer: Depthwise | Norm | None = None
    step: str = ""
    batch: int = 0


def device_times(sides: dict[str, list[Run]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """GPU microseconds per call. The sides take turns; a turn makes all calls of a side."""
    names, host = list(sides), dict.fromkeys(sides, 0.0)
    # Results live until the side's next turn, so outputs do not fit the cache either.
    results: dict[str, list[Any]] = {name: [None] * len(calls) for name, calls in sides.items()}

    def turn(name: str) -> None:
        for i, call in enumerate(sides[name]):
            results[name][i] = call()

    for _ in range(WARM_UP):  # compiles, chooses cuDNN's algorithm, allocates
        for name in names:
            start = time.perf_counter()
            turn(name)
            host[name] = time.perf_counter() - start
            torch.cuda.synchronize(device)
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        marks = []
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            # Stall the GPU, at about 2 GHz, until the turn is queued, so that the host's time does not count.
            torch.cuda._sleep(int(2 * host[name] * 2e9))
            begin.record()
            turn(name)
            end.record()
            marks.append((name, begin, end))
        torch.cuda.synchronize(device)
        for name, begin, end in marks:
            times[name].append(1000 * begin.elapsed_time(end) / len(sides[name]))
    return times


def host_times(sides: dict[str, list[Run]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Host microseconds per call, with inputs so small that the GPU waits for the host."""
    first = {name: calls[0] for name, calls in sides.items()}
    seconds = time_in_turn(first, device, rounds=rounds, warmup=WARM_UP, calls=HOST_CALLS)
    return {name: [1e6 * value for value in values] for name, values in seconds.items()}


def random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 1) -> Tensor:
    """Normal random numbers in channels-last memory."""
    batch, channels, height, width = shape
    numbers = torch.randn(batch, height, width, channels, dtype=dtype, device=device)
    return numbers.mul_(scale).permute(0, 3, 1, 2)


def ceilings(device: torch.device, rounds: int, measure: Measure) -> dict[str, Any]:
    """Rates of a large copy and of large matrix products."""

    def copy() -> Run:
        source = torch.randn(COPY_BYTES // 2, dtype=torch.bfloat16, device=device)
        return partial(torch.empty_like(source).copy_, source)

    def product(dtype: torch.dtype) -> Run:
        return partial(torch.mm, *torch.randn(2, MATRIX, MATRIX, dtype=dtype, device=device))

    prepared: dict[str, tuple[Callable[[], Run], int]] = {
        # A function that returns the call, and the call's bytes or FLOPs.
        "copy": (copy, 2 * COPY_BYTES),
        "bf16 product": (partial(product, torch.bfloat16), 2 * MATRIX**3),
        "fp32 product": (partial(product, torch.float32), 2 * MATRIX**3),
    }
    found: dict[str, Any] = {}
    for name, (prepare, work) in prepared.items():
        try:
            time = timing.summary(measure({name: [prepare()]}, rounds, device)[name])
        except Exception as error:  # rows are still useful without it
            found[name] = {"failed": trouble(error)}
        else:
            found[name] = {"microseconds": time, "work": work, "per_second": 1e6 * work / time["median"]}
    return found


def trouble(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def difference(found: Any, exact: Any, dtype: torch.dtype) -> str | None:
    """Describe the error of a result, or of a tuple of results; None if it is within bounds."""
    pairs = zip(found, exact) if isinstance(exact, tuple) else [(found, exact)]
    for result, expected in pairs:
        if result.shape != expected.shape:
            return f"a result of {tuple(result.shape)}, not {tuple(expected.shape)}"
        error = (result.to(expected.dtype) - expected).abs_()
        deviation = expected.square().mean().sqrt()
        # Tolerance: a rounding of the dtype, and the error of long float32 sums.
        off = ~(error <= torch.finfo(dtype).eps * expected.abs() + 1e-3 * deviation)  # NaN is off
        if count := int(off.sum()):
            worst = float(error.max() / deviation)
            return f"{count:,} of {off.numel():,} values are off, by {worst:.2g} deviations at most"
    return None


def measure_row(
    item: Item,
    device: torch.device,
    measure: Measure,
    *,
    dtype: torch.dtype,
    rounds: int,
    copy_speed: float | None = None,
) -> dict[str, Any]:
    """Measure a row: seconds of our first call, then its error, or the times of each side and their ratios.

    Args:
        copy_speed: bytes per second of a large copy.
    """
    layer = item.layer
    assert layer is not None
    shape, size = (item.batch, layer.channels, layer.size, layer.size), out_size(layer)
    out_shape = (*shape[:2], size, size)
    kernel = layer.kernel if isinstance(layer, Depthwise) else 1
    # Normalization needs large inputs to have an effect: alpha times their squares is about 1.
    scale = 100 if isinstance(layer, Norm) else 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    least = math.prod(out_shape) * dtype.itemsize
    sets = 1 if item.what == "host" else min(MOST_SETS, max(2, math.ceil(4 * cache / least)))
    tensors = [(random(shape, dtype, device, scale), random(out_shape, dtype, device)) for _ in range(sets)]
    # Rounded to the dtype, so that both sides read the same numbers.
    weight = torch.randn(layer.channels, 1, kernel, kernel, device=device).to(dtype).float()
    sides = sides_of(layer, item.step, weight)

    # Check our first call against a wider dtype.
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    with torch.backends.cudnn.flags(enabled=False):  # another implementation, and no TF32
        exact = sides["eager"](*(tensor.to(wide) for tensor in tensors[0]))()
    timing.wait_for(device)
    start = time.perf_counter()
    found = sides["ours"](*tensors[0])()
    timing.wait_for(device)
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {"first_call_seconds": seconds}
    if wrong := difference(found, exact, dtype):
        return {**row, "wrong": wrong}
    del found, exact

    # Time the sides in turn.
    calls = {name: [side(*pair) for pair in tensors] for name, side in sides.items()}
    times = measure(calls, rounds, device)
    row["microseconds"] = {name: timing.summary(values) for name, values in times.items()}
    row["ratios"] = {
        name: timing.summary(timing.ratios(values, times["ours"]))
        for name, values in times.items()
        if name != "ours"
    }
    if item.what == "device":
        row["bytes"] = floor_bytes(layer, item.step, item.batch, dtype.itemsize)
        if copy_speed is not None:
            row["share_of_copy"] = {
                name: 1e6 * row["bytes"] / values["median"] / copy_speed
                for name, values in row["microseconds"].items()
            }
    return row


@contextlib.contextmanager
def triton_only(*, compile_anew: bool) -> Iterator[None]:
    """Let our operations run on Triton or fail, whatever the dispatch table contains."""
    with (
        warnings.catch_warnings(),
        mock.patch.object(dispatch, "wins", return_value=True),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": folder} if compile_anew else {}),
    ):
        warnings.filterwarnings("error", message="fastcnn_kernels")
        yield
