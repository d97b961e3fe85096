"""Tasks: what targets mean, the loss, the metrics and how they are drawn. The engine calls a task and knows
nothing else of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcnn.config import Config, task_of
from fastcnn.data.batch import Batch
from fastcnn.errors import UserError
from fastcnn.metrics import Metrics
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection import Detection
from fastcnn.tasks.segmentation import Segmentation

__all__ = ["Classification", "Detection", "Segmentation", "Task", "build_task"]


class Task(Protocol):
    best_metric: str
    """The metric, among those of validation, that decides which epoch is the best: larger is better."""
    pictured: bool
    """Whether a run's folder gets pictures of what validation found."""

    def loss(self, outputs: object, batch: Batch, train: bool) -> Tensor:
        """The mean loss of the real samples, a scalar; training may regularize it."""

    def metrics(self, device: torch.device, train: bool = True) -> Metrics:
        """Fresh metrics: of training those that cost next to nothing, of validation all."""

    def describe(self, metrics: dict[str, float]) -> str:
        """The metrics as a person reads them, such as "loss 1.234  acc1 56.7%"."""

    def predict(self, outputs: object) -> list[np.ndarray]:
        """What was found in each sample of a batch; waits for the device."""

    def in_words(self, found: np.ndarray, class_names: Sequence[str]) -> str:
        """What was found in a sample, such as "cat 98%"."""

    def draw(self, image: np.ndarray, found: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        """A sample, uint8 [H, W, 3], with what was found in it."""

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        """A sample with its target: an element of `Batch.targets`."""


def build_task(config: Config, num_classes: int) -> Task:
    """The task that follows from `--arch`.

    Raises:
        UserError: settings that do not fit the classes, or a package that is not installed.
    """
    kind = task_of(config.arch)
    if kind == "segmentation":
        return Segmentation(num_classes, config.seg_loss, config.class_weights)
    if kind == "detection":
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise UserError(f"--arch {config.arch}: validation needs a package: pip install faster-coco-eval")
        return Detection(num_classes)
    return Classification(num_classes, config.label_smoothing)
