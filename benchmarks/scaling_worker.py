"""Worker process of bench_scaling.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from comparison import time_in_turn
from fastcnn.bench.training_steps import Workload, build_own_state
from fastcnn.engine.state import StepOptions, TrainState
from fastcnn.engine.step import train_step
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, choose_device, process_group

ALONE, APART, TOGETHER = "alone", "apart", "together"
DEFAULT = "torch's"
"""torch's own bucket size: 25 MiB, but 1 MiB for the first bucket."""

Sides = dict[str, Callable[[], object]]
Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of a measurement, the same in all of its processes."""

    arch: str
    img_size: int
    batch_size: int
    bucket_mb: tuple[int, ...]
    rounds: int
    device: str
    threads: int
    dtype: str
    compile: bool
    gradient_bytes: int
    processes: int = 1
    port: int = 0
    folder: str = ""
    """Folder of the results, with one file per process."""

    @property
    def bucket_sizes(self) -> dict[str, int | None]:
        return {DEFAULT: None, **{f"{size} MiB": size for size in self.bucket_mb}}

    def workload(self, device: torch.device) -> Workload:
        return Workload(self.arch, self.img_size, self.batch_size, str(device))


def work(index: int, job: Job, turn: Barrier) -> None:
    """Measure as process `index` of `job.processes`; the extra process after the last one runs alone."""
    alone = index == job.processes or job.processes == 1
    ranks = Ranks() if alone else Ranks(index, job.processes, index, job.processes)
    if not alone:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port))
        os.environ.update(RANK=str(index), WORLD_SIZE=str(job.processes))
    device = choose_device(job.device, ranks)
    machine.prepare(device, job.threads, deterministic=False)
    with process_group(ranks, device):
        found = {"turns": turns(job, device, turn, alone=alone)}
        if not alone:
            flat = torch.zeros(job.gradient_bytes // 4, device=device)
            found["all_reduce"] = timed(job, {"all-reduce": lambda: dist.all_reduce(flat)}, device)
            found["buckets"] = buckets(job, device)
    Path(job.folder, f"{index}.json").write_text(json.dumps(found))


def build(job: Job, device: torch.device, bucket_cap_mb: int | None = None) -> TrainState:
    dtype = machine.DTYPES[job.dtype]
    options = StepOptions(amp_dtype=dtype, compile=job.compile, bucket_cap_mb=bucket_cap_mb)
    return build_own_state(job.workload(device), options)


def step_of(job: Job, state: TrainState, device: torch.device) -> Callable[[], object]:
    workload = job.workload(device)
    batch, task = workload.batch(), workload.task()
    metrics = task.metrics(device)
    return lambda: train_step(state, task, [batch], metrics)


def turns(job: Job, device: torch.device, turn: Barrier, *, alone: bool) -> Seconds:
    """Step times alone, apart and together; `turn` is the barrier before each turn."""
    state = build(job, device)
    step = step_of(job, state, device)

    def apart() -> None:
        assert isinstance(state.train_model, DistributedDataParallel)
        with state.train_model.no_sync():
            step()

    def wait() -> None:
        """Wait in the barrier of the next turn, outside the timed part."""

    sides: Sides = {ALONE: step}
    if job.processes > 1:
        sides = {ALONE: step if alone else wait}
        sides |= {APART: wait, TOGETHER: wait} if alone else {APART: apart, TOGETHER: step}
    return timed(job, sides, device, turn.wait)


def buckets(job: Job, device: torch.device) -> Seconds:
    """Step times by bucket size.

    Compiled steps are timed one after the other. Their graph is split at the buckets, and torch.compile would
    reuse one network's graph for the next.
    """

    def step(size: str) -> Callable[[], object]:
        return step_of(job, build(job, device, job.bucket_sizes[size]), device)

    if not job.compile:
        return timed(job, {size: step(size) for size in job.bucket_sizes}, device)
    seconds: Seconds = {}
    for size in job.bucket_sizes:
        seconds |= timed(job, {size: step(size)}, device)
    return seconds


def timed(
    job: Job, sides: Sides, device: torch.device, before: Callable[[], object] = dist.barrier
) -> Seconds:
    # A GPU's host runs ahead, so a single step's time would include its launch.
    calls = 10 if device.type == "cuda" else 2
    return time_in_turn(sides, device, rounds=job.rounds, warmup=1, calls=calls, before=before)
