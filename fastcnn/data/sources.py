"""Where images come from: folders, tar shards, CIFAR and MNIST, the demo set, nothing at all.

A source says which images there are, how large they are and what their labels mean; it decodes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcnn.data.manifest import Files, scan
from fastcnn.data.shapes import ensure_demo
from fastcnn.data.targets import Boxes, Labels, Masks, Targets
from fastcnn.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif", ".jp2"),  # not decoded, but named
)
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


@dataclass(frozen=True)
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


def open_source(data: str, data_root: str, val_split: float | None, seed: int) -> Source:
    """`--data` to a source.

    Args:
        data: a name in `NAMED`, the path of an image folder, or shards (`fastcnn.data.shards`).
        data_root: where torchvision's data sets are, or are downloaded to.
        val_split: share of a folder without val/ to validate on.
        seed: of that share's choice.

    Raises:
        ValueError: no such data, or a folder that is not laid out as it should be; the message says what
            to write instead.
    """
    from fastcnn.data.shards import is_shards, read_shards

    if val_split is not None and data in NAMED:
        raise UserError(f"--val-split: {data} has its own validation images; leave it out")
    if data == "demo":
        root = ensure_demo()
        return read_folder(root, None, seed, name="demo")
    if data == "synthetic":
        return synthetic_source()
    if data in NAMED:
        return torchvision_source(data, Path(data_root))
    if is_shards(data):
        return read_shards(data, Path(data_root), val_split, seed)
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(
            f"--data {data}: no such folder; write an image folder's path or one of {', '.join(NAMED)}"
        )
    if not path.is_dir():
        raise UserError(f"--data {data}: a file; write the folder that holds train/ and val/")
    return read_folder(path, val_split, seed)


def synthetic_source(train: int = 12_800, val: int = 1_280, classes: int = 1000) -> Source:
    """Random labels for images that only the synthetic loader makes."""
    rng = np.random.default_rng(0)
    return Source(
        "synthetic",
        Split(rng.integers(0, classes, train)),
        Split(rng.integers(0, classes, val)),
        tuple(f"class {i}" for i in range(classes)),
    )


def read_folder(root: Path, val_split: float | None, seed: int, name: str | None = None) -> Source:
    """An image folder: `train/` with `val/` or `test/`, or class folders alone with a `val_split`.

    A `val/` without class folders is read with its list: `val.txt` (a file name and a class number or
    name a line) or ImageNet's `LOC_val_solution.csv`, in `val/` or beside it.
    """
    train_root = root / "train" if (root / "train").is_dir() else root
    val_root = next((root / v for v in ("val", "validation", "valid", "test") if (root / v).is_dir()), None)
    if train_root is root:
        val_root = None
    class_names = tuple(d.name for d in _visible_folders(train_root))
    remarks = _left_out(train_root)
    if not class_names:
        raise UserError(f"--data {root}: no class folders in {train_root}; expected {train_root}/CLASS/*.jpg")
    if len(class_names) == 1:
        raise UserError(f"--data {root}: one class only, {class_names[0]}; classification needs two folders")
    train = _read_classes(train_root, class_names)
    if val_root is not None:
        if val_split is not None:
            raise UserError(f"--val-split: {root} has {val_root.name}/; leave it out")
        val = (
            _read_classes(val_root, class_names)
            if _visible_folders(val_root)
            else _read_flat(val_root, class_names)
        )
    elif val_split is None:
        raise UserError(f"--data {root}: no val/ or test/ folder; add one, or add --val-split 0.1")
    else:
        train, val = split_by_class(train, val_split, seed)
    return Source(
        name or root.resolve().name,
        train,
        val,
        class_names,
        native_size=native_size(train),
        remarks=remarks + (_left_out(val_root) if val_root is not None else ()),
    )


def torchvision_source(name: str, root: Path) -> Source:
    """CIFAR and MNIST by torchvision, downloaded into `root` if they are not there."""
    import torchvision

    kinds = {
        "cifar10": (torchvision.datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": (torchvision.datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "mnist": (torchvision.datasets.MNIST, (0.1307,), (0.3081,)),
        "fashion-mnist": (torchvision.datasets.FashionMNIST, (0.2860,), (0.3530,)),
    }
    kind, mean, std = kinds[name]
    splits = []
    for is_train in (True, False):
        data = open_torchvision(name, root, partial(kind, root, train=is_train))
        images = np.asarray(data.data)
        images = images[..., None] if images.ndim == 3 else images
        splits.append(Split(np.asarray(data.targets, dtype=np.int64), images=images))
    return Source(
        name,
        splits[0],
        splits[1],
        tuple(data.classes),
        channels=len(mean),
        native_size=images.shape[1],
        mean=mean,
        std=std,
        mirror=name != "mnist",
    )


def open_torchvision(name: str, root: Path, make: Callable[..., Any]) -> Any:
    """torchvision's data set, `make(download=...)`, of the files in `root`, or downloaded there."""
    try:
        return make(download=False)
    except (OSError, RuntimeError):  # no folder, or not all of it
        pass
    try:
        return make(download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--data {name}: not in {root} and not downloadable ({reason}); "
            f"put torchvision's files there or name their folder with --data-root"
        ) from error


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


def _visible_folders(root: Path) -> list[Path]:
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))


def image_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Paths of the files of a folder, and of those below it, that end so; sorted, without hidden ones."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            os.path.join(parent, name)
            for name in sorted(names)
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return found


def _read_classes(root: Path, class_names: tuple[str, ...]) -> Split:
    present = {d.name for d in _visible_folders(root)}
    unknown = sorted(present - set(class_names))
    if unknown:
        raise UserError(f"{root / unknown[0]}: a class that train/ does not have; add it there or remove it")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        if name not in present:
            continue
        found = image_files(root / name)
        if not found:
            raise UserError(f"{root / name}: a class folder without images; add some or remove it")
        files += found
        labels += [label] * len(found)
    return Split(np.asarray(labels, dtype=np.int64), scan(str(root.resolve()), files))


def _read_flat(root: Path, class_names: tuple[str, ...]) -> Split:
    """A folder of images with a list that gives each one's class."""
    candidates = [d / n for n in ("val.txt", "test.txt", "LOC_val_solution.csv") for d in (root, root.parent)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{root}: neither class folders nor a list; write {root / 'val.txt'} with `FILE CLASS` a line"
        )
    index = {name: i for i, name in enumerate(class_names)}
    files, labels = [], []
    for number, name, label in _listed(found):
        where = f"{found}, line {number}"
        if label not in index and not (label.isdecimal() and int(label) < len(class_names)):
            raise UserError(f"{where}: {name} has the class {label!r}, which train/ does not have")
        if not (root / name).is_file():
            raise UserError(f"{where}: {root / name} is not there; correct the list")
        files.append(str(root / name))
        labels.append(index[label] if label in index else int(label))
    unlisted = sorted(set(image_files(root)) - set(files))
    if unlisted:
        raise UserError(f"{found}: {unlisted[0]} is not listed; add it or remove it ({len(unlisted)} in all)")
    return Split(np.asarray(labels, dtype=np.int64), scan(str(root.resolve()), files))


def _listed(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file name and class of each line of a list of images."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix == ".csv":  # ImageId,PredictionString: the class is the second one's first word
            image, _, prediction = line.partition(",")
            words = [f"{image}.JPEG", *prediction.split()[:1]] if number > 1 else []
        else:
            words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2:
            raise UserError(f"{path}, line {number}: {line.strip()!r} does not give a file and its class")
        yield number, words[0].strip(), words[1]


def split_by_class(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Takes `share` of the images for validation, the same share of every class as nearly as can be."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(split))  # of each image in its shuffled class, from 0 to 1
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        place[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    count = min(max(1, round(share * len(split))), len(split) - 1)
    chosen = np.argsort(place, kind="stable")
    return split.take(np.sort(chosen[count:])), split.take(np.sort(chosen[:count]))


def native_size(split: Split) -> int | None:
    """Pixels a side if all images are small squares of one size."""
    height, width = split.common_size or (0, 0)
    return width if 0 < width == height <= SMALL_IMAGE else None


def _left_out(root: Path) -> tuple[str, ...]:
    """What lies in a folder of class folders and is not read."""
    hidden = sorted(d.name for d in root.iterdir() if d.is_dir() and d.name.startswith("."))
    stray = sorted(f.name for f in root.iterdir() if f.name.lower().endswith(IMAGE_SUFFIXES) and f.is_file())
    remarks = []
    if hidden:
        remarks.append(f"left out: {root / hidden[0]} is hidden" + and_more(hidden))
    if stray and _visible_folders(root):
        remarks.append(f"left out: {root / stray[0]} is in no class folder" + and_more(stray))
    return tuple(remarks)


def and_more(names: Sequence[str]) -> str:
    """After the first of them: how many there are."""
    return f" ({len(names)} in all)" if len(names) > 1 else ""
