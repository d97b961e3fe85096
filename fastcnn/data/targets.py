"""What samples mean besides their pixels, and how that moves with them: class numbers, masks, boxes.

All of it is a pure function of the images and their geometry, so it is the same whichever backend loads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image

from fastcnn.data.decode import DecodeError
from fastcnn.data.transforms.geometry import Geometry

IGNORE = 255
"""In a mask: a pixel that is neither trained on nor counted."""
NO_BOX = -1
"""Class of the rows that fill up an image's boxes."""
MIN_VISIBLE = 0.25
"""A box stays, cut off, if a crop leaves at least this share of its area."""


class Targets(Protocol):
    """Of N images."""

    threads: bool
    """Whether `load` takes long enough to be done beside the training."""

    def take(self, indices: np.ndarray) -> Targets:
        """Those of the images at `indices`, in that order."""

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        """Targets of a batch, as `fastcnn.data.batch.Batch` holds them.

        Args:
            images: [N] numbers.
            geometry: what becomes of them.
            size: pixels a side of the samples.
        """


@dataclass(frozen=True)
class Labels:
    """One class for each image."""

    values: np.ndarray
    """[N] int64"""
    threads = False

    def take(self, indices: np.ndarray) -> Labels:
        return Labels(self.values[indices])

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        return self.values[images]


@dataclass(frozen=True)
class Masks:
    """One class for each pixel of each image."""

    table: np.ndarray
    """[256] uint8: the class number, or `IGNORE`, of each value in the files (or arrays)."""
    paths: tuple[str, ...] = ()
    """N files: palette or grey images of one byte a pixel."""
    arrays: Sequence[np.ndarray] | None = None
    """N of uint8 [H, W], in place of files."""
    threads = True

    def take(self, indices: np.ndarray) -> Masks:
        chosen = indices.tolist()
        arrays = None if self.arrays is None else [self.arrays[i] for i in chosen]
        return Masks(self.table, tuple(self.paths[i] for i in chosen) if self.paths else (), arrays)

    def read(self, index: int) -> np.ndarray:
        """Class numbers, uint8 [H, W]; DecodeError if the file has none."""
        values = self.arrays[index] if self.arrays is not None else read_mask(self.paths[index])
        return self.table[values]

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        masks = np.full((len(images), size, size), IGNORE, dtype=np.uint8)
        for i, image in enumerate(images.tolist()):
            move_mask(self.read(image), geometry, i, masks[i])
        return masks


@dataclass(frozen=True)
class Boxes:
    """Any number of boxes for each image."""

    first: np.ndarray
    """[N + 1] int64: image i has the rows from first[i] to first[i + 1]."""
    values: np.ndarray
    """[K, 6] float32: class, left, top, right, bottom in pixels of the whole image (right and bottom
    exclusive), and 1 for a crowd or what is too difficult to count, else 0."""
    threads = False

    @cached_property
    def most(self) -> int:
        """Boxes of the image that has the most."""
        return max(1, int(np.diff(self.first).max(initial=0)))

    def of(self, index: int) -> np.ndarray:
        """[k, 6] those of an image."""
        return self.values[self.first[index] : self.first[index + 1]]

    def take(self, indices: np.ndarray) -> Boxes:
        return Boxes.of_images([self.of(i) for i in indices.tolist()])

    @staticmethod
    def of_images(rows: Sequence[np.ndarray]) -> Boxes:
        """From the [k, 6] of each image."""
        first = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        values = np.concatenate([np.zeros((0, 6)), *rows]).astype(np.float32)
        return Boxes(first, values)

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        boxes = np.zeros((len(images), self.most, 6), dtype=np.float32)
        boxes[:, :, 0] = NO_BOX
        for i, image in enumerate(images.tolist()):
            moved = move_boxes(self.of(image), geometry, i, size)
            boxes[i, : len(moved)] = moved
        return boxes


def read_mask(path: str) -> np.ndarray:
    """The values of a mask's pixels, uint8 [H, W]: a palette image's are its indices, not its colours.

    Raises:
        DecodeError: it is not there, is not an image, or has more than one byte a pixel.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise DecodeError(
                    f"an image of mode {image.mode}; a mask is a PNG of class numbers, palette or 8-bit grey"
                )
            return np.asarray(image, dtype=np.uint8)
    except DecodeError:
        raise
    except Exception as error:  # foreign bytes lead a decoder anywhere
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(reason) from error


def move_mask(mask: np.ndarray, geometry: Geometry, i: int, out: np.ndarray) -> None:
    """What the i-th sample's geometry makes of its mask, by the nearest pixel, into `out` [size, size]; what
    lies outside the image stays as it is."""
    axes = []
    for axis in (0, 1):
        resized, low = int(geometry.resized[i, axis]), geometry.roi_start[i, axis]
        at = np.arange(len(out)) + geometry.shift[i, axis]
        inside = (0 <= at) & (at < resized)
        scale = (geometry.roi_end[i, axis] - low) / resized
        place = np.floor(geometry.start[i, axis] + low + (at[inside] + 0.5) * scale).astype(np.int64)
        axes.append((inside, place.clip(0, mask.shape[axis] - 1)))
    (rows, y), (columns, x) = axes
    view = out[:, ::-1] if geometry.flip[i] else out
    view[np.ix_(rows, columns)] = mask[np.ix_(y, x)]


def move_boxes(boxes: np.ndarray, geometry: Geometry, i: int, size: int) -> np.ndarray:
    """What the i-th sample's geometry makes of the boxes [k, 6] of its image: those of which enough is left,
    cut off at the border of the sample."""
    low, high, resized = geometry.roi_start[i], geometry.roi_end[i], geometry.resized[i]
    corners = boxes[:, 1:5].reshape(-1, 2, 2)[:, :, ::-1]  # (vertical, horizontal), as in the geometry
    corners = (corners - (geometry.start[i] + low)) * (resized / (high - low))
    area = (corners[:, 1] - corners[:, 0]).prod(axis=1)
    cut = (corners.clip(0, resized) - geometry.shift[i]).clip(0, size)
    if geometry.flip[i]:
        cut = np.stack([cut[..., 0], size - cut[:, ::-1, 1]], axis=-1)
    sides = cut[:, 1] - cut[:, 0]
    left = (sides > 0).all(axis=1) & (sides.prod(axis=1) >= MIN_VISIBLE * area)
    return np.column_stack([boxes[:, 0], cut[:, :, ::-1].reshape(-1, 4), boxes[:, 5]])[left]
