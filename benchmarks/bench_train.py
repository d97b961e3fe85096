"""fastcnn's training step against eager PyTorch's, in turn in one process.

    python benchmarks/bench_train.py --arch resnet50 --img-size 64 --batch-size 32

Three sides, each the whole step (forward, loss, backward, update) on a batch that is already on the device:
  eager fp32 NCHW    torchvision's network as it comes, float images, torch.optim.SGD
  careful eager      the same with channels-last and bf16 autocast, fused SGD, cuDNN benchmark
  fastcnn            its step on a uint8 batch, with the dtype and compilation that `auto` chooses here

Writes JSON to benchmarks/results/MACHINE/. The memory allocator is the default one on all sides, which share
the process; a training run of fastcnn adjusts it (fastcnn/machine.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
import tyro
from torch import Tensor, nn

from fastcnn import bench, machine, models
from fastcnn.data import Batch
from fastcnn.distributed import Ranks, choose_device
from fastcnn.engine import build_state, train_step
from fastcnn.optim import Schedule, build_optimizer
from fastcnn.tasks import Classification

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BASELINE, CAREFUL, OURS = "eager fp32 NCHW", "careful eager", "fastcnn"


@dataclass(frozen=True)
class Settings:
    arch: str = "resnet50"
    """A network that both torchvision and fastcnn have."""
    img_size: int = 64
    batch_size: int = 32
    rounds: int = 15
    """Timed steps of each side."""
    warmup: int = 3
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile fastcnn's side; auto: on with CUDA, as in training."""
    output: str | None = None
    """JSON file; by default under benchmarks/results/."""


def eager_step(network: nn.Module, images: Tensor, targets: Tensor, careful: bool) -> Callable[[], object]:
    if careful:
        network = network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=careful or None
    )

    def step() -> None:
        optimizer.zero_grad()
        with torch.backends.cudnn.flags(enabled=True, benchmark=careful):
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=careful):
                loss = F.cross_entropy(network(images), targets)
            loss.backward()
        optimizer.step()

    return step


def fastcnn_step(
    settings: Settings, batch: Batch, device: torch.device, dtype: str, network: nn.Module
) -> Callable[[], object]:
    state = build_state(
        network.to(device),
        MEAN,
        STD,
        build_optimizer(network, "sgd", 0.01, weight_decay=1e-4),
        Schedule(0.01, steps_per_epoch=1000, epochs=1, kind="constant"),
        device,
        machine.DTYPES[dtype],
        compile=settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda"),
    )
    state.train_model.train()
    task = Classification(1000)
    metrics = task.metrics(device)
    return lambda: train_step(state, task, [batch], metrics)


def main(settings: Settings) -> None:
    device = choose_device("auto", Ranks())
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    n, size = settings.batch_size, settings.img_size
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    targets = torch.randint(0, 1000, (n,), device=device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
    images = ((pixels / 255 - mean) / std).contiguous()

    ours = models.build(settings.arch, num_classes=1000).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        dtype, why = "bf16", "the GPU has it"
    else:
        dtype, why = machine.probe_amp_dtype(ours, size, 3, channels_last=True)
    build = getattr(torchvision.models, settings.arch)
    batch = Batch(pixels, targets, torch.ones(n, dtype=torch.bool, device=device))
    sides = {
        BASELINE: eager_step(build().to(device), images, targets, careful=False),
        CAREFUL: eager_step(build().to(device), images, targets, careful=True),
        OURS: fastcnn_step(settings, batch, device, dtype, ours),
    }
    # On a GPU the host runs ahead, so a single step's time would be that of launching it too.
    steps = 10 if device.type == "cuda" else 1
    seconds = bench.time_in_turn(sides, settings.rounds, settings.warmup, device, calls=steps)

    # Neighbouring steps see the same machine, so the ratio is taken round by round.
    ratios = {name: [a / b for a, b in zip(seconds[BASELINE], seconds[name])] for name in sides}
    print(f"{settings.arch}, {size} px, batch {n}, {settings.rounds} steps of each in turn")
    print(f"{'':<18}{'ms a step':>10}{'img/s':>9}  times {BASELINE} (quartiles)")
    for name in sides:
        ratio, median = bench.spread(bench.summary(ratios[name])), statistics.median(seconds[name])
        print(f"{name:<18}{1000 * median:>10.1f}{n / median:>9,.0f}  {ratio}")
    print(f"fastcnn's dtype: {dtype}, {why}")
    name = f"train-{settings.arch}-{size}px-batch{n}"
    path = bench.results_file(Path(__file__).parent, name, settings.output, device)
    bench.write_json(
        path,
        {
            "what": "training step",
            "environment": bench.environment(device),
            "settings": vars(settings),
            "fastcnn_dtype": dtype,
            "seconds": {name: bench.summary(values) for name, values in seconds.items()},
            "speedup": {name: bench.summary(values) for name, values in ratios.items()},
        },
    )
    print(path)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
