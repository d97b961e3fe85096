"""Source and Split: the images of a data set, their targets and classes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from fastcnn.data.sources.headers import Files
from fastcnn.data.targets import Boxes, Labels, Masks, Targets

NAMED = ("demo", "synthetic", "cifar10", "cifar100", "mnist", "fashion-mnist")
"""Of images with a class."""
SMALL_IMAGE = 96
"""Images of one size up to this many pixels a side are trained on as they are, with pad-crop."""

SYNTHETIC_SIZE = 64
"""Pixels a side of what the masks and boxes of synthetic data lie in."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Split:
    """The images of one phase: files to decode, or decoded ones in memory, or both."""

    labels: np.ndarray
    """[N] int64"""
    files: Files | None = None
    """N of them"""
    images: np.ndarray | Sequence[np.ndarray] | None = None
    """N of [H, W, C] uint8; an array [N, H, W, C] where all have one size"""
    annotations: Masks | Boxes | None = None
    """N masks or lists of boxes; then the labels, by which stand-ins are chosen, are all 0"""

    @property
    def targets(self) -> Targets:
        """What the images mean."""
        return Labels(self.labels) if self.annotations is None else self.annotations

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sizes(self) -> np.ndarray:
        """[N, 2] height and width in pixels; 0 where the header could not be read, `SYNTHETIC_SIZE` where
        there are no images."""
        if self.files is not None:
            return self.files.sizes
        if self.images is None:
            return np.full((len(self), 2), SYNTHETIC_SIZE, dtype=np.int32)
        return np.array([image.shape[:2] for image in self.images], dtype=np.int32).reshape(-1, 2)

    @property
    def problems(self) -> dict[int, str]:
        """Which of them cannot be decoded, as far as their headers tell."""
        return self.files.problems if self.files is not None else {}

    @cached_property
    def common_size(self) -> tuple[int, int] | None:
        """Height and width of all good ones if they are the same."""
        good = self.sizes[self.sizes.min(axis=1) > 0]
        same = len(good) > 0 and bool((good == good[0]).all())
        return (int(good[0, 0]), int(good[0, 1])) if same else None

    @cached_property
    def fingerprint(self) -> str:
        """Tells whether two splits have the same images in the same order, wherever their folder is."""
        digest = hashlib.sha256(self.labels.tobytes())
        if self.files is not None:
            names = ("/".join(self.name(i).rsplit("/", 2)[-2:]) for i in range(len(self)))
            digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
        return f"{len(self)} ({digest.hexdigest()[:8]})"

    def name(self, index: int) -> str:
        """An image as a person would look for it."""
        return self.files.name(index) if self.files is not None else f"image {index}"

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices`, in that order."""
        images = self.images
        if isinstance(images, np.ndarray):
            images = images[indices]
        elif images is not None:
            images = [images[i] for i in indices.tolist()]
        files = None if self.files is None else self.files.take(indices)
        annotations = None if self.annotations is None else self.annotations.take(indices)
        return Split(self.labels[indices], files, images, annotations)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: two splits and what is known about them."""

    name: str
    train: Split
    val: Split
    class_names: tuple[str, ...]
    channels: int = 3
    """3 (RGB) or 1 (grey)"""
    native_size: int | None = None
    """Pixels a side where all images are small squares of one size, else None."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of each channel, of values from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD
    mirror: bool = True
    """Whether a mirrored image keeps its class."""
    remarks: tuple[str, ...] = ()
    """What was left out, for people."""

    def with_channels(self, channels: int) -> Source:
        """The same images with 1 (grey) or 3 (RGB) channels."""
        if channels == self.channels:
            return self
        return dataclasses.replace(
            self,
            train=_with_channels(self.train, channels),
            val=_with_channels(self.val, channels),
            channels=channels,
            mean=(sum(self.mean) / len(self.mean),) * channels,
            std=(sum(self.std) / len(self.std),) * channels,
        )


def _with_channels(split: Split, channels: int) -> Split:
    if split.images is None:  # files are decoded to what is asked for
        return split
    assert isinstance(split.images, np.ndarray)
    mode = "L" if channels == 1 else "RGB"
    modes = {1: "L", 3: "RGB"}
    converted = [
        np.asarray(Image.fromarray(image.squeeze(), modes[image.shape[-1]]).convert(mode))
        for image in split.images
    ]
    images = np.stack(converted).reshape(*split.images.shape[:3], channels)
    return dataclasses.replace(split, images=images)


def native_size(split: Split) -> int | None:
    """Pixels a side if all images are small squares of one size."""
    height, width = split.common_size or (0, 0)
    return width if 0 < width == height <= SMALL_IMAGE else None
