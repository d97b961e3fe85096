"""Interface between tasks and the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.tasks.metrics import Metrics


class Task(Protocol):
    """Loss, metrics, predictions and drawings of a kind of targets."""

    best_metric: str
    """Validation metric that selects the best epoch; larger is better."""
    pictured: bool
    """True if the run folder gets pictures of validation predictions."""

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        """Return the mean loss of the real samples, a scalar; regularization applies with `train` only."""

    def metrics(self, device: torch.device, *, train: bool = True) -> Metrics:
        """Return new metrics: for training only those of negligible cost, for validation all."""

    def describe(self, metrics: dict[str, float]) -> str:
        """Format metrics for the log, such as "loss 1.234  acc1 56.7%"."""

    def predict(self, outputs: object) -> list[np.ndarray]:
        """Return the predictions for each sample of a batch; syncs with the device."""

    def format_prediction(self, predictions: np.ndarray, class_names: Sequence[str]) -> str:
        """Format the predictions for a sample, such as "cat 98%"."""

    def draw(self, image: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        """Draw predictions into a sample, uint8 [H, W, 3]."""

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        """Draw a target, an element of `Batch.targets`, into a sample."""
