"""Targets of samples: class numbers, sets of classes, masks and boxes, transformed with the image's geometry.

Targets are a pure function of the images and their geometry, so they are the same for all backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from fastcnn.data.mask_files import StoredMasks
from fastcnn.data.transforms.geometry import Geometry

IGNORE = 255
"""Mask value of pixels excluded from loss and metrics."""
NO_BOX = -1
"""Class of the padding rows of an image's boxes."""
MIN_VISIBLE = 0.25
"""Minimum visible fraction of a box's area after a crop; boxes below it are dropped."""


class Targets(Protocol):
    """Targets of N images."""

    threads: bool
    """Load in background threads, because `load` is slow."""

    def take(self, indices: np.ndarray) -> Targets:
        """Return the targets of the images at `indices`, in that order."""

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        """Return the targets of a batch, see `fastcnn.data.batch.Batch`.

        Args:
            images: image numbers, [N].
            geometry: crop, resize and flip of each image.
            size: side of the samples in pixels.
        """


@dataclass(frozen=True)
class Labels:
    """One class per image."""

    values: np.ndarray
    """Class numbers, int64 [N]."""
    threads = False

    def take(self, indices: np.ndarray) -> Labels:
        return Labels(self.values[indices])

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        return self.values[images]


@dataclass(frozen=True)
class MultiLabels:
    """Any number of classes per image."""

    values: np.ndarray
    """1 for each class of an image, else 0, uint8 [N, C]."""
    threads = False

    def take(self, indices: np.ndarray) -> MultiLabels:
        return MultiLabels(self.values[indices])

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        return self.values[images]


@dataclass(frozen=True)
class Masks:
    """One class per pixel."""

    table: np.ndarray
    """Class number or `IGNORE` of each stored value, uint8 [256]."""
    stored: StoredMasks
    """N masks: files, arrays or outlines."""
    threads = True

    def take(self, indices: np.ndarray) -> Masks:
        return Masks(self.table, self.stored.take(indices))

    def read(self, index: int) -> np.ndarray:
        """Return the class numbers of a mask, uint8 [H, W]; DecodeError if it is unreadable."""
        return self.table[self.stored.read(index)]

    def load(self, images: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
        masks = np.full((len(images), size, size), IGNORE, dtype=np.uint8)
        for i, image in enumerate(images.tolist()):
            move_mask(self.read(image), geometry, i, masks[i])
        return masks


@dataclass(frozen=True)
class Boxes:
    """Any number of boxes per image."""

    first: np.ndarray
    """Row offsets, int64 [N + 1]: image i has the rows first[i] to first[i + 1]."""
    values: np.ndarray
    """Boxes, float32 [K, 6]: class; left, top, right, bottom in pixels of the whole image (right and bottom
    exclusive); 1 for a crowd or a difficult object that is not counted, else 0."""
    threads = False

    @cached_property
    def most(self) -> int:
        """Largest number of boxes of an image, at least 1."""
        return max(1, int(np.diff(self.first).max(initial=0)))

    def of(self, index: int) -> np.ndarray:
        """Return the boxes of an image, float32 [k, 6]."""
        return self.values[self.first[index] : self.first[index + 1]]

    def take(self, indices: np.ndarray) -> Boxes:
        return Boxes.of_images([self.of(i) for i in indices.tolist()])

    @staticmethod
    def of_images(rows: Sequence[np.ndarray]) -> Boxes:
        """Build from the boxes of each image, [k, 6] each."""
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


def move_mask(mask: np.ndarray, geometry: Geometry, i: int, out: np.ndarray) -> None:
    """Transform the i-th sample's mask by nearest neighbor into `out` [size, size].

    Pixels outside the image keep their value."""
    axes = []
    for axis in (0, 1):
        resized, low = int(geometry.resized[i, axis]), geometry.roi_start[i, axis]
        # Position in the resized image, then in the whole image.
        at = np.arange(len(out)) + geometry.shift[i, axis]
        inside = (0 <= at) & (at < resized)
        scale = (geometry.roi_end[i, axis] - low) / resized
        place = np.floor(geometry.start[i, axis] + low + (at[inside] + 0.5) * scale).astype(np.int64)
        axes.append((inside, place.clip(0, mask.shape[axis] - 1)))
    (rows, y), (columns, x) = axes
    view = out[:, ::-1] if geometry.flip[i] else out
    view[np.ix_(rows, columns)] = mask[np.ix_(y, x)]


def move_boxes(boxes: np.ndarray, geometry: Geometry, i: int, size: int) -> np.ndarray:
    """Transform the boxes [k, 6] of the i-th sample and clip them at its border.

    Boxes with less than `MIN_VISIBLE` of their area left are dropped."""
    low, high, resized = geometry.roi_start[i], geometry.roi_end[i], geometry.resized[i]
    corners = boxes[:, 1:5].reshape(-1, 2, 2)[:, :, ::-1]  # (vertical, horizontal), as in Geometry
    corners = (corners - (geometry.start[i] + low)) * (resized / (high - low))
    area = (corners[:, 1] - corners[:, 0]).prod(axis=1)
    cut = (corners.clip(0, resized) - geometry.shift[i]).clip(0, size)
    if geometry.flip[i]:
        cut = np.stack([cut[..., 0], size - cut[:, ::-1, 1]], axis=-1)
    sides = cut[:, 1] - cut[:, 0]
    left = (sides > 0).all(axis=1) & (sides.prod(axis=1) >= MIN_VISIBLE * area)
    return np.column_stack([boxes[:, 0], cut[:, :, ::-1].reshape(-1, 4), boxes[:, 5]])[left]


def restore_boxes(boxes: np.ndarray, geometry: Geometry, i: int, size: tuple[int, int]) -> np.ndarray:
    """Transform boxes [k, 6] in the i-th sample back to pixels of its whole image, and clip them there.

    Args:
        geometry: without a flip.
        size: height and width of the whole image.
    """
    low, high, resized = geometry.roi_start[i], geometry.roi_end[i], geometry.resized[i]
    corners = boxes[:, 1:5].reshape(-1, 2, 2)[:, :, ::-1].astype(np.float64)
    corners = (corners + geometry.shift[i]) * ((high - low) / resized) + geometry.start[i] + low
    corners = corners.clip(0, size)[:, :, ::-1].reshape(-1, 4)
    return np.column_stack([boxes[:, 0], corners, boxes[:, 5]])


def restore_mask(
    mask: np.ndarray, geometry: Geometry, i: int, side: int, size: tuple[int, int]
) -> np.ndarray:
    """Transform the mask of the i-th sample back to its whole image by nearest neighbor, uint8 [*size].

    Args:
        mask: uint8 [h, w]; one smaller than the sample is centered in it.
        geometry: without a flip.
        side: side of the sample in pixels.
        size: height and width of the whole image. Its pixels outside of the mask become `IGNORE`.
    """
    whole = np.full(size, IGNORE, dtype=np.uint8)
    axes = []
    for axis in (0, 1):
        low = geometry.roi_start[i, axis]
        scale = geometry.resized[i, axis] / (geometry.roi_end[i, axis] - low)
        place = (np.arange(size[axis]) + 0.5 - geometry.start[i, axis] - low) * scale
        at = np.floor(place).astype(np.int64) - geometry.shift[i, axis] - (side - mask.shape[axis]) // 2
        inside = (0 <= at) & (at < mask.shape[axis])
        axes.append((inside, at[inside]))
    (rows, y), (columns, x) = axes
    whole[np.ix_(rows, columns)] = mask[np.ix_(y, x)]
    return whole
