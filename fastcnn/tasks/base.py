"""The interface of a task. The engine calls a task and knows nothing else of it."""

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
    best_metric: str
    """The metric, among those of validation, that decides which epoch is the best: larger is better."""
    pictured: bool
    """Whether a run's folder gets pictures of what validation found."""

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        """The mean loss of the real samples, a scalar; training may regularize it."""

    def metrics(self, device: torch.device, *, train: bool = True) -> Metrics:
        """Fresh metrics: of training those that cost next to nothing, of validation all."""

    def describe(self, metrics: dict[str, float]) -> str:
        """The metrics as a person reads them, such as "loss 1.234  acc1 56.7%"."""

    def predict(self, outputs: object) -> list[np.ndarray]:
        """What was found in each sample of a batch; waits for the device."""

    def format_prediction(self, predictions: np.ndarray, class_names: Sequence[str]) -> str:
        """What was found in a sample, such as "cat 98%"."""

    def draw(self, image: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        """A sample, uint8 [H, W, 3], with what was found in it."""

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        """A sample with its target: an element of `Batch.targets`."""
