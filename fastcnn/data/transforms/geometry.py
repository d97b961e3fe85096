"""Which part of an image becomes a sample: crops and flips as pure functions of (seed, epoch, sample).

Every backend cuts the same crops, so a run can go on in another backend, batch size or number of processes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from fastcnn.data.transforms.random_numbers import uniforms
from fastcnn.data.transforms.transform import Transform

_TRIES = 10  # torchvision's RandomResizedCrop
_DRAWN = 3 + 2 * _TRIES  # flip, two of the place, and of each try area and ratio


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Of N samples, in the order in which it is applied. Pairs are (vertical, horizontal), in pixels."""

    start: np.ndarray
    """[N, 2] int32: upper left corner of the region that is cut from the image."""
    shape: np.ndarray
    """[N, 2] int32: its height and width."""
    roi_start: np.ndarray
    """[N, 2] float32: upper left corner, in the region, of what is resized to the sample's size. Around it
    the region has what an antialiasing filter looks at."""
    roi_end: np.ndarray
    """[N, 2] float32: its lower right corner."""
    resized: np.ndarray
    """[N, 2] int32: height and width that this part is resized to."""
    shift: np.ndarray
    """[N, 2] int32: the resized image is moved up and left by this, over black of the sample's size, or in
    training over what `Transform.pad_mode` says."""
    flip: np.ndarray
    """[N] bool: then mirrored."""

    def take(self, chosen: np.ndarray) -> Geometry:
        """Of the samples at `chosen`."""
        return Geometry(**{name: field[chosen] for name, field in vars(self).items()})


def train_geometry(t: Transform, sizes: np.ndarray, seed: int, epoch: int, samples: np.ndarray) -> Geometry:
    """Random crops and flips.

    Args:
        sizes: [N, 2] height and width of the images.
        samples: [N] their numbers, or those of their draws.
    """
    used = _DRAWN if t.train_crop == "random-resized" else 3
    u = uniforms(seed, epoch, samples, _DRAWN, first=used)
    if t.hflip_mode == "alternating":
        first = uniforms(seed, 0, samples, _DRAWN, first=1)[:, 0] < t.hflip
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
    """The centre: what torchvision's Resize(t.resize) and CenterCrop(t.size) keep. Torchvision scales the
    short side to `t.resize`, rounds the long side down, and rounds the crop's offset half to even.

    With borders it is all of the image, in the middle.
    """
    sizes = sizes.astype(np.int64)
    none = np.zeros(len(sizes), dtype=bool)
    if t.crop_mode == "border":
        return _with_borders(t, sizes, none)
    return _window(t, sizes, None)


def _window(t: Transform, sizes: np.ndarray, u: np.ndarray | None) -> Geometry:
    """The middle of the resized image, or by random numbers [N, 2] from 0 to 1 any part of it."""
    sizes = sizes.astype(np.int64)
    none = np.zeros(len(sizes), dtype=bool)
    scaled = sizes * t.resize // sizes.min(axis=1, keepdims=True)
    offset = np.rint((scaled - t.size) / 2) if u is None else np.floor(u * (scaled - t.size + 1))
    roi_start, roi_end = offset * sizes / scaled, (offset + t.size) * sizes / scaled
    margin = np.ceil(np.maximum(sizes / scaled, 1)) + 2  # the filter's radius, and a JPEG's chroma
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
    """Corner and size of random-resized crops (Szegedy et al. 2015, section 6), as torchvision draws them:
    the first of ten tries that fits, else the largest centred crop of an allowed ratio."""
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
