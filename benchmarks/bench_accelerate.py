"""A training step of torchvision's and timm's networks before and after `fastcnn_kernels.accelerate`.

    python -m pytest benchmarks/bench_accelerate.py
    python -m pytest benchmarks/bench_accelerate.py -k timm

Both sides are tuned eager PyTorch: channels-last, bf16 autocast, fused SGD, cuDNN benchmark, on a batch
that is already on the GPU. The second one has called `accelerate` with that batch, which times each
depthwise layer and each normalization, and replaces those where ours is faster.
"""

from __future__ import annotations

import dataclasses
import functools
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import pytest

from comparison import Comparison
from fastcnn.bench.training_steps import Optimizations, Workload, build_step
from fastcnn.bench.worker import Worker, calls_of_a_turn, time_workers
from fastcnn.runtime.distributed import Ranks, choose_device

DEVICE = choose_device("auto", Ranks())
BASELINE, OURS = "eager", "fastcnn accelerate"
TUNED = Optimizations(cudnn_benchmark=True, channels_last=True, bf16=True, fused=True)
SIDES = {BASELINE: TUNED, OURS: dataclasses.replace(TUNED, kernels="accelerate")}


class Row(NamedTuple):
    arch: str
    img_size: int = 224
    batch_size: int = 256

    def __str__(self) -> str:
        return f"{self.arch.replace('/', '-')}-{self.img_size}px-batch{self.batch_size}"


ROWS = (
    Row("torchvision/mobilenet_v2"),
    Row("torchvision/efficientnet_b0"),
    Row("torchvision/convnext_tiny"),
    Row("timm/mobilenetv2_100"),
    Row("timm/efficientnet_b0"),
    Row("timm/convnext_tiny"),
)


@functools.cache
def measure(row: Row, *, quick: bool) -> Comparison:
    workload = Workload(row.arch, row.img_size, row.batch_size, DEVICE.type)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(partial(build_step, workload, optimizations), DEVICE))
            for name, optimizations in SIDES.items()
        }
        calls = calls_of_a_turn(workers[BASELINE], DEVICE)
        seconds = time_workers(workers, 3 if quick else 15, calls=calls)
    reference = workers[BASELINE].start.losses
    sides = {
        name: {
            "build_seconds": worker.start.build_seconds,
            "peak_bytes": worker.start.peak_bytes,
            "loss_difference": max(abs(a - b) / abs(b) for a, b in zip(worker.start.losses, reference)),
        }
        for name, worker in workers.items()
    }
    settings = {**row._asdict(), "calls": calls}
    return Comparison(
        what=f"accelerate-{row}",
        baseline=BASELINE,
        seconds=seconds,
        device=DEVICE,
        work=row.batch_size,
        settings=settings,
        sides=sides,
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_accelerate(row, side, quick, save, play):
    if DEVICE.type != "cuda":
        pytest.skip("needs a CUDA GPU")
    comparison = measure(row, quick=quick)
    save(comparison)
    play(comparison, side)
