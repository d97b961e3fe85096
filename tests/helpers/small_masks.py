"""Small folders of images with masks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.masks.source import mask_source
from fastcnn.data.targets import Masks
from small_sources import message_of


def picture(path: Path, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, format="JPEG")


def mask(path: Path, *values: int, size: tuple[int, int] = (4, 3)) -> None:
    """A mask that begins with these values and goes on with the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size[0] * size[1], values[-1], dtype=np.uint8)
    pixels[: len(values)] = values
    Image.fromarray(pixels.reshape(size[::-1])).save(path)


def pair(root: Path, images: str, masks: str, name: str, *values: int) -> None:
    picture(root / images / f"{name}.jpg")
    mask(root / masks / f"{name}.png", *values)


def disks(root: Path, images: str, masks: str, *values: int, count: int = 4, smooth: bool = False) -> None:
    """Draw images with masks of 48 x 48: a disk of each further value on the first one."""
    for i in range(count):
        picture(root / images / f"{i}.jpg", (48, 48))
        pixels = disk_mask(i, values, smooth=smooth)
        (root / masks).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / masks / f"{i}.png")


def disk_mask(number: int, values: tuple[int, ...], *, smooth: bool = False) -> np.ndarray:
    """Return values, uint8 [48, 48]: a disk for each further value, its border blended if smooth."""
    y, x = np.mgrid[:48, :48]
    pixels = np.full((48, 48), values[0], dtype=float)
    for i, value in enumerate(values[1:]):
        inside = 6.5 - np.hypot(y - 8 - number - 14 * (i % 3), x - 8 - number - 14 * (i // 3))
        share = inside.clip(0, 1) if smooth else inside > 0
        pixels += (value - pixels) * share
    return np.round(pixels).astype(np.uint8)


def opened(root: object, val_split: float | None = None, ignore_index: int = 255, **settings: Any) -> Source:
    """Open a folder of masks; `skip=True` skips bad ones."""
    skip = settings.pop("skip", False)
    data = DataSettings(
        data=str(root),
        data_root="",
        val_split=val_split,
        ignore_index=ignore_index,
        bad_labels="skip" if skip else "stop",
        **settings,
    )
    return mask_source(data, seed=0)


def refusal(root: object, *args: Any, **settings: Any) -> str:
    """Return the message of the error in opening a folder of masks."""
    return message_of(lambda: opened(root, *args, **settings))


def advised_values(message: str) -> list[tuple[int, ...]]:
    """Return the values of each `--mask-values` that a message advises."""
    found = re.findall(r"--mask-values ([\d ]+\d)", message)
    return [tuple(map(int, words.split())) for words in found]


def first_values(split: Split, index: int, count: int = 4) -> list[int]:
    """Return the first class numbers of a mask."""
    assert isinstance(split.annotations, Masks)
    return split.annotations.read(index).ravel()[:count].tolist()


def class_pixels(split: Split, index: int = 0) -> dict[int, int]:
    """Return the number of pixels of each class of a mask."""
    assert isinstance(split.annotations, Masks)
    classes, counts = np.unique(split.annotations.read(index), return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist()))
