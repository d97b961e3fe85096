"""Picture of validation samples, targets beside predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fastcnn import files
from fastcnn.data.batch import Batch
from fastcnn.tasks.base import Task
from fastcnn.viz.pictures import side_by_side

COUNT = 12
"""Number of samples, evenly spaced over the validation set."""


class Gallery:
    """Collection of samples during a validation.

    Args:
        task: draws targets and predictions.
        batches: number of batches in the validation.
    """

    def __init__(self, task: Task, class_names: Sequence[str], batches: int) -> None:
        self.task = task
        self.class_names = class_names
        self.batches = batches
        self.step = 0
        self.pairs: list[tuple[Image.Image, Image.Image]] = []

    def sample(self, batch: Batch, outputs: object) -> None:
        """Select samples of a batch; syncs with the device if there are any."""
        size = len(batch.mask)
        last = max((self.batches - 1) * size, size - 1)  # the last batch may be padded
        places = np.linspace(0, last, COUNT).astype(int) - self.step * size
        self.step += 1
        chosen = sorted({int(i) for i in places if 0 <= i < size})
        if not chosen:
            return
        real = batch.mask.tolist()
        predictions = self.task.predict(outputs)
        for i in chosen:
            if real[i]:
                pixels, target = rgb(batch.images[i]), batch.targets[i].cpu().numpy()
                truth = self.task.draw_truth(pixels, target, self.class_names)
                self.pairs.append((truth, self.task.draw(pixels, predictions[i], self.class_names)))

    def save(self, path: Path) -> None:
        """Write the samples as a PNG, if there are any."""
        if self.pairs:
            files.save_picture(side_by_side(self.pairs), path, "the pictures")


def rgb(image: Tensor) -> np.ndarray:
    """Convert an image uint8 [C, H, W] on any device to [H, W, 3]: its first three channels, or its first."""
    pixels = image[: 3 if len(image) > 2 else 1].permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
