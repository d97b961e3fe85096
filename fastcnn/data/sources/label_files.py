"""Label files of masks and boxes: location, class names, collection of errors."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fastcnn import files
from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.layout import PHASES, Phase, check_unique, child, phases
from fastcnn.data.sources.splits import check_shares, split_off
from fastcnn.data.sources.text import lines_of
from fastcnn.data.sources.torchvision import open_torchvision
from fastcnn.data.sources.walk import image_files
from fastcnn.errors import NAMED_AT_MOST, UserError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""PASCAL VOC's twenty classes (Everingham et al. 2010, table 1), named and numbered as in its files."""
VOC_SETS = {"voc2007": ("trainval", "test"), "voc2012": ("train", "val")}
"""Training and validation set of each year."""

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "photos", "data")
"""Usual names of a folder of images beside one of labels."""
LABEL_FOLDERS = {
    "labels": ("labels", "label"),
    "xml": ("annotations", "annotation", "xmls", "xml", "labels", "label"),
    "json": ("annotations", "annotation", "jsons", "json", "labels", "label", "labelme"),
}
"""Usual names of the label folder of each kind."""
PHASE_NAMES: dict[Phase, str] = {"train": "training", "val": "validation", "test": "test"}
"""Names of the phases in messages."""


class BadLabels:
    """Collector of the label errors of all files of a data set."""

    def __init__(self) -> None:
        self.count = 0
        self.lines: list[str] = []
        """Messages of the first errors."""

    def add(self, where: str, reason: str) -> None:
        """Count an error and keep its message if it is among the first ones."""
        self.count += 1
        if len(self.lines) < NAMED_AT_MOST:
            line = f"{where}: {reason}".replace("\n", "\\n")
            self.lines.append(
                line.encode("utf-8", "backslashreplace").decode()
            )  # a file name may hold any bytes

    def apply(self, action: Literal["stop", "skip"]) -> tuple[str, ...]:
        """Return remarks on skipped labels; UserError for errors with "stop"."""
        if not self.count:
            return ()
        if action == "skip":
            return (
                f"--bad-labels skip: {self.count:,} skipped",
                *(f"skipped: {line}" for line in self.lines),
            )
        more = "; ..." if self.count > len(self.lines) else ""
        total = f" ({self.count:,} in all)" if self.count > 1 else ""
        raise UserError(
            f"{'; '.join(self.lines)}{more}{total}: fix or remove them, or skip them with --bad-labels skip"
        )


def check_name(
    data: str, named: Sequence[str], val_split: float | None, *, suffixes: tuple[str, ...] = ()
) -> Path:
    """Return the folder or file of `--data`; UserError if it is missing and not a named set.

    Args:
        suffixes: endings of the files that describe a set; other files are refused.
    """
    if data in named:
        if val_split is not None:
            raise UserError(f"--val-split: {data} has its own validation images; omit it")
        return Path(data)
    path = files.expand_user(data, "--data")
    if not path.exists():
        raise UserError(f"--data {data}: no such folder; use a folder's path or one of {', '.join(named)}")
    if not path.is_dir() and path.suffix.lower() not in suffixes:
        others = f", or a file of {', '.join(suffixes)}" if suffixes else ""
        raise UserError(f"--data {data}: a file; use the folder of the images and their labels{others}")
    return path


def check_parts(root: Path, parts: Collection[Phase], settings: DataSettings) -> None:
    """Check the parts of a set before they are read.

    Raises:
        UserError: no training images, or shares that do not fit the parts, see `check_shares`.
    """
    if "train" not in parts:
        raise UserError(f"--data {root}: no training images; name their folder train, beside {min(parts)}")
    names = {"val": "validation images", "test": "test images"}
    val, test = (name if phase in parts else "" for phase, name in names.items())
    check_shares(settings, val=val, test=test, expected="val/ beside train/")


def find_pairs(root: Path, kind: str) -> Iterator[dict[Phase, tuple[Path, Path]]]:
    """Yield the folders of images and labels by phase, for each usual name of the label folders.

    `PHASE/images` with `PHASE/labels`, or `images/PHASE` with `labels/PHASE`; without phases, `images` with
    `labels` are the training images.
    """
    for name in LABEL_FOLDERS[kind]:
        found = {phase: pair for phase, folder in phases(root).items() if (pair := _pair(folder, name))}
        whole = _pair(root, name)
        if whole is not None:
            images, labels = (phases(folder) for folder in whole)
            for phase in images.keys() & labels.keys():
                found.setdefault(phase, (images[phase], labels[phase]))
        if not found and whole is not None:
            found = {"train": whole}
        if found:
            yield {phase: found[phase] for phase in PHASES if phase in found}


def _pair(folder: Path, name: str) -> tuple[Path, Path] | None:
    images, labels = child(folder, IMAGE_FOLDERS), child(folder, (name,))
    if images is None or labels is None or not images.is_dir() or not labels.is_dir():
        return None
    return images, labels


class LabelFiles(NamedTuple):
    """Images and their label files."""

    images: list[str]
    labels: list[str | None]
    """Label file of each image; None without one."""
    left: list[str]
    """Label files without an image."""
    folder: Path
    """Where label files were looked for."""


def find_labels(root: Path, kind: str, suffix: str, bad: BadLabels) -> dict[Phase, LabelFiles]:
    """Find images and their label files by phase; none if no image has one. See `match_labels`.

    They lie in pairs of folders, see `find_pairs`, or side by side in the folders of the phases or in `root`.

    Raises:
        UserError: two folders of one phase.
    """
    layouts = list(find_pairs(root, kind))
    layouts.append({phase: (folder, folder) for phase, folder in phases(root).items()})
    layouts.append({"train": (root, root)})
    for pairs in layouts:
        listed = {phase: image_files(pair[1], (suffix,)) for phase, pair in pairs.items()}
        if not any(listed.values()):
            continue
        check_unique(root, (folder for pair in pairs.values() for folder in pair))
        found = {
            phase: match_labels(image_files(pair[0]), pair, listed[phase], bad)
            for phase, pair in pairs.items()
            if pair[0] != pair[1] or listed[phase]
        }
        if any(label for files in found.values() for label in files.labels):
            return found
    return {}


def match_labels(
    images: Sequence[str], folders: tuple[Path, Path], labels: Sequence[str], bad: BadLabels
) -> LabelFiles:
    """Match images with label files by their paths within two folders, without the suffix.

    The exact name wins; else case and the form of accents do not matter.

    Args:
        images: paths within the first folder.
        folders: folder of the images, folder of the labels.
        labels: paths within the second folder.
        bad: collects images with several label files, and images that share one, of which the first counts.
    """
    stems = [_stem(image, folders[0]) for image in images]
    exact: dict[str, str] = {}
    for path in labels:
        exact.setdefault(_stem(path, folders[1]), path)
    alike: dict[str, list[str]] = {}
    if not exact.keys() >= set(stems):
        for path in labels:
            alike.setdefault(plain(_stem(path, folders[1])), []).append(path)
    owners: dict[str, str] = {}
    matched: list[tuple[str, str | None]] = []
    for image, stem in zip(images, stems):
        found = [exact[stem]] if stem in exact else alike.get(plain(stem), [])
        if len(found) > 1:
            bad.add(image, f"{found[0]} and {found[1]} differ in case only; keep one of them")
        label = found[0] if found else None
        owner = image if label is None else owners.setdefault(label, image)
        if owner == image:
            matched.append((image, label))
        else:
            bad.add(image, f"{owner} has the same label file {label}; rename one")
    return LabelFiles(
        [image for image, _ in matched],
        [label for _, label in matched],
        [path for path in labels if path not in owners],
        folders[1],
    )


def plain(name: str) -> str:
    """Return a name without the differences that file systems ignore: case and the form of accents."""
    return unicodedata.normalize("NFC", name).lower()


def _stem(path: str, root: Path) -> str:
    return os.path.splitext(path)[0][len(str(root)) + 1 :]


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one per line; none if the file is missing."""
    if not path.is_file():
        return ()
    names = tuple(line.strip() for line in lines_of(path) if line.strip())
    if not names:
        raise UserError(f"{path}: empty; write a class name a line, in the order of their numbers")
    return names


def listed_classes(root: Path) -> tuple[str, ...]:
    """Return the class names of classes.txt or labels.txt in a folder; none without them."""
    path = child(root, ("classes.txt", "labels.txt"))
    return () if path is None else read_class_names(path)


def open_voc(name: str, kind: Any, data_root: Path) -> list[Any]:
    """Open torchvision's training and validation set of a VOC year; `kind` is its class."""
    year = name.removeprefix("voc")
    return [
        open_torchvision(name, data_root, partial(kind, data_root, year=year, image_set=image_set))
        for image_set in VOC_SETS[name]
    ]


def make_source(
    name: str,
    splits: Mapping[Phase, Split],
    class_names: tuple[str, ...],
    *,
    settings: DataSettings,
    seed: int,
    remarks: tuple[str, ...],
) -> Source:
    """Build a source from the images of each phase, and the shares to split off the training images."""
    for phase, split in splits.items():
        if not len(split):
            raise UserError(
                f"--data {name}: no {PHASE_NAMES[phase]} images" + (f" ({remarks[0]})" if remarks else "")
            )
    parts = split_off(splits["train"], settings, seed, val=splits.get("val"), test=splits.get("test"))
    return Source(
        name=name,
        train=parts.train,
        val=parts.val,
        test=parts.test,
        class_names=class_names,
        native_size=native_size(parts.train),
        remarks=(*remarks, *parts.remarks),
    )
