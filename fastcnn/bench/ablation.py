"""Ablation of a training step: from eager PyTorch to a fast step, one optimization at a time.

    fastcnn bench --arch resnet50
    fastcnn bench --arch timm/regnety_032 --img-size 224 --batch-size 256 --minutes 8

Each variant adds its optimization to the best variant so far. It is timed in turn with that one and with
eager PyTorch, and is kept if it is faster. Every variant runs in a process of its own, so no state leaks from
one to the next. Finally the best step is traced for its largest costs.
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
MAX_COSTS = 20
"""Largest costs of the best step in the JSON file."""
FIRST_CALLS = 10
"""Steps before timing, whose losses are compared with the baseline's."""
QUICK_ROUNDS = 4
QUICK_MINUTES = 1.0
"""Default of `--minutes` with `--quick` on the CPU."""
CPU_LIMIT, QUICK_LIMIT = 600.0, 20.0
"""Time limit in seconds, on the CPU, for the start of a process and for each of its results."""
CPU_SIZE = 64
"""Default image size on a CPU in pixels, where the published size would take minutes."""
ACCEPT_RATIO = 0.99
"""A kept variant takes less than this share of the best one's time, and is faster in three of four rounds."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    arch: str
    img_size: int | None = None
    batch_size: int | None = None
    rounds: int = 10
    device: str = "auto"
    quick: bool = False
    """Few rounds, and no compilation on the CPU: about a minute."""
    minutes: float | None = None
    """Time limit, after which only the last variant starts. None: no limit, but `QUICK_MINUTES` with `quick`
    on the CPU."""

    def limit(self, device: torch.device) -> float | None:
        """Time limit in seconds for each result of a process."""
        if device.type != "cpu":
            return None
        return QUICK_LIMIT if self.quick else CPU_LIMIT


@dataclass(kw_only=True)
class Variant:
    """One row of the table."""

    name: str
    optimizations: Optimizations
    left_out: str = ""
    """Reason for not measuring it."""
    kept: bool = False
    """Its optimization stays on in later variants."""
    start: Start | None = None
    seconds: list[float] = field(default_factory=list)
    """Step times, in turn with the baseline's."""
    baseline: list[float] = field(default_factory=list)
    best_before: list[float] = field(default_factory=list)
    """Step times of the previous best variant, in the same turns."""
    loss_difference: float | None = None
    """Largest relative deviation from the baseline's losses in the first steps."""
    start_before: float = 0.0
    """`start_seconds` of the previous best variant."""

    def start_seconds(self) -> float:
        """Seconds to build the step and call it once, beyond a usual call: compilation, if any."""
        assert self.start is not None
        return max(0.0, self.start.build_seconds + self.start.first_seconds[0] - min(self.seconds))

    def payoff_steps(self) -> float | None:
        """Steps until a start slower than the previous best's pays off; None if it never does."""
        if not self.best_before:
            return 0.0
        won = statistics.median(self.best_before) - statistics.median(self.seconds)
        return max(0.0, self.start_seconds() - self.start_before) / won if won > 0 else None


def run_ablation(settings: Settings, clock: Callable[[], float] = time.monotonic) -> Iterator[dict[str, Any]]:
    """Measure variant after variant and yield the content of the JSON file after each.

    Raises:
        UserError: unknown network or device, or a size that the network does not accept.
    """
    device = choose_device(settings.device, Ranks())
    if device.type == "mps":
        raise UserError("--device mps: the ablation supports cuda and cpu")
    if device.type == "cpu":
        torch.set_num_threads(machine.cores_per_process(Ranks()))  # workers inherit it
    with ExitStack() as stack:
        ablation = _Ablation(settings, device, stack, clock)
        content = ablation.begin()
        for name, changes in [*VARIANTS.items(), (OWN, {})]:
            variant = ablation.run(name, changes)
            content["rungs"].append(variant_result(variant, ablation.workload, content["roofline"]))
            yield content
        ablation.trace_best(content)
        yield content


class _Ablation:
    """An ablation in progress: its running workers and the best variant so far.

    Args:
        stack: closes the workers.
    """

    def __init__(
        self, settings: Settings, device: torch.device, stack: ExitStack, clock: Callable[[], float]
    ) -> None:
        self.settings, self.device, self.workload = settings, device, describe_workload(settings, device)
        self.rounds = min(settings.rounds, QUICK_ROUNDS) if settings.quick else settings.rounds
        self.minutes, self.limit = settings.minutes, settings.limit(device)
        if self.minutes is None and settings.quick and device.type == "cpu":
            self.minutes = QUICK_MINUTES
        self._stack, self._clock, self._begin = stack, clock, clock()
        self.best, self.optimizations, self.start_before = BASELINE, Optimizations(), 0.0
        self.workers: dict[str, Worker] = {}
        self.calls = 1

    def begin(self) -> dict[str, Any]:
        """Start the baseline, measure the roofline and return the JSON content, still without variants."""
        settings, workload = self.settings, self.workload
        try:
            baseline = self._start(BASELINE, self.optimizations)
        except WorkerLimitError as error:
            raise UserError(
                f"--arch {settings.arch}: {BASELINE} {error} for {workload.batch_size} images of "
                f"{workload.img_size} px; lower --batch-size or --img-size"
                + (", or omit --quick" if settings.quick else "")
            ) from None
        except WorkerError as error:
            raise UserError(f"--arch {settings.arch}: {error}") from None
        try:
            bound = measure_roofline(baseline, workload, self.device, self.rounds, self.limit)
        except WorkerError as error:
            raise UserError(
                f"--device {self.device.type}: the ceilings cannot be measured: {error}"
            ) from None
        self.calls = calls_of_a_turn(baseline, self.device)
        return {
            "what": "ladder",
            "environment": environment.environment(self.device),
            "settings": vars(settings),
            "problem": vars(workload),
            "roofline": bound,
            "rungs": [],
        }

    def run(self, name: str, changes: dict[str, Any]) -> Variant:
        """Measure a variant; if it is kept, later variants build on it."""
        variant = Variant(name=name, optimizations=dataclasses.replace(self.optimizations, **changes))
        variant.left_out = why_skipped(variant, self.settings, self.device, self.workload)
        late = self._is_over() and name not in (BASELINE, OWN)
        if late and not variant.left_out:
            variant.left_out = f"time limit of {self.minutes:g} min reached (--minutes)"
        if not variant.left_out:
            try:
                if name != BASELINE:
                    self._start(name, variant.optimizations)
                self._measure(variant)
            except WorkerError as error:
                variant.left_out = f"failed: {error}"
                self._raise_without_reference(name, error)

        # Keep the workers of the baseline and of the best variant alone.
        if variant.kept and self.best != BASELINE:
            self.workers.pop(self.best).close()
        if variant.kept:
            self.best, self.optimizations = name, variant.optimizations
            self.start_before = variant.start_seconds()
        elif name in self.workers:
            self.workers.pop(name).close()
        return variant

    def trace_best(self, content: dict[str, Any]) -> None:
        """Add the CPU contention of the baseline and the largest costs of the best step."""
        try:
            content["crowded"] = self.workers[BASELINE].call(cpu_contention)  # it took turns with all others
            if self.optimizations.cuda_graph:  # a trace cannot attribute its kernels to operations
                self.workers.pop(self.best).close()
                self.optimizations = dataclasses.replace(self.optimizations, cuda_graph=False)
                worker = _worker(self.workload, self.optimizations, self.device, self.limit)
                self.workers[self.best] = self._stack.enter_context(worker)
            costs = self.workers[self.best].call(trace.measure)
            content["costs"] = costs_result(costs, self.best, content["roofline"])
        except WorkerError as error:
            content["costs"] = {"left_out": f"failed: {error}"}

    def _start(self, name: str, optimizations: Optimizations) -> Worker:
        worker = _worker(self.workload, optimizations, self.device, self.limit, name)
        self.workers[name] = self._stack.enter_context(worker)
        return worker

    def _is_over(self) -> bool:
        return self.minutes is not None and self._clock() - self._begin > 60 * self.minutes

    def _measure(self, variant: Variant) -> None:
        """Time a variant in turn with the baseline and the best variant, and decide on keeping it."""
        name = variant.name
        times = time_workers(self.workers, self.rounds, calls=self.calls)
        variant.start = self.workers[name].start
        variant.seconds, variant.baseline = times[name], times[BASELINE]
        variant.best_before = times[self.best] if name != BASELINE else []
        reference = self.workers[BASELINE].start.losses
        variant.loss_difference = max(abs(a - b) / abs(b) for a, b in zip(variant.start.losses, reference))
        shares = timing.ratios(variant.seconds, times[self.best])
        _, median, upper = statistics.quantiles(shares, n=4, method="inclusive")
        variant.kept = name == BASELINE or (name != OWN and median < ACCEPT_RATIO and upper < 1)
        variant.start_before = self.start_before

    def _raise_without_reference(self, name: str, error: WorkerError) -> None:
        """Raise a UserError if the failure leaves nothing to compare later variants with."""
        arch = self.settings.arch
        if name == BASELINE:
            raise UserError(f"--arch {arch}: {error}") from None
        for other in (BASELINE, self.best):
            if not self.workers[other].is_alive():
                raise UserError(f"--arch {arch}: {other} {error}") from None


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
    """Work of a step, ceilings of the machine, and the resulting lower bound in seconds.

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
    operations: list[roofline.Operation] = baseline.call(roofline.count)
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
    """Work per second in the fastest round of a probe, in a process of its own."""
    with Worker(make, device, keep_memory=True, limit=limit) as worker:
        seconds = min(worker.turn(1 if device.type == "cpu" else 10) for _ in range(rounds))
        return worker.call(roofline.work_of) / seconds


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
        keep_memory = False  # the step prepares its process itself
        build = partial(
            build_own_step,
            workload,
            "bf16" if optimizations.bf16 else "fp32",
            channels_last=optimizations.channels_last,
            compile=optimizations.compile != "off",
            cuda_graph=optimizations.cuda_graph,
        )
    return Worker(build, device, keep_memory=keep_memory, first_calls=FIRST_CALLS, limit=limit)


def why_skipped(variant: Variant, settings: Settings, device: torch.device, workload: Workload) -> str:
    """Reason for not measuring a variant; empty if there is none."""
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
        return "skipped by --quick"
    if name == "max-autotune" and variant.optimizations.compile == "off":
        return "compiled steps were not faster"
    if name == "bf16 weights" and not variant.optimizations.bf16:
        return "bf16 was not faster" if machine.is_native("bf16", device) else machine.NO_BF16
    return ""


def variant_result(variant: Variant, workload: Workload, bound: dict[str, Any]) -> dict[str, Any]:
    """JSON content of a variant."""
    if variant.left_out or variant.start is None:
        return {"name": variant.name, "left_out": variant.left_out}
    median = statistics.median(variant.seconds)
    dtype = "bf16" if variant.optimizations.bf16 else "fp32"
    return {
        "name": variant.name,
        "kept": variant.kept,
        "switches": vars(variant.optimizations),
        "seconds": timing.summary(variant.seconds),
        "speedup": timing.summary(timing.ratios(variant.baseline, variant.seconds)),
        "images_per_second": workload.batch_size / median,
        "share_of_roofline": bound["least_seconds"][dtype] / median,
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
        "largest": [{**vars(cost), "floor_seconds": cost.floor(*rates)} for cost in costs[:MAX_COSTS]],
    }


def results_name(workload: dict[str, Any]) -> str:
    arch = workload["arch"].replace("/", "-").replace(":", "-")
    return f"ladder-{arch}-{workload['img_size']}px-batch{workload['batch_size']}"
