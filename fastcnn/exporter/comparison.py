"""Comparison of an exported file with PyTorch on the same images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

PAIRED = 0.01
"""Boxes of one class are the same one if they differ by at most this share of the largest value."""


@dataclass(kw_only=True)
class Comparison:
    """Largest difference and agreement over batches, of the eager network with a file."""

    multi_label: bool
    differences: list[float] = field(default_factory=list)
    largest: float = 0.0
    """Largest absolute output of the eager network."""
    same: int = 0
    total: int = 0
    """Compared predictions: classes of images, of pixels, labels of images, or boxes."""

    @property
    def difference(self) -> float:
        """Largest difference, relative to the largest of the eager outputs."""
        return max(self.differences, default=0.0) / (self.largest or 1.0)

    @property
    def agreement(self) -> float:
        """Share of equal predictions, 0 to 1."""
        return self.same / self.total if self.total else 1.0

    def add_logits(self, eager: Tensor, exported: Tensor) -> None:
        """Add logits [N, classes, ...]; a prediction is the largest, with `multi_label` each positive one."""
        eager, exported = eager.float().cpu(), exported.float().cpu()
        self.differences.append(float((eager - exported).abs().max()))
        self.largest = max(self.largest, float(eager.abs().max()))
        same = (eager > 0) == (exported > 0) if self.multi_label else eager.argmax(1) == exported.argmax(1)
        self.same += int(same.sum())
        self.total += same.numel()

    def add_boxes(self, eager: np.ndarray, exported: np.ndarray, size: int) -> None:
        """Add the boxes [k, 6] of an image, as of `Detection.predict`.

        Boxes of nearly equal scores may change places, so each is paired with the nearest one of its class.
        Coordinates count in sides of the image, `size` pixels.
        """
        self.largest = 1.0
        self.total += max(len(eager), len(exported))
        scale = np.array([size] * 4 + [1.0])
        for row in eager:
            others = exported[exported[:, 0] == row[0]]
            if len(others):
                nearest = float((np.abs(others[:, 1:] - row[1:]) / scale).max(1).min())
                if nearest <= PAIRED:
                    self.same += 1
                    self.differences.append(nearest)
