"""What each process of bench_scaling.py runs."""

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

from fastcnn import bench, machine, models
from fastcnn.data import Batch
from fastcnn.distributed import Ranks, choose_device, process_group
from fastcnn.engine import TrainState, build_state, train_step
from fastcnn.optim import Schedule, build_optimizer
from fastcnn.tasks import Classification

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ALONE, APART, TOGETHER = "alone", "apart", "together"
DEFAULT = "torch's"
"""Bucket size: 25 MiB, but 1 MiB for the first bucket."""

Sides = dict[str, Callable[[], object]]
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Job:
    """What every process of one measurement is told."""

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
    """For the results: one file of each process."""

    @property
    def bucket_sizes(self) -> dict[str, int | None]:
        return {DEFAULT: None, **{f"{size} MiB": size for size in self.bucket_mb}}


def work(index: int, job: Job, turn: Barrier) -> None:
    """Measures as process `index` of `job.processes`; the one after the last is alone."""
    alone = index == job.processes or job.processes == 1
    ranks = Ranks() if alone else Ranks(index, job.processes, index, job.processes)
    if not alone:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port))
        os.environ.update(RANK=str(index), WORLD_SIZE=str(job.processes))
    device = choose_device(job.device, ranks)
    machine.prepare(device, job.threads, deterministic=False)
    with process_group(ranks, device):
        found = {"turns": turns(job, device, alone, turn)}
        if not alone:
            flat = torch.zeros(job.gradient_bytes // 4, device=device)
            found["all_reduce"] = timed(job, {"all-reduce": lambda: dist.all_reduce(flat)}, device)
            found["buckets"] = buckets(job, device)
    Path(job.folder, f"{index}.json").write_text(json.dumps(found))


def build(job: Job, device: torch.device, bucket_cap_mb: int | None = None) -> TrainState:
    torch.manual_seed(0)
    network = models.build(job.arch, num_classes=1000).to(memory_format=torch.channels_last)
    network = network.to(device)
    state = build_state(
        network,
        MEAN,
        STD,
        build_optimizer(network, "sgd", 0.01, weight_decay=1e-4),
        Schedule(0.01, steps_per_epoch=1000, epochs=1, kind="constant"),
        device,
        machine.DTYPES[job.dtype],
        compile=job.compile,
        bucket_cap_mb=bucket_cap_mb,
    )
    state.train_model.train()
    return state


def step_of(job: Job, state: TrainState, device: torch.device) -> Callable[[], object]:
    n, size = job.batch_size, job.img_size
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    targets = torch.randint(0, 1000, (n,), device=device)
    batch = Batch(pixels, targets, torch.ones(n, dtype=torch.bool, device=device))
    task = Classification(1000)
    metrics = task.metrics(device)
    return lambda: train_step(state, task, [batch], metrics)


def turns(job: Job, device: torch.device, alone: bool, turn: Barrier) -> Seconds:
    state = build(job, device)
    step = step_of(job, state, device)

    def apart() -> None:
        assert isinstance(state.train_model, DistributedDataParallel)
        with state.train_model.no_sync():
            step()

    def wait() -> None:
        """For the next turn's barrier, outside the time."""

    sides: Sides = {ALONE: step}
    if job.processes > 1:
        sides = {ALONE: step if alone else wait}
        sides |= {APART: wait, TOGETHER: wait} if alone else {APART: apart, TOGETHER: step}
    return timed(job, sides, device, turn.wait)


def buckets(job: Job, device: torch.device) -> Seconds:
    """A step's seconds by bucket size. Compiled ones do not take turns: the compiled graph is cut at the
    buckets, and torch.compile would take one network's graph for the next one."""

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
    # A GPU's host runs ahead, so that a single step's time would be that of launching it too.
    calls = 10 if device.type == "cuda" else 2
    return bench.time_in_turn(sides, job.rounds, 1, device, calls, before)
