"""Masks and boxes lie in files of their own: where those are, which classes they name, which are bad."""

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
"""PASCAL VOC's twenty (Everingham et al. 2010, table 1), as its files number and name them."""
VOC_SETS = {"voc2007": ("trainval", "test"), "voc2012": ("train", "val")}
"""Of each year: to train on, to validate on."""

TRAIN = ("train", "train2017")
VAL = ("val", "validation", "valid", "test", "val2017")


class BadLabels:
    """What is wrong with the labels of a data set, of all of its files together."""

    def __init__(self) -> None:
        self.count = 0
        self.lines: list[str] = []
        """Of the first ones."""

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        if len(self.lines) < NAMED_AT_MOST:
            line = f"{where}: {reason}".replace("\n", "\\n")
            self.lines.append(line.encode("utf-8", "backslashreplace").decode())  # a name may be of any bytes

    def apply(self, action: Literal["stop", "skip"]) -> tuple[str, ...]:
        """Remarks on what is left out; UserError if nothing may be."""
        if not self.count:
            return ()
        if action == "skip":
            return (
                f"--bad-labels skip: {self.count:,} left out",
                *(f"left out: {line}" for line in self.lines),
            )
        more = "; ..." if self.count > len(self.lines) else ""
        total = f" ({self.count:,} in all)" if self.count > 1 else ""
        raise UserError(
            f"{'; '.join(self.lines)}{more}{total}: mend or remove them, "
            f"or leave them out with --bad-labels skip"
        )


def check_name(data: str, named: Sequence[str], val_split: float | None) -> Path:
    """The folder that `--data` means, which must be there unless it is one of the named sets."""
    if data in named:
        if val_split is not None:
            raise UserError(f"--val-split: {data} has its own validation images; leave it out")
        return Path(data)
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"--data {data}: no such folder; write a folder's path or one of {', '.join(named)}")
    if not path.is_dir():
        raise UserError(f"--data {data}: a file; write the folder of the images and their labels")
    return path


def check_val(root: Path, val: Path | None, val_split: float | None) -> None:
    """UserError unless there is exactly one of a folder (or file) to validate on and a share."""
    if val is not None and val_split is not None:
        raise UserError(f"--val-split: {root} has {val.relative_to(root)}; leave it out")
    if val is None and val_split is None:
        raise UserError(f"--data {root}: nothing to validate on; add val/ beside train/, or --val-split 0.1")


def find_folders(root: Path, kind: str, val_split: float | None) -> list[tuple[Path, Path]]:
    """Where images are and where their labels are: to train on, and, without `val_split`, to validate on.

    Args:
        kind: "masks" or "labels", the name of the folder of the labels.
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
    """A name a line; none if the file is not there."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"{path}: empty; write a class name a line, in the order of their numbers")
    return names


def open_voc(name: str, kind: Any, data_root: Path) -> list[Any]:
    """torchvision's data sets of a year, to train and to validate on; `kind` is its class."""
    year = name.removeprefix("voc")
    return [
        open_torchvision(name, data_root, partial(kind, data_root, year=year, image_set=image_set))
        for image_set in VOC_SETS[name]
    ]


def make_source(
    name: str,
    splits: Sequence[Split],
    class_names: tuple[str, ...],
    remarks: tuple[str, ...],
    val_split: float | None = None,
    seed: int = 0,
) -> Source:
    """From the images to train and to validate on, or from all of them and the share to validate on."""
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
