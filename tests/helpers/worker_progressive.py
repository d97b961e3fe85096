"""Work of two ranks for tests/config/test_progressive.py: compiled steps at three sizes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._dynamo.utils import counters

from fastcnn.config import OptimizerSettings
from fastcnn.data.batch import Batch
from fastcnn.engine.state import StepOptions, build_state, to_training
from fastcnn.engine.step import train_step
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime.distributed import Ranks
from fastcnn.setup.warmup import InputShapes, warm_up_sizes
from fastcnn.tasks.classification import Classification
from small_network import small

CPU = torch.device("cpu")
SIZES = (16, 24, 32)


def results() -> dict[str, Any]:
    """Return the graphs compiled before the first step and in total, and the weights after all steps."""
    torch.compile = functools.partial(torch.compile, backend="eager")
    torch.manual_seed(Ranks.from_environment().rank)  # DDP broadcasts the weights of rank 0
    network = small(10)
    optimizer = build_optimizer(network, OptimizerSettings(weight_decay=0.0), lr=0.05)
    schedule = Schedule(peak=0.05, steps_per_epoch=3, epochs=1)
    options = StepOptions(compile=True)
    state = build_state(network, optimizer, schedule, options, mean=[0.5] * 3, std=[0.25] * 3)
    counters.clear()
    warm_up_sizes(state, InputShapes(sizes=SIZES, val_size=40, batch_size=4, channels=3))
    graphs = [counters["stats"]["unique_graphs"]]
    to_training(state)
    task = Classification(10)
    for size in SIZES:
        images = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        batch = Batch(images, torch.arange(4), torch.ones(4, dtype=torch.bool))
        train_step(state, task, [batch, batch], task.metrics(CPU))
    graphs.append(counters["stats"]["unique_graphs"])
    return {"graphs": graphs, "weights": [p.detach() for p in network.parameters()]}
