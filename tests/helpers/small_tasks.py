"""A small network for each task, and random batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcnn.config import task_of
from fastcnn.data.batch import Batch
from fastcnn.data.targets import IGNORE, NO_BOX
from fastcnn.tasks.base import Task
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection.task import Detection
from fastcnn.tasks.segmentation import Segmentation

CLASSES, SIZE = 10, 32
ARCHS = ("lenet5", "unet/lenet5", "yolo/lenet5", "yolov1/lenet5")
OPTIONS: dict[str, dict[str, Any]] = {
    "yolo/lenet5": {"strides": (4,), "anchors": (6, 8, 12, 10)},
    "yolov1/lenet5": {"strides": (4,)},
}
"""Constructor arguments by network."""


def task_for(arch: str) -> Task:
    kind = task_of(arch)
    if kind == "segmentation":
        return Segmentation(CLASSES, "ce")  # Dice of a batch is not the mean over its parts
    return Detection(CLASSES) if kind == "detection" else Classification(CLASSES)


def small_batch(arch: str, size: int, generator: torch.Generator) -> Batch:
    """Return random images and targets in which all samples have equal weight in the mean loss.

    Their masks ignore the same number of pixels. Their boxes have the same sides, so the same number of
    predictions is trained.
    """

    def draw(*shape: int, high: int = CLASSES, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(0, high, shape, dtype=dtype, generator=generator)

    images = draw(size, SIZE, SIZE, 3, high=256, dtype=torch.uint8).permute(0, 3, 1, 2)
    kind = task_of(arch)
    if kind == "classification":
        targets = draw(size)
    elif kind == "segmentation":
        targets = draw(size, SIZE, SIZE, dtype=torch.uint8)
        targets[:, :3] = IGNORE
    else:
        corner, sides = draw(size, 3, 2, high=20).float(), torch.tensor([[8.0, 10], [12, 9], [0, 0]])
        targets = torch.cat([draw(size, 3, 1), corner, corner + sides, torch.zeros(size, 3, 1)], 2)
        targets[:, 1, 5], targets[:, 2, 0] = 1, NO_BOX  # a box, a crowd, none
    return Batch(images, targets, torch.ones(size, dtype=torch.bool))
