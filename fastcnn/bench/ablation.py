"""From eager PyTorch to a fast training step, one switch at a time: what each of them brings here.

    fastcnn bench --arch resnet50
    fastcnn bench --arch timm/regnety_032 --img-size 224 --batch-size 256 --minutes 8

Each variant adds one optimization to the best variant so far. It is timed in turn with that one and with
eager PyTorch, and is kept if it is faster. Every variant has a process of its own, so that they share no state.
In the end the largest costs of the best step are taken from a trace of it.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fastcnn.bench import roofline, timing, trace
from fastcnn.bench.training_steps import (
    Optimizations,
    Workload,
    build_own_step,
    build_step,
    has_kernels,
    has_slow_layers,
)
from fastcnn.bench.worker import (
    Start,
    Worker,
    WorkerError,
    WorkerLimitError,
    calls_of_a_turn,
    cpu_contention,
    time_workers,
)
from fastcnn.errors import UserError
from fastcnn.models.parts import image_sizes
from fastcnn.runtime import environment, machine
from fastcnn.runtime.distributed import Ranks, choose_device

BASELINE = "eager fp32 NCHW"
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "keep memory": {"keep_memory": True},
    "cuDNN benchmark": {"cudnn_benchmark": True},
    "channels-last": {"channels_last": True},
    "bf16": {"bf16": True},
    "bf16, our kernels": {"bf16": True, "kernels": "ours"},
    "fused optimizer": {"fused": True},
    "compile": {"compile": "model"},
    "whole step compiled": {"compile": "step"},
    "CUDA graph": {"cuda_graph": True},
    "our kernels": {"kernels": "ours"},
    "accelerate": {"kernels": "accelerate"},
    "4 input channels": {"four_channels": True},
    "bf16 weights": {"bf16_weights": True},
    "1x1 as product": {"pointwise_as_product": True},
    "max-autotune": {"max_autotune": True},
}
"""Changes of each variant, in the order of the ablation."""
OWN = "fastcnn train"
"""The last variant: the step of `fastcnn train`, with the dtype, layout and compilation that were kept."""
ON_CUDA = ("cuDNN benchmark", "CUDA graph", "our kernels", "accelerate", "4 input channels", "max-autotune")
ON_CPU = ("keep memory", "bf16, our kernels")
COMPILED = ("compile", "whole step compiled", "max-autotune")
COSTS = 20
"""So many of the best step's are written."""
FIRST_CALLS = 10
"""Steps before timing, whose losses are compared with the baseline's."""
QUICK_ROUNDS = 4
QUICK_MINUTES = 1.0
"""Default of `--minutes` with `--quick` on the CPU."""
CPU_LIMIT, QUICK_LIMIT = 600.0, 20.0
"""Seconds in which a process must start, or answer a question, on the CPU."""
CPU_SIZE = 64
"""Pixels a side on a CPU, where the published size would take minutes."""
ACCEPT_RATIO = 0.99
"""Max time of a kept variant as a fraction of the best one's; three of four rounds must be faster."""


@dataclass(frozen=True)
class Settings:
    arch: str
    img_size: int | None = None
    batch_size: int | None = None
    rounds: int = 10
    device: str = "auto"
    quick: bool = False
    """Few rounds, and on the CPU nothing compiled: about a minute."""
    minutes: float | None = None
    """Time limit, after which only the last variant begins; None: none, in a quick CPU run `QUICK_MINUTES`."""

    def limit(self, device: torch.device) -> float | None:
        """Seconds in which a process must answer."""
        if device.type != "cpu":
            return None
        return QUICK_LIMIT if self.quick else CPU_LIMIT


@dataclass
class Variant:
    """One row of the table."""

    name: str
    optimizations: Optimizations
    left_out: str = ""
    """Why it was not measured."""
    kept: bool = False
    """Whether the variants after it have its switch."""
    start: Start | None = None
    seconds: list[float] = field(default_factory=list)
    """Of steps in turn with the baseline's."""
    baseline: list[float] = field(default_factory=list)
    best_before: list[float] = field(default_factory=list)
    """Of the best variant before it, in the same turns."""
    loss_difference: float | None = None
    """From the baseline's losses in the first steps, at most, as a share of them."""

    start_before: float = 0.0
    """`start_seconds` of the best variant before it."""

    def start_seconds(self) -> float:
        """To build the step and call it once, beyond a usual call's: compilation, where there is one."""
        assert self.start is not None
        return max(0.0, self.start.build_seconds + self.start.first_seconds[0] - min(self.seconds))

    def payoff_steps(self) -> float | None:
        """Return the steps that pay off a longer start than the best variant's; None if none do."""
        if not self.best_before:
            return 0.0
        won = statistics.median(self.best_before) - statistics.median(self.seconds)
        return max(0.0, self.start_seconds() - self.start_before) / won if won > 0 else None


def run_ablation(settings: Settings, clock: Callable[[], float] = time.monotonic) -> Iterator[dict[str, Any]]:
    """Measures variant after variant, and yields the content of the JSON file after each.

    Raises:
        UserError: no such network or device, or a size that the network does not take.
    """
    device = choose_device(settings.device, Ranks())
    if device.type == "mps":
        raise UserError("--device mps: the ladder knows cuda and cpu")
    if device.type == "cpu":
        torch.set_num_threads(machine.cores_per_process(Ranks()))  # workers take it over
    workload = describe_workload(settings, device)
    rounds = min(settings.rounds, QUICK_ROUNDS) if settings.quick else settings.rounds
    minutes, limit = settings.minutes, settings.limit(device)
    if minutes is None and settings.quick and device.type == "cpu":
        minutes = QUICK_MINUTES
    begin, optimizations, best = clock(), Optimizations(), BASELINE
    with ExitStack() as stack:
        try:
            baseline = stack.enter_context(_worker(workload, optimizations, device, limit))
        except WorkerLimitError as error:
            raise UserError(
                f"--arch {settings.arch}: {BASELINE} {error} for {workload.batch_size} images of "
                f"{workload.img_size} px; lower --batch-size or --img-size"
                + (", or leave out --quick" if settings.quick else "")
            ) from None
        except WorkerError as error:
            raise UserError(f"--arch {settings.arch}: {error}") from None
        try:
            bound = measure_roofline(baseline, workload, device, rounds, limit)
        except WorkerError as error:
            raise UserError(f"--device {device.type}: the ceilings cannot be measured: {error}") from None
        content: dict[str, Any] = {
            "what": "ladder",
            "environment": environment.environment(device),
            "settings": vars(settings),
            "problem": vars(workload),
            "roofline": bound,
            "rungs": [],
        }
        workers = {BASELINE: baseline}
        calls = calls_of_a_turn(baseline, device)
        start_before = 0.0
        for name, changes in [*VARIANTS.items(), (OWN, {})]:
            variant = Variant(name, dataclasses.replace(optimizations, **changes))
            variant.left_out = _why_not(variant, settings, device, workload)
            late = minutes is not None and clock() - begin > 60 * minutes and name not in (BASELINE, OWN)
            if late and not variant.left_out:
                variant.left_out = f"time limit of {minutes:g} min reached (--minutes)"
            if not variant.left_out:
                try:
                    if name != BASELINE:
                        worker = _worker(workload, variant.optimizations, device, limit, name)
                        workers[name] = stack.enter_context(worker)
                    _measure(variant, workers, best, rounds, calls)
                    variant.start_before = start_before
                except WorkerError as error:
                    variant.left_out = f"failed: {error}"
                    if name == BASELINE:
                        raise UserError(f"--arch {settings.arch}: {error}") from None
                    for other in (BASELINE, best):
                        if not workers[other].is_alive():  # nothing can be compared with it any more
                            raise UserError(f"--arch {settings.arch}: {other} {error}") from None
            if variant.kept and best != BASELINE:
                workers.pop(best).close()
            if variant.kept:
                best, optimizations, start_before = name, variant.optimizations, variant.start_seconds()
            elif name in workers:
                workers.pop(name).close()
            content["rungs"].append(variant_result(variant, workload, content["roofline"]))
            yield content
        try:
            content["crowded"] = baseline.ask(cpu_contention)  # it took turns with all others
            if optimizations.cuda_graph:  # whose kernels no trace tells the operations of
                workers.pop(best).close()
                optimizations = dataclasses.replace(optimizations, cuda_graph=False)
                workers[best] = stack.enter_context(_worker(workload, optimizations, device, limit))
            costs = workers[best].ask(trace.measure)
            content["costs"] = costs_result(costs, best, content["roofline"])
        except WorkerError as error:
            content["costs"] = {"left_out": f"failed: {error}"}
        yield content


def _measure(variant: Variant, workers: dict[str, Worker], best: str, rounds: int, calls: int) -> None:
    times = time_workers(workers, rounds, calls=calls)
    variant.start = workers[variant.name].start
    variant.seconds, variant.baseline = times[variant.name], times[BASELINE]
    variant.best_before = times[best] if variant.name != BASELINE else []
    reference = workers[BASELINE].start.losses
    variant.loss_difference = max(abs(a - b) / abs(b) for a, b in zip(variant.start.losses, reference))
    shares = timing.ratios(variant.seconds, times[best])
    _, median, upper = statistics.quantiles(shares, n=4, method="inclusive")
    variant.kept = variant.name == BASELINE or (variant.name != OWN and median < ACCEPT_RATIO and upper < 1)


def describe_workload(settings: Settings, device: torch.device) -> Workload:
    sizes = image_sizes(settings.arch)
    size = settings.img_size
    if size is None:
        usual = sizes.default_image_size if device.type == "cuda" or sizes.fixed_image_size else CPU_SIZE
        size = max(usual, sizes.minimum_image_size)
    batch_size = settings.batch_size or (256 if device.type == "cuda" else 32)
    return Workload(settings.arch, size, batch_size, device.type)


def measure_roofline(
    baseline: Worker, workload: Workload, device: torch.device, rounds: int, limit: float | None
) -> dict[str, Any]:
    """Work of a step, ceilings of the machine, and the lower bound in seconds that follows.

    A dtype that the machine emulates has no ceiling and no bound.
    """
    dtypes = {
        name: str(machine.DTYPES[name]).removeprefix("torch.")
        for name in ("fp32", "bf16")
        if machine.is_native(name, device)
    }
    found = roofline.Ceilings(
        measure_ceiling(partial(roofline.copy, workload.device), device, rounds, limit),
        {
            name: measure_ceiling(partial(roofline.product, workload.device, name), device, rounds, limit)
            for name in dtypes.values()
        },
    )
    operations: list[roofline.Operation] = baseline.ask(roofline.count)
    parameters = sum(p.numel() for p in dataclasses.replace(workload, device="meta").network().parameters())
    halves = [dataclasses.replace(o, bytes=o.bytes // 2, dtype="bfloat16") for o in operations]
    return {
        "flops": sum(o.flops for o in operations),
        "bytes_fp32": sum(o.bytes for o in operations),
        "parameters": parameters,
        "copy_bytes_per_second": found.bytes_per_second,
        "product_flops_per_second": found.flops_per_second,
        "least_seconds": {
            name: roofline.lower_bound(operations if name == "fp32" else halves, parameters, found)
            for name in dtypes
        },
    }


def measure_ceiling(
    make: Callable[[], roofline.Probe], device: torch.device, rounds: int, limit: float | None
) -> float:
    """Work per second of the fastest round of a probe, in a process of its own."""
    with Worker(make, device, keep_memory=True, limit=limit) as worker:
        seconds = min(worker.turn(1 if device.type == "cpu" else 10) for _ in range(rounds))
        return worker.ask(roofline.work_of) / seconds


def _worker(
    workload: Workload,
    optimizations: Optimizations,
    device: torch.device,
    limit: float | None,
    name: str = BASELINE,
) -> Worker:
    keep_memory = optimizations.keep_memory
    build: Callable[[], Any] = partial(build_step, workload, optimizations)
    if name == OWN:
        dtype, keep_memory = "bf16" if optimizations.bf16 else "fp32", False  # it prepares its process itself
        build = partial(
            build_own_step,
            workload,
            dtype,
            channels_last=optimizations.channels_last,
            compile=optimizations.compile != "off",
            cuda_graph=optimizations.cuda_graph,
        )
    return Worker(build, device, keep_memory, first_calls=FIRST_CALLS, limit=limit)


def _why_not(variant: Variant, settings: Settings, device: torch.device, workload: Workload) -> str:
    name = variant.name
    if name in ON_CUDA and device.type != "cuda":
        return "needs a CUDA GPU"
    if name in ON_CPU and device.type != "cpu":
        return "for the CPU"
    if VARIANTS.get(name, {}).get("kernels") == "ours" and not has_kernels(workload):
        return "no layer of ours"
    if name == "accelerate" and not has_slow_layers(workload):
        return "no layer that it could swap"
    if variant.optimizations.bf16 and not machine.is_native("bf16", device):
        return machine.NO_BF16
    if name in COMPILED and settings.quick and device.type == "cpu":
        return "left out by --quick"
    if name == "max-autotune" and variant.optimizations.compile == "off":
        return "compiled steps were not faster"
    if name == "bf16 weights" and not variant.optimizations.bf16:
        return "bf16 was not faster" if machine.is_native("bf16", device) else machine.NO_BF16
    return ""


def variant_result(variant: Variant, workload: Workload, bound: dict[str, Any]) -> dict[str, Any]:
    if variant.left_out or variant.start is None:
        return {"name": variant.name, "left_out": variant.left_out}
    median = statistics.median(variant.seconds)
    return {
        "name": variant.name,
        "kept": variant.kept,
        "switches": vars(variant.optimizations),
        "seconds": timing.summary(variant.seconds),
        "speedup": timing.summary(timing.ratios(variant.baseline, variant.seconds)),
        "images_per_second": workload.batch_size / median,
        "share_of_roofline": bound["least_seconds"]["bf16" if variant.optimizations.bf16 else "fp32"]
        / median,
        "start_seconds": variant.start_seconds(),
        "payoff_steps": variant.payoff_steps(),
        "peak_bytes": variant.start.peak_bytes,
        "loss_difference": variant.loss_difference,
    }


def costs_result(costs: list[trace.Cost], of: str, bound: dict[str, Any]) -> dict[str, Any]:
    rates = bound["copy_bytes_per_second"], bound["product_flops_per_second"]
    return {
        "of": of,
        "seconds": sum(cost.seconds for cost in costs),
        "largest": [{**vars(cost), "floor_seconds": cost.floor(*rates)} for cost in costs[:COSTS]],
    }


def results_name(workload: dict[str, Any]) -> str:
    arch = workload["arch"].replace("/", "-").replace(":", "-")
    return f"ladder-{arch}-{workload['img_size']}px-batch{workload['batch_size']}"
