"""Tasks: what targets mean, the loss and the metrics. The engine calls a task and knows nothing else."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.metrics import Metrics
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection import Detection

__all__ = ["Classification", "Detection", "Task"]


class Task(Protocol):
    best_metric: str
    """The metric, among those of `metrics`, that decides which epoch is the best: larger is better."""

    def loss(self, outputs: object, batch: Batch, train: bool) -> Tensor:
        """The mean loss of the real samples, a scalar; training may regularize it."""

    def metrics(self, device: torch.device) -> Metrics:
        """Fresh metrics."""

    def describe(self, metrics: dict[str, float]) -> str:
        """The metrics as a person reads them, such as "loss 1.234  acc1 56.7%"."""
