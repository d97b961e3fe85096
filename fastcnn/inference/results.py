"""Predictions for one image, in pixels of the original: classes, boxes or a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastcnn.data.targets import IGNORE


class Label(NamedTuple):
    """A class and its probability."""

    class_id: int
    name: str
    score: float
    """Probability, 0 to 1."""


class Box(NamedTuple):
    """An object, in pixels of the upright original image."""

    class_id: int
    """Class number."""
    name: str
    """Class name."""
    score: float
    """0 to 1."""
    left: float
    top: float
    right: float
    """Exclusive, as `bottom`."""
    bottom: float


class Region(NamedTuple):
    """All pixels of a class in an image."""

    class_id: int
    name: str
    pixels: int
    share: float
    """Fraction of the image, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Base of the predictions for one image."""

    image: str
    """Path, or "image 0", "image 1", ... for images in memory."""
    width: int
    """Width of the original image in pixels; turned upright if training images were."""
    height: int


@dataclass(frozen=True, kw_only=True)
class Classified(Prediction):
    """Prediction of a classifier."""

    labels: tuple[Label, ...]
    """The most probable first: `top_k` classes of at least the threshold."""
    probabilities: np.ndarray
    """Probability of each class, float32 [num_classes]."""


@dataclass(frozen=True, kw_only=True)
class Detected(Prediction):
    """Prediction of a detector."""

    boxes: tuple[Box, ...]
    """The best first."""


@dataclass(frozen=True, kw_only=True)
class Segmented(Prediction):
    """Prediction of a segmentation network."""

    mask: np.ndarray
    """Class number of each pixel of the original image, uint8 [height, width]; 255 outside of the crop."""
    class_names: tuple[str, ...]

    @property
    def regions(self) -> tuple[Region, ...]:
        """The classes in the mask, the largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=IGNORE + 1)[: len(self.class_names)]
        order = np.argsort(-counts, kind="stable").tolist()
        return tuple(
            Region(i, self.class_names[i], int(counts[i]), float(counts[i] / self.mask.size))
            for i in order
            if counts[i]
        )
