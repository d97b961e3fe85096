"""Boxes as label files have them, and their checks; a reader of each format fills them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastcnn.data.reading import read_file
from fastcnn.data.sources.label_files import BadLabels, LabelFiles
from fastcnn.data.sources.layout import Phase
from fastcnn.data.targets import Boxes

SLACK_PX, SLACK_SHARE = 1, 0.01
"""Tolerated overhang of a box, which is clipped silently: pixels, or for files with relative coordinates this
fraction of the image's side if that is more."""


class Rows:
    """Boxes in the order of their files, including invalid ones."""

    def __init__(self, where: Callable[[int, int], str], *, relative: bool = False) -> None:
        self.where = where
        """Describes the place of a box, given its image and its number there, for messages."""
        self.relative = relative
        """Coordinates are fractions of the image's sides, not pixels."""
        self.values: list[tuple[float, ...]] = []
        """Image, number, class, left, top, right, bottom (right and bottom exclusive), crowd flag."""
        self.broken: dict[int, str] = {}
        """Reason for each invalid row."""
        self.unread: set[int] = set()
        """Images whose boxes cannot be read."""
        self.misfits: set[int] = set()
        """Images of another size than their label file states; their boxes are not used."""
        self.remarks: list[str] = []
        """Messages about what the reader made of the files."""

    def add_broken(self, image: int, number: int, reason: str) -> None:
        """Add an invalid row."""
        self.broken[len(self.values)] = reason
        self.values.append((image, number, *(0.0,) * 6))

    def add_unnamed(self, image: int, number: int, name: str, count: int) -> None:
        """Add a row whose class is none of the `count` ones."""
        self.add_broken(
            image, number, f"class {name!r}, which is none of the {count}" if name else "no class name"
        )

    def add_unread(self, image: int, reason: str) -> None:
        """Add an image whose boxes cannot be read."""
        self.unread.add(image)
        self.add_broken(image, 0, reason)

    @property
    def table(self) -> np.ndarray:
        """The values, float64 [K, 8]."""
        return np.array(self.values, dtype=np.float64).reshape(-1, 8)


@dataclass(kw_only=True)
class LabeledImages:
    """Images of one phase, with the boxes of their label files."""

    key: str
    """Name of the set, the cache's key of its headers."""
    images: Sequence[str]
    """N paths."""
    rows: Rows
    looked: str
    """Where labels were looked for, for messages."""
    stated: np.ndarray | None = None
    """Height and width of each image as its label file states them, [N, 2]; 0 or None if not stated."""
    place: Callable[[int], str] = str
    """Describes where the size of an image is stated."""
    unlabeled: Sequence[int] = ()
    """Images without a label file."""
    left: Sequence[str] = ()
    """Label files without an image."""


@dataclass(kw_only=True)
class BoxSet:
    """A set of images with boxes, as a reader finds it."""

    parts: dict[Phase, LabeledImages]
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def with_boxes(
    found: LabelFiles, phase: Phase, rows: Rows, sizes: Sequence[tuple[int, int]] | None = None
) -> LabeledImages:
    """Return images with the boxes of their label files.

    Args:
        sizes: height and width that each label file states, see `LabeledImages.stated`.
    """
    return LabeledImages(
        key=f"{found.folder.resolve()} {phase} boxes",
        images=found.images,
        rows=rows,
        looked=str(found.folder),
        stated=None if sizes is None else np.array(sizes, dtype=np.int64).reshape(-1, 2),
        place=lambda image: str(found.labels[image]),
        unlabeled=[i for i, label in enumerate(found.labels) if label is None],
        left=found.left,
    )


def read_bytes(path: str | None) -> bytes | OSError:
    """Return the content of a label file, or why it cannot be read; no bytes for None."""
    try:
        return read_file(path) if path is not None else b""
    except OSError as error:
        return error


def checked(
    rows: Rows, table: np.ndarray, sizes: np.ndarray, num_classes: int, bad: BadLabels
) -> tuple[Boxes, int]:
    """Return the valid boxes, clipped at the border of their images, and the number of duplicates dropped.

    Args:
        table: the rows, see `Rows.table`.
        sizes: height and width of the images, [N, 2]; 0 if unknown, which disables clipping.
        bad: collects the invalid boxes.
    """
    image, classes = table[:, 0].astype(np.int64), table[:, 2]
    sides = sizes[image][:, ::-1].astype(np.float64)
    known = (sides > 0).min(axis=1, keepdims=True)
    limit = np.maximum(SLACK_PX, SLACK_SHARE * sides if rows.relative else 0)
    # Clip, and find faults column by column.
    with np.errstate(all="ignore"):  # values that are not finite are found below
        if rows.relative:
            table[:, 3:7] *= np.tile(sides, 2)
        low, high = table[:, 3:5], table[:, 5:7]
        center = (low + high) / 2
        ends = [np.where(known, end.clip(0, sides), end).astype(np.float32) for end in (low, high)]
        faults = {  # later ones take precedence
            "reaches over the image's border": known & ((low < -limit) | (high > sides + limit)),
            "has no area": known & (ends[0] >= ends[1]),
            "lies outside the image": known & ((center < 0) | (center > sides)),
            "class": ((classes < 0) | (classes >= num_classes))[:, None],
            "is not of finite numbers": ~np.isfinite(table[:, 3:7]),
        }
    # One reason per invalid row, reported in the order of the files.
    reason_of: dict[int, str] = {}
    for reason, found in faults.items():
        reason_of.update(dict.fromkeys(np.flatnonzero(found.any(axis=1)).tolist(), reason))
    reason_of.update(rows.broken)
    misfit = np.isin(image, list(rows.misfits))  # reported already
    reason_of = {row: reason for row, reason in reason_of.items() if not misfit[row]}
    for row in sorted(reason_of):
        reason = reason_of[row]
        if reason == "class":
            reason = f"class {classes[row]:g}, but there are {num_classes} (0 to {num_classes - 1})"
        elif row not in rows.broken:
            corners = ", ".join(f"{value:.6g}" for value in table[row, 3:7])
            width, height = sides[row]
            reason = f"the box ({corners}) in {width:g} x {height:g} pixels {reason}"
        bad.add(rows.where(int(image[row]), int(table[row, 1])), reason)
    # Valid rows, sorted by image.
    good = ~misfit
    good[list(reason_of)] = False
    order = np.flatnonzero(good)[np.argsort(image[good], kind="stable")]
    values = np.column_stack([classes, *ends, table[:, 7]]).astype(np.float32)
    kept = order[_is_first(np.column_stack([image[order], values[order]])) | ~known[order, 0]]
    first = np.concatenate([[0], np.bincount(image[kept], minlength=len(sizes)).cumsum()]).astype(np.int64)
    return Boxes(first, values[kept]), len(order) - len(kept)


def _is_first(rows: np.ndarray) -> np.ndarray:
    """Return whether each row is the first of its kind."""
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(rows, axis=0, return_index=True)[1]] = True
    return first
