"""The kernels of `fastcnn_kernels` against eager and compiled PyTorch, layer by layer, and against a copy.

    python benchmarks/bench_kernels.py
    python benchmarks/bench_kernels.py --networks mobilenet_v2 --batch-size 256 32 --minutes 8
    python benchmarks/bench_kernels.py --markdown benchmarks/results/GPU/kernels-bf16-batch256.json

Rows, on random channels-last tensors, without bias:
  forward, input_grad, weight_grad, backward    one pass: our operation on Triton, and what eager calls
  layer forward, layer training    the whole layer, torch.compile's too; training is forward and backward
Eager PyTorch (cuDNN, cudnn.benchmark on) reads the weight in the input's dtype, ours in float32. Sides take
turns; a turn is one call on each of several inputs that together do not fit the L2 cache, timed by the GPU
while the host is ahead. A result is first compared with eager PyTorch's in a wider dtype: a wrong one gets no
time. Last come the host's times to launch, on tiny inputs.

Bytes are the least a pass must move, each tensor once, and the share is that of a large copy's bandwidth.
Writes JSON to benchmarks/results/MACHINE/, after every row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import kernel_tables as tables
import torch
import tyro
from kernel_sides import PASSES, WHOLE, Run, floor_bytes, out_size, sides_of
from torch import Tensor

from fastcnn import bench
from fastcnn_kernels import dispatch
from fastcnn_kernels._support import why_not_triton
from fastcnn_kernels.layers import NETWORKS, Depthwise, Norm

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COPY_BYTES, MATRIX = 2**30, 8192
WARM_UP, HOST_CALLS, MOST_SETS = 3, 200, 64

Measure = Callable[[dict[str, list[Run]], int, torch.device], dict[str, list[float]]]


@dataclass(frozen=True)
class Settings:
    networks: tuple[str, ...] = ("mobilenet_v2", "efficientnet_b0", "convnext_tiny", "alexnet", "googlenet")
    batch_size: tuple[int, ...] = (256,)
    """Of all but the first only the passes are measured, not the whole layers."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    rounds: int = 20
    """Timed turns of each side."""
    minutes: float | None = None
    """Begin no row after so many; the most important ones come first."""
    compile_times: bool = False
    """Compile our kernels anew and note the seconds of each one's first call."""
    write_dispatch: bool = False
    """Write the times to the package's table of this GPU, which chooses between Triton and PyTorch."""
    output: str | None = None
    """JSON file; by default under benchmarks/results/."""
    markdown: str | None = None
    """Measure nothing: print the tables of this JSON file for the README."""


class Item(NamedTuple):
    """A row to measure."""

    what: Literal["ceilings", "device", "host"]
    layer: Depthwise | Norm | None = None
    step: str = ""
    batch: int = 0


# What is measured, in what order


def layers_of(networks: tuple[str, ...]) -> dict[Depthwise | Norm, dict[str, int]]:
    """Each distinct layer, and how many of them each network has; convolutions first."""
    found: dict[Depthwise | Norm, dict[str, int]] = {}
    for name in networks:
        for layer in NETWORKS[name]:
            found.setdefault(dataclasses.replace(layer, count=1), {})[name] = layer.count
    return dict(sorted(found.items(), key=lambda entry: isinstance(entry[0], Norm)))


def plan(settings: Settings) -> list[Item]:
    layers = layers_of(settings.networks)
    first, *others = dict.fromkeys(settings.batch_size)
    tiny = {type(layer): dataclasses.replace(layer, channels=32, size=14) for layer in reversed(layers)}
    return [
        Item("ceilings"),
        *(Item("device", layer, step, first) for layer in layers for step in PASSES[type(layer)]),
        *(Item("device", layer, step, first) for layer in layers for step in WHOLE),
        *(Item("device", layer, step, n) for n in others for layer in layers for step in PASSES[type(layer)]),
        *(Item("host", layer, step, 2) for layer in tiny.values() for step in (*PASSES[type(layer)], *WHOLE)),
    ]


# Measuring


def device_times(sides: dict[str, list[Run]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Microseconds of the GPU for each call: the sides take turns, and a turn makes all calls of a side."""
    names, host = list(sides), dict.fromkeys(sides, 0.0)
    # Results live until the side's next turn, so that outputs do not fit the cache either.
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
            # The GPU waits until the turn is queued, at about 2 GHz, so that the host's time does not count.
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
    """Microseconds of the host for each call, of inputs so small that the GPU waits for it."""
    first = {name: calls[0] for name, calls in sides.items()}
    seconds = bench.time_in_turn(first, rounds, WARM_UP, device, HOST_CALLS)
    return {name: [1e6 * value for value in values] for name, values in seconds.items()}


def random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 1) -> Tensor:
    """In channels-last memory."""
    batch, channels, height, width = shape
    numbers = torch.randn(batch, height, width, channels, dtype=dtype, device=device)
    return numbers.mul_(scale).permute(0, 3, 1, 2)


def ceilings(device: torch.device, rounds: int, measure: Measure) -> dict[str, Any]:
    def copy() -> Run:
        source = torch.randn(COPY_BYTES // 2, dtype=torch.bfloat16, device=device)
        return partial(torch.empty_like(source).copy_, source)

    def product(dtype: torch.dtype) -> Run:
        return partial(torch.mm, *torch.randn(2, MATRIX, MATRIX, dtype=dtype, device=device))

    prepared: dict[str, tuple[Callable[[], Run], int]] = {
        # What makes the call, and its bytes or operations.
        "copy": (copy, 2 * COPY_BYTES),
        "bf16 product": (partial(product, torch.bfloat16), 2 * MATRIX**3),
        "fp32 product": (partial(product, torch.float32), 2 * MATRIX**3),
    }
    found: dict[str, Any] = {}
    for name, (prepare, work) in prepared.items():
        try:
            time = bench.summary(measure({name: [prepare()]}, rounds, device)[name])
        except Exception as error:  # the rows are worth having without it
            found[name] = {"failed": trouble(error)}
        else:
            found[name] = {"microseconds": time, "work": work, "per_second": 1e6 * work / time["median"]}
    return found


def trouble(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def difference(found: Any, exact: Any, dtype: torch.dtype) -> str | None:
    """What is wrong with a result, or a tuple of them; None if nothing is."""
    pairs = zip(found, exact) if isinstance(exact, tuple) else [(found, exact)]
    for result, expected in pairs:
        if result.shape != expected.shape:
            return f"a result of {tuple(result.shape)}, not {tuple(expected.shape)}"
        error = (result.to(expected.dtype) - expected).abs_()
        deviation = expected.square().mean().sqrt()
        # A rounding of the dtype, and what long float32 sums lose.
        off = ~(error <= torch.finfo(dtype).eps * expected.abs() + 1e-3 * deviation)  # NaN is off
        if count := int(off.sum()):
            worst = float(error.max() / deviation)
            return f"{count:,} of {off.numel():,} values are off, by {worst:.2g} deviations at most"
    return None


def measure_row(
    item: Item, settings: Settings, device: torch.device, measure: Measure, copy_speed: float | None
) -> dict[str, Any]:
    """Seconds of the first call of ours, what is wrong with it or each side's times, and the ratios."""
    layer, dtype = item.layer, DTYPES[settings.dtype]
    assert layer is not None
    shape, size = (item.batch, layer.channels, layer.size, layer.size), out_size(layer)
    out_shape = (*shape[:2], size, size)
    kernel = layer.kernel if isinstance(layer, Depthwise) else 1
    # Of so large inputs the normalization shows: alpha times their squares is about 1.
    scale = 100 if isinstance(layer, Norm) else 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    least = math.prod(out_shape) * dtype.itemsize
    sets = 1 if item.what == "host" else min(MOST_SETS, max(2, math.ceil(4 * cache / least)))
    tensors = [(random(shape, dtype, device, scale), random(out_shape, dtype, device)) for _ in range(sets)]
    # Numbers that the dtype holds, so that both sides read the same.
    weight = torch.randn(layer.channels, 1, kernel, kernel, device=device).to(dtype).float()
    sides = sides_of(layer, item.step, weight)

    wide = torch.float64 if dtype == torch.float32 else torch.float32
    with torch.backends.cudnn.flags(enabled=False):  # another implementation, and no TF32
        exact = sides["eager"](*(tensor.to(wide) for tensor in tensors[0]))()
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    found = sides["ours"](*tensors[0])()
    wait()
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {"first_call_seconds": seconds} if settings.compile_times else {}
    if wrong := difference(found, exact, dtype):
        return {**row, "wrong": wrong}
    del found, exact

    calls = {name: [side(*pair) for pair in tensors] for name, side in sides.items()}
    times = measure(calls, settings.rounds, device)
    row["microseconds"] = {name: bench.summary(values) for name, values in times.items()}
    # Neighbouring turns see the same machine, so the ratio is taken round by round.
    row["ratios"] = {
        name: bench.summary([b / a for a, b in zip(times["ours"], values)])
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


def run(
    settings: Settings,
    device: torch.device,
    measure: Measure = device_times,
    measure_host: Measure = host_times,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Measures, prints and writes. Returns the exit status: 1 if a result was wrong or anything failed."""
    import triton

    start, items, layers = clock(), plan(settings), layers_of(settings.networks)
    name = f"kernels-{settings.dtype}-batch{'-'.join(map(str, settings.batch_size))}"
    path = bench.results_file(Path(__file__).parent, name, settings.output, device)
    rows: list[dict[str, Any]] = []
    host: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "what": "kernels",
        "environment": {**bench.environment(device), "triton": triton.__version__},
        "settings": vars(settings),
        "ceilings": {},
        "rows": rows,
        "host": host,
    }
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    for number, item in enumerate(items):
        if settings.minutes is not None and clock() - start > 60 * settings.minutes:
            print(
                f"{settings.minutes:g} minutes are over: {len(items) - number} of {len(items)} rows are left"
            )
            break
        if item.layer is None:
            report["ceilings"] = found = ceilings(device, settings.rounds, measure)
            print(", ".join(tables.ceiling(name, found) for name in found), tables.HEADER, sep="\n")
        else:
            row: dict[str, Any] = {
                "kind": "depthwise" if isinstance(item.layer, Depthwise) else "lrn",
                "networks": layers.get(item.layer, {}),
                "layer": {name: value for name, value in vars(item.layer).items() if name != "count"},
                "batch": item.batch,
                "dtype": settings.dtype,
                "pass": item.step,
            }
            how = measure_host if item.what == "host" else measure
            try:
                row |= measure_row(item, settings, device, how, report["ceilings"]["copy"].get("per_second"))
            except Exception as error:  # such as too little memory: the other rows are worth having
                row["failed"] = trouble(error)
            (host if item.what == "host" else rows).append(row)
            print(tables.line(row), flush=True)
        report["geometric_means"] = tables.geometric_means(rows)
        write(path, report)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print("\n".join(tables.means_lines(report["geometric_means"])))
    if settings.write_dispatch:
        print(write_dispatch(report))
    print(path)
    results = [*rows, *host, *report["ceilings"].values()]
    return 1 if any(word in result for result in results for word in tables.TROUBLE) else 0


def write(path: Path, content: dict[str, Any]) -> None:
    """At once, so that a run that is killed leaves what it had written before."""
    part = path.with_name(path.name + ".part")
    bench.write_json(part, content)
    os.replace(part, path)


def write_dispatch(report: dict[str, Any]) -> Path:
    """Adds the depthwise passes to the package's table of the GPU; returns its file."""
    gpu, dtype = report["environment"]["gpu"], DTYPES[report["settings"]["dtype"]]
    path = dispatch.SHIPPED / dispatch._file_name(gpu)
    known = dispatch._read(path)
    for layer, batches in tables.dispatch_times(report, str(dtype).removeprefix("torch.")).items():
        known[layer] = {**known.get(layer, {}), **batches}
    write(path, dispatch.table(gpu, known))
    return path


def check(settings: Settings) -> None:
    if settings.rounds < 3:
        raise SystemExit(f"--rounds {settings.rounds}: quartiles need 3 or more")
    if not settings.batch_size or min(settings.batch_size) < 1:
        raise SystemExit(f"--batch-size {' '.join(map(str, settings.batch_size))}: write numbers from 1 on")
    if settings.minutes is not None and settings.minutes <= 0:
        raise SystemExit(f"--minutes {settings.minutes:g}: write more than 0, or leave it out")
    if unknown := [name for name in settings.networks if name not in NETWORKS]:
        raise SystemExit(f"--networks {unknown[0]}: write some of {', '.join(NETWORKS)}")


@contextlib.contextmanager
def triton_only(compile_anew: bool) -> Iterator[None]:
    """Our operations run on Triton or fail, whatever was measured before."""
    with (
        warnings.catch_warnings(),
        mock.patch.object(dispatch, "wins", return_value=True),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": folder} if compile_anew else {}),
    ):
        warnings.filterwarnings("error", message="fastcnn_kernels")
        yield


def main(settings: Settings) -> int:
    check(settings)
    if settings.markdown:
        try:
            report = json.loads(Path(settings.markdown).read_text())
        except OSError as error:
            raise SystemExit(f"--markdown {settings.markdown}: {error.strerror}") from None
        except ValueError as error:
            raise SystemExit(f"--markdown {settings.markdown}: not JSON: {error}") from None
        print(tables.markdown(report))
        if settings.write_dispatch:
            print(write_dispatch(report), file=sys.stderr)
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    if why := why_not_triton(device):
        print(f"{why}: nothing was measured")
        return 0
    with triton_only(settings.compile_times):
        return run(settings, device)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
