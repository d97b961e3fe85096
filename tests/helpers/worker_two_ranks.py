"""Work of two ranks for tests/runtime/test_distributed.py."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastcnn.data.batch import Batch
from fastcnn.data.transforms.mixing import Mixing
from fastcnn.engine.state import stop_if_not_finite, unfreeze
from fastcnn.engine.step import train_step
from fastcnn.errors import TrainingError, UserError
from fastcnn.models import build
from fastcnn.runtime.distributed import (
    Ranks,
    any_rank,
    average_buffers,
    barrier,
    from_main,
    gather_to_main,
    local_main_first,
    read_once_per_node,
)
from fastcnn.tasks.classification import Classification
from small_state import small_state
from small_tasks import OPTIONS, small_batch, task_for

CPU = torch.device("cpu")


def train(
    arch: str,
    rank: int,
    world_size: int,
    accumulate: int = 1,
    spoil: bool = False,
    unfreeze_at: int | None = None,
    bucket_cap_mb: int | None = None,
) -> dict[str, object]:
    """Train for four updates from 16 images each, of which this rank gets its share.

    All but the classifier is frozen until update `unfreeze_at`.
    """
    torch.manual_seed(0 if rank == 0 else 99)  # DDP broadcasts the weights of rank 0
    network = build(arch, num_classes=10, **OPTIONS.get(arch, {}))
    state = small_state(network, unfreeze_at is not None, bucket_cap_mb=bucket_cap_mb)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    task = task_for(arch)
    metrics = task.metrics(CPU)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        own = slice(rank * 16 // world_size, (rank + 1) * 16 // world_size)
        share = (values[own].chunk(accumulate) for values in small_batch(arch, 16, generator)[:3])
        batches = [Batch(*parts) for parts in zip(*share)]
        if spoil and step == 2 and rank == world_size - 1:
            with torch.no_grad():
                network.get_parameter("fc7.bias").fill_(float("nan"))
        if step == unfreeze_at:
            unfreeze(state)
        train_step(state, task, batches, metrics)
    try:
        stop_if_not_finite(state)
        error = ""
    except TrainingError as found:
        error = str(found)
    parameters = {name: p.detach().clone() for name, p in network.named_parameters()}
    return {
        "parameters": parameters,
        "metrics": metrics.compute(),
        "error": error,
        "bucket bytes": getattr(state.train_model, "bucket_bytes_cap", None),
    }


def mixes(rank: int) -> list[list[float]]:
    """Return the mixing parameters of two steps with two batches each."""

    class Seen(Classification):
        def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
            assert batch.mix is not None
            found.append(batch.mix.tolist())
            return super().loss(outputs, batch, train=train)

    found: list[list[float]] = []
    state, task = small_state(build("lenet5", num_classes=10), freeze=False), Seen(10)
    state.options = dataclasses.replace(state.options, mixing=Mixing(mixup=1.0))
    for _ in range(2):
        batch = small_batch("lenet5", 4, torch.Generator().manual_seed(rank))
        train_step(state, task, [batch, batch], task.metrics(CPU))
    return found


def mistake_on_one(ranks: Ranks) -> str:
    def compute() -> int:
        if ranks.rank == 1:
            raise UserError("rank 1 has no such folder")
        return 1

    try:
        local_main_first(compute, ranks)
    except UserError as error:
        return str(error)
    return ""


def read_slowly(seconds: float, limit: float) -> list[int]:
    """Return what a rank read while a collective would end after `limit` seconds."""
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=limit))
    ranks, found = Ranks.from_environment(), []

    def compute() -> int:
        time.sleep(seconds if ranks.rank == 0 else 0)
        return ranks.rank

    for _ in range(2):
        found.append(local_main_first(compute, ranks))
    return found


def read_once(ranks: Ranks, *, picklable: bool) -> dict[str, object]:
    """Return what `read_once_per_node` gave, and whether this rank read it and maps a file."""
    calls = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        other = None if picklable else (lambda: None)
        return {"rank": ranks.rank, "array": np.arange(100_000), "turned": np.eye(3)[:, ::2], "other": other}

    found = read_once_per_node(compute, ranks)
    barrier()
    maps = Path("/proc/self/maps").read_text().splitlines() if sys.platform.startswith("linux") else []
    found["array"][0] = 7 + ranks.rank  # a private copy of the page
    del found["other"]
    return {"found": found, "calls": len(calls), "maps": [line for line in maps if "/fastcnn-" in line]}


def results() -> dict[str, object]:
    ranks = Ranks.from_environment()
    norm = nn.BatchNorm2d(2)
    norm.running_mean = torch.tensor([1.0, 2.0]) + ranks.rank
    norm.running_var = torch.tensor([1.0, 2.0]) + ranks.rank
    average_buffers(norm, fixed=[norm.running_var])
    return {
        "lenet5": train("lenet5", ranks.rank, ranks.world_size),
        "lenet5 accumulated": train("lenet5", ranks.rank, ranks.world_size, accumulate=2),
        "resnet20": train("resnet20", ranks.rank, ranks.world_size),
        "unet/lenet5": train("unet/lenet5", ranks.rank, ranks.world_size),
        "yolo/lenet5": train("yolo/lenet5", ranks.rank, ranks.world_size),
        "yolo/lenet5 accumulated": train("yolo/lenet5", ranks.rank, ranks.world_size, accumulate=2),
        "lenet5 unfrozen": train("lenet5", ranks.rank, ranks.world_size, unfreeze_at=2, bucket_cap_mb=3),
        "spoiled": train("lenet5", ranks.rank, ranks.world_size, spoil=True),
        "any": [any_rank(ranks.rank == 1, CPU), any_rank(False, CPU)],
        "from main": from_main(lambda: f"rank {ranks.rank}"),
        "gathered": gather_to_main(ranks.rank),
        "mistake": mistake_on_one(ranks),
        "mixes": mixes(ranks.rank),
        "read once": read_once(ranks, picklable=True),
        "read by each": read_once(ranks, picklable=False),
        "mean": norm.running_mean,
        "fixed": norm.running_var,
        "backend": dist.get_backend(),
    }
