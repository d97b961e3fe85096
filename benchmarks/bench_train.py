"""A training step of fastcnn against eager PyTorch's, torchvision's and timm's, in turn.

    python -m pytest benchmarks/bench_train.py
    python -m pytest benchmarks/bench_train.py -k resnet50 --quick

Each side is a whole step (forward, loss, backward, update) on a batch that is already on the device, in a
process of its own with its default allocator:
  eager fp32 NCHW    torchvision's network, float images, torch.optim.SGD
  torchvision AMP    torchvision's reference recipe with --amp (references/classification/train.py)
  careful eager      channels-last, bf16 autocast, fused SGD, cuDNN benchmark
  torch.compile      the same, compiled (on a GPU)
  timm               timm's network and step with --amp --amp-dtype bfloat16 --channels-last (train.py)
  fastcnn            its step on a uint8 batch, with the automatic choices for this machine
  fastcnn recorded   the same with --cuda-graph (on a GPU)

All sides have the same network and number of classes. timm is left out where it lacks the network, and the
bf16 sides on a processor without bf16 arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from comparison import Comparison
from fastcnn.bench.training_steps import LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY, Workload, build_own_step
from fastcnn.bench.worker import Worker, WorkerError, calls_of_a_turn, time_workers
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.setup import cpu_trials
from sizes import TRAIN, Train

BASELINE, OURS, COMPILED, RECORDED = "eager fp32 NCHW", "fastcnn", "torch.compile", "fastcnn recorded"
SIDES = (BASELINE, "torchvision AMP", "careful eager", COMPILED, "timm", RECORDED, OURS)
DEVICE = choose_device("auto", Ranks())
LIMIT = None if DEVICE.type == "cuda" else 300.0
"""Time limit in seconds for each result of a side, on the CPU."""
IN_TORCHVISION = {"alexnet_torchvision": "alexnet"}
"""torchvision's names of fastcnn's networks, where they differ."""


def floats(workload: Workload, *, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    """Normalized float images and targets of the workload."""
    batch = workload.batch()
    mean, std = (torch.tensor(v, device=workload.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return ((batch.images / 255 - mean) / std).contiguous(memory_format=layout), batch.targets


def torchvision_network(workload: Workload) -> nn.Module:
    torch.manual_seed(0)
    return (
        getattr(torchvision.models, IN_TORCHVISION.get(workload.arch, workload.arch))(num_classes=1000)
        .to(workload.device)
        .train()
    )


def eager(workload: Workload, *, careful: bool = False, compile: bool = False) -> Callable[[], Tensor]:
    """A step in plain PyTorch: fp32 NCHW, or with `careful` bf16 channels-last and fused SGD."""
    network = torchvision_network(workload)
    run = torch.compile(network, dynamic=False) if compile else network
    images, targets = floats(workload, channels_last=careful)
    if careful:
        network = network.to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True
    optimizer = torch.optim.SGD(
        network.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=careful or None
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(workload.device, dtype=torch.bfloat16, enabled=careful):
            loss = F.cross_entropy(run(images), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def torchvision_amp(workload: Workload) -> Callable[[], Tensor]:
    """The step of train_one_epoch in torchvision 0.26's references.

    It has autocast with its default dtype and a scaler on CUDA, and reads loss and accuracy in every step.
    """
    network = torchvision_network(workload)
    images, targets = floats(workload)
    torch.backends.cudnn.benchmark = True
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(workload.device, enabled=workload.device == "cuda")

    def step() -> Tensor:
        with torch.autocast(workload.device):
            output = network(images)
            loss = criterion(output, targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        hits = output.topk(5).indices.eq(targets[:, None])
        for value in (loss, hits[:, 0].sum(), hits.sum()):
            value.item()
        return loss.detach()

    return step


def timm_step(workload: Workload) -> Callable[[], Tensor]:
    """The step of train_one_epoch in timm 1.0, with its network, optimizer and loss."""
    import timm
    from timm.optim import create_optimizer_v2

    torch.manual_seed(0)
    sized = {"img_size": workload.img_size} if workload.arch.startswith("vit") else {}
    name = IN_TIMM.get(workload.arch, workload.arch)
    network = timm.create_model(name, num_classes=1000, **sized).to(workload.device).train()
    network = network.to(memory_format=torch.channels_last)
    images, targets = floats(workload, channels_last=True)
    torch.backends.cudnn.benchmark = True
    optimizer = create_optimizer_v2(network, "sgd", lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    criterion = nn.CrossEntropyLoss()

    def step() -> Tensor:
        with torch.autocast(workload.device, dtype=torch.bfloat16):
            loss = criterion(network(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


IN_TIMM = {"mobilenet_v2": "mobilenetv2_100", "vit_b_16": "vit_base_patch16_224"}
NOT_IN_TIMM = ("alexnet_torchvision",)


@functools.cache
def measure(row: Train, *, quick: bool) -> Comparison:
    workload = Workload(row.arch, row.img_size, row.batch_size, DEVICE.type)
    machine.prepare(DEVICE, machine.cores_per_process(Ranks()), deterministic=False)  # as before a training
    arithmetic, why, compiled = choose_arithmetic(workload)
    left_out = reasons(row)
    with ExitStack() as stack:
        workers = start(builds(workload, arithmetic, compile=compiled), left_out, stack)
        calls = calls_of_a_turn(workers[BASELINE], DEVICE)
        seconds = time_workers(workers, 3 if quick else 15, calls=calls)
    layouts = {
        BASELINE: "fp32 NCHW",
        "torchvision AMP": f"{'fp16' if DEVICE.type == 'cuda' else 'bf16'} NCHW",
        "careful eager": "bf16 channels-last",
        COMPILED: "bf16 channels-last",
        "timm": "bf16 channels-last",
        RECORDED: str(arithmetic),
        OURS: str(arithmetic),
    }
    reference = workers[BASELINE].start.losses[0]
    return Comparison(
        what=f"train-{row}",
        baseline=BASELINE,
        seconds=seconds,
        device=DEVICE,
        work=row.batch_size,
        settings={**row._asdict(), "warm_up": 3 + calls, "calls": calls, "chosen_because": why},
        sides={
            name: {
                "arithmetic": layouts[name],
                "first_seconds": worker.start.first_seconds,
                "peak_bytes": worker.start.peak_bytes,
                # The sides start from other random weights of the same distributions.
                "first_loss_beyond_baseline": worker.start.losses[0] / reference - 1,
            }
            for name, worker in workers.items()
        },
        left_out=left_out,
    )


def choose_arithmetic(workload: Workload) -> tuple[cpu_trials.Arithmetic, str, bool]:
    """Dtype and layout that `fastcnn train` chooses here, the reason, and whether it compiles."""
    if DEVICE.type == "cuda":
        return cpu_trials.Arithmetic("bf16", channels_last=True), "the GPU has it", True
    shape = workload.batch_size, 3, workload.img_size, workload.img_size
    found, why = cpu_trials.probe_arithmetic(workload.network(), shape)
    return found, why, False


def builds(
    workload: Workload, arithmetic: cpu_trials.Arithmetic, *, compile: bool
) -> dict[str, Callable[[], Any]]:
    """Functions that build the step of each side, in its process."""
    own: dict[str, Any] = {"channels_last": arithmetic.channels_last, "compile": compile}
    return {
        BASELINE: partial(eager, workload),
        "torchvision AMP": partial(torchvision_amp, workload),
        "careful eager": partial(eager, workload, careful=True),
        COMPILED: partial(eager, workload, careful=True, compile=True),
        "timm": partial(timm_step, workload),
        RECORDED: partial(build_own_step, workload, arithmetic.dtype, **own, cuda_graph=True),
        OURS: partial(build_own_step, workload, arithmetic.dtype, **own),
    }


def reasons(row: Train) -> dict[str, str]:
    """Sides that cannot be measured here, with the reason."""
    left_out = {} if DEVICE.type == "cuda" else dict.fromkeys((COMPILED, RECORDED), "needs a CUDA GPU")
    if not machine.is_native("bf16", DEVICE):
        left_out |= dict.fromkeys(("torchvision AMP", "careful eager", "timm"), machine.NO_BF16)
    if row.arch in NOT_IN_TIMM:
        left_out["timm"] = "timm has no AlexNet"
    return left_out


def start(
    steps: dict[str, Callable[[], Any]], left_out: dict[str, str], stack: ExitStack
) -> dict[str, Worker]:
    """Start a worker for each side; sides that fail are added to `left_out`.

    Raises:
        WorkerError: the baseline failed.
    """
    workers = {}
    for name, build in steps.items():
        if name in left_out:
            continue
        try:  # fastcnn's step prepares its process as a training does
            workers[name] = stack.enter_context(Worker(build, DEVICE, limit=LIMIT))
        except WorkerError as error:
            if name == BASELINE:
                raise
            left_out[name] = f"failed: {error}"
    return workers


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("row", TRAIN["cuda" if DEVICE.type == "cuda" else "cpu"], ids=str)
def test_training_step(row, side, quick, save, play):
    comparison = measure(row, quick=quick)
    save(comparison)
    play(comparison, side)
