"""Label files of masks and boxes: location, class names, collection of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.layout import PHASES, Phase, child, phases
from fastcnn.data.sources.splits import check_shares, split_off
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


def find_folders(root: Path, kind: str, settings: DataSettings) -> dict[Phase, tuple[Path, Path]]:
    """Find the folders of images and labels of each phase.

    Args:
        kind: name of the label folders, "masks" or "labels".

    Returns:
        A pair of folders by phase; none if the layout is unknown.
    """
    images, labels = child(root, ("images",)), child(root, (kind,))
    image_phases, label_phases = (phases(f) if f and f.is_dir() else {} for f in (images, labels))
    found: dict[Phase, tuple[Path, Path]] = {}
    for phase in PHASES:
        pairs = [(image_phases.get(phase), label_phases.get(phase))]
        folder = phases(root).get(phase)
        if folder is not None:
            pairs.insert(0, (child(folder, ("images",)), child(folder, (kind,))))
        for one, other in pairs:
            if one is not None and other is not None:
                found.setdefault(phase, (one, other))
    if "train" not in found and images is not None and labels is not None:
        found = {"train": (images, labels)}
    if "train" not in found:
        return {}
    names = {phase: str(pair[0].relative_to(root)) for phase, pair in found.items()}
    check_shares(settings, val=names.get("val", ""), test=names.get("test", ""))
    return found


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
            name_of = {"train": "training", "val": "validation", "test": "test"}[phase]
            raise UserError(f"--data {name}: no {name_of} images" + (f" ({remarks[0]})" if remarks else ""))
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
