"""Channels, levels and normalization of a data set's images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from fastcnn.data.arrays import ARRAY, NO_PACKAGE, Levels
from fastcnn.data.decode import DecodeError, value_range
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.manifest import in_threads
from fastcnn.errors import UserError

SAMPLE, SAMPLE_PIXELS = 500, 100_000_000
"""Maximum number of images, and of their pixels, that levels and normalization are measured on."""
SMALLEST_SAMPLE = 32
BITS = (8, 10, 12, 14, 16)
"""Bits that levels are chosen from, for values without a sign."""


def with_channels_of_files(source: Source) -> Source:
    """Return the source with the number of channels of its files.

    Raises:
        UserError: different numbers, or a package to read the files is missing.
    """
    first: dict[int, str] = {}  # an image of each number of channels
    for split in _splits(source):
        files = split.files
        if files is None:
            continue
        missing = next((i for i, problem in files.problems.items() if NO_PACKAGE in problem), None)
        if missing is not None:
            raise UserError(f"--data {source.name}: {files.name(missing)}: {files.problems[missing]}")
        # Gray is read as color, and vice versa.
        bands = np.where((files.readers == ARRAY) & (files.bands != 1), files.bands, 3)
        bands[list(files.problems)] = 0
        for number in np.unique(bands[bands > 0]).tolist():
            first.setdefault(number, files.name(int(np.flatnonzero(bands == number)[0])))
    if len(first) > 1:
        (a, one), (b, other) = sorted(first.items())[:2]
        raise UserError(
            f"--data {source.name}: {one} has {a} channels, and {other} has {b}; give all images as many"
        )
    return source.with_channels(next(iter(first))) if first and 3 not in first else source


def with_levels(source: Source, levels: Levels) -> Source:
    """Return the source with the levels of images of more than 8 bits."""

    def of(split: Split) -> Split:
        if split.files is None:
            return split
        return dataclasses.replace(split, files=dataclasses.replace(split.files, levels=levels))

    test = None if source.test is None else of(source.test)
    return dataclasses.replace(source, train=of(source.train), val=of(source.val), test=test)


def has_wide(source: Source) -> bool:
    """Return whether some images have more than 8 bits."""
    files = [split.files for split in _splits(source) if split.files is not None]
    return any(bool((f.bits > 8).any()) for f in files)


def measure_levels(split: Split) -> tuple[Levels | None, str]:
    """Choose levels for a split's images of more than 8 bits by the values that a sample of them uses.

    Values without a sign: from 0 to the maximum of the fewest bits that hold them. Others: the smallest and
    the largest value; floats within 0 and 1 keep these.

    Returns:
        The levels, and the reason; None if each image has its own window.
    """
    files = split.files
    assert files is not None
    chosen = _sample(np.flatnonzero(files.bits > 8), split)
    ranges = [found for found in in_threads(lambda i: _range_of(files, i), chosen.tolist()) if found]
    if not ranges or all(window for *_, window in ranges):
        return None, ""
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    whole, wide = all(whole for _, _, whole, _ in ranges), int(files.bits.max())
    if whole and low >= 0:
        used = f"{wide}-bit images with values up to {high:,.0f}"
        bits = next((bits for bits in BITS if high < 2**bits), 0)
        return (0, 2**bits - 1 if bits else high), f"{used}: {bits} bits" if 0 < bits < wide else used
    used = f"{wide}-bit images with values from {low:,.6g} to {high:,.6g}"
    if not whole and low >= 0 and high <= 1:
        return (0, 1), used
    return (low, high if high > low else low + 1), used


def measure_normalization(split: Split, channels: int) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return mean and standard deviation per channel of a sample of images, for values from 0 to 1.

    All images count alike, whatever their size.

    Returns:
        Mean, deviation, and the number of images; it is 0 if none can be decoded.
    """
    chosen = _sample(np.arange(len(split)), split)
    moments = in_threads(lambda i: _moments(split, i, channels), chosen.tolist())
    sums = np.array([found for found in moments if found is not None])
    if not len(sums):
        return (), (), 0
    mean, square = sums.mean(axis=0)
    std = np.sqrt((square - mean**2).clip(min=0)).clip(min=1 / 255)  # a constant channel stays finite
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist()), len(sums)


def _splits(source: Source) -> Iterator[Split]:
    yield from (split for split in (source.train, source.val, source.test) if split is not None)


def _sample(images: np.ndarray, split: Split) -> np.ndarray:
    """Return some of the images, evenly spaced."""
    if not len(images):
        return images
    pixels = max(1.0, float(split.sizes[images].astype(np.float64).prod(axis=1).mean()))
    count = max(SMALLEST_SAMPLE, min(SAMPLE, int(SAMPLE_PIXELS / pixels)))
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)]


def _range_of(files: Files, index: int) -> tuple[float, float, bool, bool] | None:
    try:
        return value_range(files.read(index))
    except (OSError, DecodeError):  # the loader reports it
        return None


def _moments(split: Split, index: int, channels: int) -> np.ndarray | None:
    """Return the means of an image's values and of their squares, [2, channels]."""
    if split.images is not None:
        pixels = np.asarray(split.images[index])
    elif split.files is not None and index not in split.problems:
        try:
            pixels = split.files.decode(index, channels)
        except DecodeError:
            return None
    else:
        return None
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(p.reshape(-1), minlength=256) for p in np.moveaxis(pixels, 2, 0)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.stack([shares @ values, shares @ values**2])
