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
from fastcnn.data.targets import Boxes, Labels, Masks, MultiLabels, Targets

NAMED = ("demo", "synthetic", "cifar10", "cifar100", "mnist", "fashion-mnist")
"""Named data sets for classification."""
DOWNLOADED = {*NAMED, "voc2007", "voc2012", "oxford-iiit-pet"} - {"demo", "synthetic"}
"""Named data sets of all tasks that torchvision downloads to `--data-root`."""
SMALL_IMAGE = 96
"""Maximum side in pixels of equally sized images that are trained on without a resize, by pad-crop."""
SYNTHETIC_SIZE = 64
"""Side in pixels of the images that masks and boxes of synthetic data refer to."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Split:
    """Images of one phase, as files to decode, decoded in memory, or both."""

    labels: np.ndarray
    """Class numbers, int64 [N]."""
    files: Files | None = None
    """N image files."""
    images: np.ndarray | Sequence[np.ndarray] | None = None
    """N decoded images, uint8 [H, W, C] each; one array [N, H, W, C] if all have the same size."""
    annotations: Masks | Boxes | MultiLabels | None = None
    """N masks, lists of boxes or sets of classes. The labels, by which replacements are chosen, are all 0
    then; with sets of classes the rarest one of each image."""

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Return the number of images with each class, int64 [num_classes]."""
        if isinstance(self.annotations, MultiLabels):
            counts = self.annotations.values.sum(axis=0, dtype=np.int64)
            return np.pad(counts, (0, num_classes - len(counts)))
        return np.bincount(self.labels, minlength=num_classes)

    @property
    def targets(self) -> Targets:
        """Annotations if there are any, else the labels."""
        return Labels(self.labels) if self.annotations is None else self.annotations

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width in pixels, [N, 2]; 0 for unreadable headers, `SYNTHETIC_SIZE` without images."""
        if self.files is not None:
            return self.files.sizes
        if self.images is None:
            return np.full((len(self), 2), SYNTHETIC_SIZE, dtype=np.int32)
        return np.array([image.shape[:2] for image in self.images], dtype=np.int32).reshape(-1, 2)

    @property
    def problems(self) -> dict[int, str]:
        """Reason for each image whose header is unreadable."""
        return self.files.problems if self.files is not None else {}

    @cached_property
    def common_size(self) -> tuple[int, int] | None:
        """Height and width of the readable images if all are equal, else None."""
        good = self.sizes[self.sizes.min(axis=1) > 0]
        same = len(good) > 0 and bool((good == good[0]).all())
        return (int(good[0, 0]), int(good[0, 1])) if same else None

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the images' names, labels and order, independent of the folder's location."""
        digest = hashlib.sha256(self.labels.tobytes())
        if self.files is not None:
            names = (b"/".join(name.rsplit(b"/", 2)[-2:]) for name in self.files.names.encoded())
            digest.update(b"\0".join(names))
        return f"{len(self)} ({digest.hexdigest()[:8]})"

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""
        return self.files.name(index) if self.files is not None else f"image {index}"

    def take(self, indices: np.ndarray) -> Split:
        """Return the split of the images at `indices`, in that order."""
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
    """A data set: two splits and their properties."""

    name: str
    train: Split
    val: Split
    test: Split | None = None
    """Held-out images, validated once at the end with the best weights."""
    class_names: tuple[str, ...]
    channels: int = 3
    """3 (RGB), 1 (gray), or the number of channels of all images."""
    native_size: int | None = None
    """Side in pixels if all images are small squares of one size, else None."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean per channel, for values from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD
    mirror: bool = True
    """Mirrored images keep their class."""
    remarks: tuple[str, ...] = ()
    """Messages about skipped files."""

    @property
    def multi_label(self) -> bool:
        """Return whether an image may have several classes, or none."""
        return isinstance(self.train.annotations, MultiLabels)

    def with_classes(self, count: int) -> Source:
        """Return the same images with targets of `count` classes, of which the last ones may have no name."""
        if not self.multi_label:
            return self
        return dataclasses.replace(
            self,
            train=_with_classes(self.train, count),
            val=_with_classes(self.val, count),
            test=None if self.test is None else _with_classes(self.test, count),
        )

    def with_channels(self, channels: int) -> Source:
        """Return the same images with 1 (gray) or 3 (RGB) channels, or as many as their files have."""
        if channels == self.channels:
            return self
        return dataclasses.replace(
            self,
            train=_with_channels(self.train, channels),
            val=_with_channels(self.val, channels),
            test=None if self.test is None else _with_channels(self.test, channels),
            channels=channels,
            mean=(sum(self.mean) / len(self.mean),) * channels,
            std=(sum(self.std) / len(self.std),) * channels,
        )


def _with_classes(split: Split, count: int) -> Split:
    assert isinstance(split.annotations, MultiLabels)
    values = split.annotations.values
    padded = np.pad(values, ((0, 0), (0, count - values.shape[1])))
    return dataclasses.replace(split, annotations=MultiLabels(padded))


def _with_channels(split: Split, channels: int) -> Split:
    if split.images is None:  # files are decoded to any number of channels
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
    """Return the side in pixels if all images are small squares of one size, else None."""
    height, width = split.common_size or (0, 0)
    return width if 0 < width == height <= SMALL_IMAGE else None
