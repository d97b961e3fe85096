"""A small training outside a run: batches, states, losses, loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fastcnn.config import OptimizerSettings, OptName
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.state import StepOptions, TrainState, build_state
from fastcnn.engine.step import train_step
from fastcnn.models import build
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.tasks.base import Task
from fastcnn.tasks.classification import Classification
from small_tasks import OPTIONS, small_batch, task_for


class Listed:
    """A list of batches as a loader."""

    def __init__(self, data: list[Batch], num_samples: int | None) -> None:
        self.data = data
        self.epoch = 0
        self.skipped = 0
        self.num_samples = num_samples or sum(int(batch.mask.sum()) for batch in data)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.data)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TASK = Classification(10)


def batches(count: int, size: int = 8, seed: int = 0, arch: str = "lenet5") -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [small_batch(arch, size, generator) for _ in range(count)]


def state_of(arch: str = "lenet5", lr: float = 0.05, opt: OptName = "sgd", **settings: Any) -> TrainState:
    torch.manual_seed(0)
    network = build(arch, num_classes=10, **OPTIONS.get(arch, {})).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=1e-3), lr=lr)
    schedule = Schedule(peak=lr, steps_per_epoch=5, epochs=2, kind="constant")
    return build_state(network, optimizer, schedule, StepOptions(**settings), mean=MEAN, std=STD)


def losses(state: TrainState, data: list[Batch], accumulate: int = 1, task: Task = TASK) -> list[float]:
    values = []
    for i in range(0, len(data), accumulate):
        metrics = task.metrics(CPU)
        train_step(state, task, data[i : i + accumulate], metrics)
        values.append(metrics.compute()["loss"])
    return values


def loader_of(data: list[Batch], num_samples: int | None = None) -> Loader:
    return cast(Loader, Listed(data, num_samples))


def step_twice_without_waiting(
    state: TrainState, monkeypatch: pytest.MonkeyPatch, arch: str = "lenet5"
) -> None:
    """Run two steps; raise AssertionError if the second waits for the device."""
    task, data = task_for(arch), batches(2, arch=arch)
    metrics = task.metrics(CPU)
    train_step(state, task, data[:1], metrics)
    forbid_waiting(monkeypatch)
    train_step(state, task, data[1:], metrics)


def forbid_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace all operations that wait for the device by an AssertionError."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the host waited for the device")

    names = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu", "nonzero")
    for name in names:
        monkeypatch.setattr(Tensor, name, forbidden)
    monkeypatch.setattr(torch, "nonzero", forbidden)
