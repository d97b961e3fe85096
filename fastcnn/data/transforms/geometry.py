"""Crops and flips as pure functions of (seed, epoch, sample).

All backends cut the same crops, so a run can resume with another backend, batch size or number of processes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from fastcnn.data.transforms.random_numbers import uniforms
from fastcnn.data.transforms.transform import Transform

_TRIES = 10  # as in torchvision's RandomResizedCrop
_DRAWS = 3 + 2 * _TRIES  # flip, position (2), and area and ratio of each try


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Geometry of N samples, in the order of application. Pairs are (vertical, horizontal), in pixels."""

    start: np.ndarray
    """Upper left corner of the region to decode, int32 [N, 2]."""
    shape: np.ndarray
    """Height and width of the region, int32 [N, 2]."""
    roi_start: np.ndarray
    """Upper left corner of the resized part, within the region, float32 [N, 2]. The region has a margin
    around it for the antialiasing filter."""
    roi_end: np.ndarray
    """Lower right corner of the resized part, float32 [N, 2]."""
    resized: np.ndarray
    """Height and width after the resize, int32 [N, 2]."""
    shift: np.ndarray
    """Shift of the resized image up and left, int32 [N, 2]. Padding is black, in training by
    `Transform.pad_mode`."""
    flip: np.ndarray
    """Mirror horizontally at the end, bool [N]."""

    def take(self, chosen: np.ndarray) -> Geometry:
        """Return the geometry of the samples at `chosen`."""
        return Geometry(**{name: field[chosen] for name, field in vars(self).items()})


def train_geometry(t: Transform, sizes: np.ndarray, seed: int, epoch: int, samples: np.ndarray) -> Geometry:
    """Draw crops and flips.

    Args:
        sizes: height and width of the images, [N, 2].
        samples: keys of the random numbers, [N]: the samples' numbers, or those of their repeated uses.
    """
    used = _DRAWS if t.train_crop == "random-resized" else 3
    u = uniforms(seed, epoch, samples, _DRAWS, first=used)
    if t.hflip_mode == "alternating":
        first = uniforms(seed, 0, samples, _DRAWS, first=1)[:, 0] < t.hflip
        flip = first ^ (epoch % 2 == 1 and t.hflip > 0)
    else:
        flip = u[:, 0] < t.hflip
    if t.train_crop == "random-resized":
        start, shape = _random_resized(t, sizes, u[:, 1:])
        zero = np.zeros_like(start)
        return Geometry(
            start=start,
            shape=shape,
            roi_start=zero.astype(np.float32),
            roi_end=shape.astype(np.float32),
            resized=np.full_like(start, t.size),
            shift=zero,
            flip=flip,
        )
    if t.train_crop == "random":
        return dataclasses.replace(_window(t, sizes, u[:, 1:3]), flip=flip)
    whole = eval_geometry(t, sizes)
    shift = np.floor(u[:, 1:3] * (2 * t.padding + 1)).astype(np.int32) - t.padding
    return dataclasses.replace(whole, shift=whole.shift + shift, flip=flip)


def eval_geometry(t: Transform, sizes: np.ndarray) -> Geometry:
    """Return the center crops of torchvision's Resize(t.resize) and CenterCrop(t.size).

    Torchvision scales the short side to `t.resize`, rounds the long side down, and rounds the crop's offset
    half to even. With `crop_mode` "border" the whole image is kept, in the middle of black borders.
    """
    sizes = sizes.astype(np.int64)
    none = np.zeros(len(sizes), dtype=bool)
    if t.crop_mode == "border":
        return _with_borders(t, sizes, none)
    return _window(t, sizes, None)


def _window(t: Transform, sizes: np.ndarray, u: np.ndarray | None) -> Geometry:
    """Return the center of the resized image, or with random numbers `u`, [N, 2], a random window."""
    sizes = sizes.astype(np.int64)
    none = np.zeros(len(sizes), dtype=bool)
    scaled = sizes * t.resize // sizes.min(axis=1, keepdims=True)
    offset = np.rint((scaled - t.size) / 2) if u is None else np.floor(u * (scaled - t.size + 1))
    roi_start, roi_end = offset * sizes / scaled, (offset + t.size) * sizes / scaled
    margin = np.ceil(np.maximum(sizes / scaled, 1)) + 2  # filter radius and chroma subsampling
    start = np.maximum(np.floor(roi_start - margin), 0)
    end = np.minimum(np.ceil(roi_end + margin), sizes)
    zero = np.zeros(sizes.shape, dtype=np.int32)
    return Geometry(
        start=start.astype(np.int32),
        shape=(end - start).astype(np.int32),
        roi_start=(roi_start - start).astype(np.float32),
        roi_end=(roi_end - start).astype(np.float32),
        resized=np.full_like(zero, t.size),
        shift=zero,
        flip=none,
    )


def _with_borders(t: Transform, sizes: np.ndarray, flip: np.ndarray) -> Geometry:
    """Return the geometry of whole images, resized to the long side and centered."""
    zero = np.zeros(sizes.shape, dtype=np.int32)
    resized = np.rint(sizes * t.size / sizes.max(axis=1, keepdims=True)).clip(min=1).astype(np.int32)
    return Geometry(
        start=zero,
        shape=sizes.astype(np.int32),
        roi_start=zero.astype(np.float32),
        roi_end=sizes.astype(np.float32),
        resized=resized,
        shift=-((t.size - resized) // 2),
        flip=flip,
    )


def _random_resized(t: Transform, sizes: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw corner and size of random-resized crops (Szegedy et al. 2015, section 6), as torchvision does.

    The first of ten tries that fits, else the largest centered crop of an allowed ratio."""
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = height * width * (t.scale[0] + (t.scale[1] - t.scale[0]) * u[:, 2 : 2 + _TRIES])
    low, high = np.log(t.ratio)
    ratio = np.exp(low + (high - low) * u[:, 2 + _TRIES : 2 + 2 * _TRIES])
    h, w = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (0 < h) & (h <= height) & (0 < w) & (w <= width)
    rows, first = np.arange(len(sizes)), fits.argmax(axis=1)
    none = ~fits[rows, first]
    shape = np.column_stack([h[rows, first], w[rows, first]])
    shape[none] = np.maximum(
        np.column_stack(
            [
                np.minimum(sizes[none, 0], np.rint(sizes[none, 1] / t.ratio[0])),
                np.minimum(sizes[none, 1], np.rint(sizes[none, 0] * t.ratio[1])),
            ]
        ),
        1,
    )
    start = np.floor(u[:, :2] * (sizes - shape + 1))
    start[none] = (sizes[none] - shape[none]) // 2
    return start.astype(np.int32), shape.astype(np.int32)
