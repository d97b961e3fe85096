"""Read boxes of YOLO's text files, one file per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcnn.data.sources.boxes.rows import BoxSet, Rows, read_bytes, with_boxes
from fastcnn.data.sources.boxes.yolo_places import (
    NAME_FILES,
    described_images,
    images_by_layout,
    missing_places,
    read_description,
)
from fastcnn.data.sources.label_files import BadLabels, read_class_names
from fastcnn.data.sources.layout import child
from fastcnn.data.sources.manifest import in_threads
from fastcnn.data.sources.text import decode_text
from fastcnn.errors import UserError


def read_yolo_set(root: Path, file: Path | None, bad: BadLabels) -> BoxSet | None:
    """Read a set of YOLO's text files; None if there is none.

    Args:
        file: data.yaml; None: the one in `root`, if any.
    """
    path, content = read_description(root, file)
    found = described_images(path, content, bad) or images_by_layout(root, bad)
    if not found:
        missing = missing_places(path, content)
        if missing:
            raise UserError(f"{path}: {missing[0]} does not exist; correct it, and `path:` if there is one")
        return None
    looked = [files.folder for files in found.values()]
    names = _names(path, content) or _listed_names(root, looked)
    if not names:
        raise UserError(
            f"--data {root}: no class names; add {root}/data.yaml with `names: [cat, dog]`, or classes.txt"
        )
    keypoints = _keypoints(content)
    parts = {
        phase: with_boxes(files, phase, read_yolo(files.labels, keypoints=keypoints))
        for phase, files in found.items()
    }
    outside = [
        folder for folder in looked if root.resolve() not in (folder.resolve(), *folder.resolve().parents)
    ]
    remarks = (f"{path}: labels are read outside of {root}, from {outside[0]}",) if outside else ()
    return BoxSet(parts=parts, class_names=names, remarks=remarks)


def read_yolo(paths: Sequence[str | None], *, keypoints: int = 0) -> Rows:
    """Read YOLO's text files, `class cx cy w h` or `class x y x y x y ...` a line as fractions of the sides.

    A polygon becomes the box around it. A sixth number, the confidence of a prediction, is ignored.

    Args:
        paths: files of N images; None for an image without boxes.
        keypoints: numbers of keypoints that follow each box, and are ignored.
    """
    rows = Rows(
        lambda image, number: f"{paths[image]}" + (f", line {number}" if number else ""), relative=True
    )
    polygons = confidences = 0
    for image, content in enumerate(in_threads(read_bytes, paths)):
        if isinstance(content, OSError):
            rows.add_unread(image, content.strerror or "cannot be read")
            continue
        try:
            lines = decode_text(content).splitlines()
        except UnicodeDecodeError:
            rows.add_unread(image, "not a text file")
            continue
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                label, *values = map(float, words)
            except ValueError:
                label, values = math.nan, []
            count = len(values)
            if keypoints and count == 4 + keypoints:
                count = 4
            is_polygon = count >= 6 and count % 2 == 0
            has_confidence = count == 5 and 0 <= values[4] <= 1
            if label % 1 != 0 or not (count == 4 or has_confidence or is_polygon):  # also true for NaN
                rows.add_broken(image, number, f"{line.strip()[:60]!r} is not `class cx cy w h`")
                continue
            if max(map(abs, values[:count])) > 2:  # a box of the whole image and its overhang is not
                rows.add_broken(
                    image, number, f"{line.strip()[:60]!r} has pixels, not fractions of the image's sides"
                )
                continue
            polygons += is_polygon
            confidences += has_confidence
            corners = _around(values) if is_polygon else _corners(*values[:4])
            rows.values.append((image, number, label, *corners, 0))
    if polygons:
        rows.remarks.append(f"polygons read as the boxes around them: {polygons:,}")
    if confidences:
        rows.remarks.append(f"lines with a sixth column, a confidence, which is ignored: {confidences:,}")
    return rows


def _corners(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _around(points: Sequence[float]) -> tuple[float, ...]:
    """Return the box around a polygon; not a number if one of its points is none."""
    if not all(map(math.isfinite, points)):
        return (math.nan,) * 4
    x, y = points[0::2], points[1::2]
    return min(x), min(y), max(x), max(y)


def _names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names of data.yaml, a list or by number; none without them."""
    names = content.get("names")
    if isinstance(names, dict):
        try:
            by_number = {int(key): name for key, name in names.items()}
        except ValueError:
            by_number = {}
        if set(by_number) != set(range(len(names))):
            raise UserError(f"{path}: names must be numbered from 0 on, without gaps")
        names = [by_number[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        return ()
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        raise UserError(f"{path}: nc is {count}, but there are {len(names)} names; correct one of them")
    return tuple(str(name) for name in names)


def _listed_names(root: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the class names of a list in `root`, a folder of label files or the one around it; else none."""
    places = [root, *folders, *(folder.parent for folder in folders if folder != root)]
    lists = (child(place, NAME_FILES) for place in places)
    return next((read_class_names(path) for path in lists if path is not None), ())


def _keypoints(content: dict[str, Any]) -> int:
    shape = content.get("kpt_shape")
    valid = isinstance(shape, list) and len(shape) > 0 and all(str(v).isdecimal() for v in shape)
    return math.prod(map(int, shape)) if isinstance(shape, list) and valid else 0
