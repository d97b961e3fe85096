"""What the processes of tests/test_progressive.py run, under torchrun: compiled steps at three sizes."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from small_network import small
from torch._dynamo.utils import counters

from fastcnn.data import Batch
from fastcnn.distributed import Ranks, process_group
from fastcnn.engine import train_step
from fastcnn.optim import build_optimizer
from fastcnn.schedules import Schedule
from fastcnn.state import build_state, to_training
from fastcnn.tasks import Classification
from fastcnn.warm_up import warm_up_sizes

CPU = torch.device("cpu")
SIZES = (16, 24, 32)


def main(output: Path) -> None:
    ranks = Ranks.from_environment()
    torch.compile = functools.partial(torch.compile, backend="eager")
    with process_group(ranks, CPU):
        torch.manual_seed(ranks.rank)  # DDP gives every rank the first one's weights
        network = small(10)
        optimizer = build_optimizer(network, "sgd", 0.05, weight_decay=0.0)
        schedule = Schedule(0.05, steps_per_epoch=3, epochs=1)
        settings = [0.5] * 3, [0.25] * 3, optimizer, schedule, CPU, torch.float32
        state = build_state(network, *settings, compile=True)
        counters.clear()
        warm_up_sizes(state, SIZES, 40, 4, 3)
        graphs = [counters["stats"]["unique_graphs"]]
        to_training(state)
        task = Classification(10)
        for size in SIZES:
            images = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
            batch = Batch(images, torch.arange(4), torch.ones(4, dtype=torch.bool))
            train_step(state, task, [batch, batch], task.metrics(CPU))
        graphs.append(counters["stats"]["unique_graphs"])
        torch.save({"graphs": graphs, "weights": list(network.parameters())}, output / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
