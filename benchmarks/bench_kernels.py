"""The kernels of `fastcnn_kernels` against eager and compiled PyTorch, layer by layer, and against a copy.

    python benchmarks/bench_kernels.py
    python benchmarks/bench_kernels.py --networks mobilenet_v2 --batch-size 256 32 --minutes 8
    python benchmarks/bench_kernels.py --markdown benchmarks/results/GPU/kernels-bf16-batch256.json
    python -m pytest benchmarks/bench_kernels.py -k 3x3    # the rows of bf16 as pytest-benchmark's tables

Rows, on random channels-last tensors, without bias:
  forward, input_grad, weight_grad, backward    one pass: our operation on Triton, and what eager calls
  layer forward, layer training    the whole layer, torch.compile's too; training is forward and backward
Eager PyTorch (cuDNN, cudnn.benchmark on) reads the weight in the input's dtype, ours in float32. Sides take
turns; a turn is one call on each of several inputs that together do not fit the L2 cache, timed by the GPU
while the host is ahead. A result is first compared with eager PyTorch's in a wider dtype: a wrong one gets no
time. The host's times to launch are of tiny inputs.

Bytes are the least a pass must move, each tensor once, and the share is that of a large copy's bandwidth.
Writes JSON to benchmarks/results/MACHINE/, after every row. The same command at the same commit goes on where
that file ends; a file of anything else is kept beside the new one. Under pytest nothing is written.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import kernel_tables as tables
from comparison import Comparison, results_file
from fastcnn.runtime import machine
from fastcnn_kernels.layers import NETWORKS, Depthwise, Norm
from fastcnn_kernels.support import why_not_triton
from kernel_report import begin, fields_of, is_done, write, write_dispatch
from kernel_sides import PASSES, WHOLE
from kernel_times import (
    Item,
    Measure,
    ceilings,
    device_times,
    host_times,
    measure_row,
    triton_only,
    trouble,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    networks: tuple[str, ...] = ("mobilenet_v2", "efficientnet_b0", "convnext_tiny", "alexnet", "googlenet")
    batch_size: tuple[int, ...] = (256,)
    """Of all but the first only the passes are measured, not the whole layers."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    rounds: int = 20
    """Timed turns of each side."""
    minutes: float | None = None
    """Begin no row that will not be done by then, as the last one of its kind says; the most important ones
    come first."""
    compile_times: bool = False
    """Compile our kernels anew and note the seconds of each one's first call."""
    write_dispatch: bool = False
    """Write the times to the package's table of this GPU, which chooses between Triton and PyTorch."""
    output: str | None = None
    """JSON file; by default under benchmarks/results/."""
    markdown: str | None = None
    """Measure nothing: print the tables of this JSON file for the README."""


# What is measured, in what order


def layers_of(networks: tuple[str, ...]) -> dict[Depthwise | Norm, dict[str, int]]:
    """Distinct layers with their count in each network; convolutions first."""
    found: dict[Depthwise | Norm, dict[str, int]] = {}
    for name in networks:
        for layer in NETWORKS[name]:
            found.setdefault(dataclasses.replace(layer, count=1), {})[name] = layer.count
    return dict(sorted(found.items(), key=lambda entry: isinstance(entry[0], Norm)))


def plan(settings: Settings) -> list[Item]:
    """Items to measure, most important first.

    Whole convolutions come late: compiling a layer takes seconds, and compiled PyTorch calls the same
    convolution as eager PyTorch.
    """
    layers = layers_of(settings.networks)
    norms = [layer for layer in layers if isinstance(layer, Norm)]
    convolutions = [layer for layer in layers if isinstance(layer, Depthwise)]
    first, *others = dict.fromkeys(settings.batch_size)
    tiny = {type(layer): dataclasses.replace(layer, channels=32, size=14) for layer in reversed(layers)}
    return [
        Item("ceilings"),
        *(Item("device", layer, step, first) for layer in layers for step in PASSES[type(layer)]),
        *(Item("host", layer, step, 2) for layer in tiny.values() for step in PASSES[type(layer)]),
        *(Item("device", layer, step, first) for layer in norms for step in WHOLE),
        *(Item("device", layer, step, n) for n in others for layer in layers for step in PASSES[type(layer)]),
        *(Item("device", layer, step, first) for layer in convolutions for step in WHOLE),
        *(Item("host", layer, step, 2) for layer in tiny.values() for step in WHOLE),
    ]


def kind_of(item: Item) -> tuple[str, type, str, int]:
    """Items of one kind take about the same time."""
    return item.what, type(item.layer), item.step, item.batch


# Measuring, and going on


def run(
    settings: Settings,
    device: torch.device,
    measure: Measure = device_times,
    measure_host: Measure = host_times,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Measure, print and write. Return the exit status: 1 if a result was wrong or anything failed."""
    start, items, layers = clock(), plan(settings), layers_of(settings.networks)
    name = f"kernels-{settings.dtype}-batch{'-'.join(map(str, settings.batch_size))}"
    path = results_file(name, settings.output, device)
    report = begin(path, vars(settings), device)
    budget = math.inf if settings.minutes is None else 60 * settings.minutes
    took: dict[tuple[str, type, str, int], float] = {}
    left = 0
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if report["ceilings"]:
        print(tables.HEADER)
    for item in items:
        if is_done(item, report):
            continue
        begun = clock()
        if begun - start + took.get(kind_of(item), 0) > budget:
            left += 1
            continue
        if item.layer is None:
            report["ceilings"] = found = ceilings(device, settings.rounds, measure)
            print(", ".join(tables.ceiling(name, found) for name in found), tables.HEADER, sep="\n")
        else:
            how = measure_host if item.what == "host" else measure
            copy_speed = report["ceilings"].get("copy", {}).get("per_second")
            row = describe_row(item, layers, settings) | result_of(item, settings, device, how, copy_speed)
            report["host" if item.what == "host" else "rows"].append(row)
            print(tables.line(row), flush=True)
        report["geometric_means"] = tables.geometric_means(report["rows"])
        write(path, report)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        took[kind_of(item)] = clock() - begun
    if left:
        print(f"{left} of {len(items)} rows did not fit: the same command goes on with them")
    print("\n".join(tables.means_lines(report["geometric_means"])))
    if settings.write_dispatch:
        print(write_dispatch(report))
    print(path)
    results = [*report["rows"], *report["host"], *report["ceilings"].values()]
    return 1 if any(word in result for result in results for word in tables.TROUBLE) else 0


def describe_row(
    item: Item, layers: dict[Depthwise | Norm, dict[str, int]], settings: Settings
) -> dict[str, Any]:
    assert item.layer is not None
    return {
        "kind": "depthwise" if isinstance(item.layer, Depthwise) else "lrn",
        "networks": layers.get(item.layer, {}),
        "layer": fields_of(item.layer),
        "batch": item.batch,
        "dtype": settings.dtype,
        "pass": item.step,
    }


def result_of(
    item: Item, settings: Settings, device: torch.device, measure: Measure, copy_speed: float | None
) -> dict[str, Any]:
    """Result of `measure_row`, or the error: too little memory for one row must not cost the others."""
    dtype = machine.DTYPES[settings.dtype]
    try:
        result = measure_row(
            item, device, measure, dtype=dtype, rounds=settings.rounds, copy_speed=copy_speed
        )
    except Exception as error:
        return {"failed": trouble(error)}
    if not settings.compile_times:
        result.pop("first_call_seconds", None)
    return result


def check(settings: Settings) -> None:
    if settings.rounds < 3:
        raise SystemExit(f"--rounds {settings.rounds}: quartiles need 3 or more")
    if not settings.batch_size or min(settings.batch_size) < 1:
        raise SystemExit(f"--batch-size {' '.join(map(str, settings.batch_size))}: use at least 1")
    if settings.minutes is not None and settings.minutes <= 0:
        raise SystemExit(f"--minutes {settings.minutes:g}: use more than 0, or omit it")
    if unknown := [name for name in settings.networks if name not in NETWORKS]:
        raise SystemExit(f"--networks {unknown[0]}: use some of {', '.join(NETWORKS)}")


def why_nothing() -> str | None:
    """Reason why nothing can be measured here; None if there is none."""
    if not torch.cuda.is_available():
        return "no CUDA device here: nothing was measured"
    why = why_not_triton(torch.device("cuda", torch.cuda.current_device()))
    return f"{why}: nothing was measured" if why else None


# Under pytest


def pytest_generate_tests(metafunc: Any) -> None:
    """A test for each row and side; a single skipped one if nothing can be measured."""
    if why_nothing():
        found: list[tuple[Item, str]] = [(Item("device"), "ours")]
    else:
        quick = bool(metafunc.config.getoption("quick"))
        found = list(rows_and_sides(plan(Settings()), quick=quick))
    names = [f"{row_name(row)}-{side}" if row.layer else "nothing" for row, side in found]
    metafunc.parametrize(("row", "side"), found, ids=names)


def rows_and_sides(items: list[Item], *, quick: bool) -> Iterator[tuple[Item, str]]:
    """The GPU's rows and their sides; with `quick` only the first layer of each kernel, at a small batch."""
    seen = set()
    for item in items:
        if item.layer is None or item.what == "host":
            continue
        kernel = tables.kind_name(vars(item.layer)), item.step
        if quick and kernel in seen:
            continue
        seen.add(kernel)
        for side in ("ours", "eager", *(["compiled"] if item.step in WHOLE else [])):
            yield item._replace(batch=32) if quick else item, side


def row_name(row: Item) -> str:
    assert row.layer is not None
    return f"{tables.layer_name(vars(row.layer))} {row.step} batch{row.batch}".replace(" ", "-")


@functools.cache
def comparison_of(
    row: Item, device: torch.device, measure: Measure = device_times, *, quick: bool
) -> Comparison:
    """Measure a row, in seconds of the GPU.

    Raises:
        AssertionError: our result is wrong.
    """
    times: dict[str, list[float]] = {}

    def keep(*arguments: Any) -> dict[str, list[float]]:
        times.update(measure(*arguments))
        return times

    assert row.layer is not None
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    with triton_only(compile_anew=False):
        rounds = 3 if quick else 20
        found = measure_row(row, device, keep, dtype=machine.DTYPES["bf16"], rounds=rounds)
    assert "wrong" not in found, found["wrong"]
    return Comparison(
        what=f"kernel-{row_name(row)}",
        baseline="eager",
        seconds={side: [value / 1e6 for value in values] for side, values in times.items()},
        device=device,
        work=row.batch,
        settings={**fields_of(row.layer), "pass": row.step, "batch": row.batch, "dtype": "bf16"},
    )


def test_kernel(row, side, quick, play):
    import pytest  # the script does without

    if why := why_nothing():  # the kernels need a CUDA GPU; their numbers are tested without one
        pytest.skip(why)
    device = torch.device("cuda", torch.cuda.current_device())
    play(comparison_of(row, device, quick=quick), side)


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
    if why := why_nothing():  # the kernels need a CUDA GPU; their numbers are tested without one
        print(why)
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    with triton_only(compile_anew=settings.compile_times):
        return run(settings, device)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
