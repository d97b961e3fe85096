"""Label files of masks and boxes: location, class names, collection of errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.folder import split_by_class
from fastcnn.data.sources.torchvision import open_torchvision
from fastcnn.errors import NAMED_AT_MOST, UserError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""PASCAL VOC's twenty classes (Everingham et al. 2010, table 1), named and numbered as in its files."""
VOC_SETS = {"voc2007": ("trainval", "test"), "voc2012": ("train", "val")}
"""Training and validation set of each year."""

TRAIN = ("train", "train2017")
VAL = ("val", "validation", "valid", "test", "val2017")


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


def check_name(data: str, named: Sequence[str], val_split: float | None) -> Path:
    """Return the folder of `--data`; UserError if it is missing and not a named set."""
    if data in named:
        if val_split is not None:
            raise UserError(f"--val-split: {data} has its own validation images; omit it")
        return Path(data)
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"--data {data}: no such folder; use a folder's path or one of {', '.join(named)}")
    if not path.is_dir():
        raise UserError(f"--data {data}: a file; use the folder of the images and their labels")
    return path


def check_val(root: Path, val: Path | None, val_split: float | None) -> None:
    """Raise UserError unless there is exactly one of validation data `val` and `val_split`."""
    if val is not None and val_split is not None:
        raise UserError(f"--val-split: {root} has {val.relative_to(root)}; omit it")
    if val is None and val_split is None:
        raise UserError(f"--data {root}: nothing to validate on; add val/ beside train/, or --val-split 0.1")


def find_folders(root: Path, kind: str, val_split: float | None) -> list[tuple[Path, Path]]:
    """Find the folders of images and labels for training and, without `val_split`, for validation.

    Args:
        kind: name of the label folders, "masks" or "labels".

    Returns:
        Pairs of folders; none if the layout is unknown.
    """

    def first(names: Sequence[str]) -> tuple[Path, Path] | None:
        candidates = [
            pair
            for name in names
            for pair in (
                (root / name / "images", root / name / kind),
                (root / "images" / name, root / kind / name),
            )
        ]
        return next((pair for pair in candidates if pair[0].is_dir() and pair[1].is_dir()), None)

    train, val = first(TRAIN), first(VAL)
    if train is None and (root / "images").is_dir() and (root / kind).is_dir():
        train, val = (root / "images", root / kind), None
    if train is None:
        return []
    check_val(root, val and val[0], val_split)
    return [train] if val is None else [train, val]


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one per line; none if the file is missing."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"{path}: empty; write a class name a line, in the order of their numbers")
    return names


def open_voc(name: str, kind: Any, data_root: Path) -> list[Any]:
    """Open torchvision's training and validation set of a VOC year; `kind` is its class."""
    year = name.removeprefix("voc")
    return [
        open_torchvision(name, data_root, partial(kind, data_root, year=year, image_set=image_set))
        for image_set in VOC_SETS[name]
    ]


def make_source(
    name: str,
    splits: Sequence[Split],
    class_names: tuple[str, ...],
    *,
    remarks: tuple[str, ...],
    val_split: float | None = None,
    seed: int = 0,
) -> Source:
    """Build a source from training and validation images, or from one split and `val_split`."""
    for split, phase in zip(splits, ("training", "validation")):
        if not len(split):
            raise UserError(f"--data {name}: no {phase} images" + (f" ({remarks[0]})" if remarks else ""))
    if val_split is not None:
        if len(splits[0]) == 1:
            raise UserError(f"--val-split {val_split:g}: there is one image only; add some to {name}")
        splits = split_by_class(splits[0], val_split, seed)
    train, val = splits
    return Source(
        name=name,
        train=train,
        val=val,
        class_names=class_names,
        native_size=native_size(train),
        remarks=remarks,
    )
