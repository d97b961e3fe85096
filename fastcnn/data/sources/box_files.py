"""Readers and checks of box files: YOLO's text, VOC's XML and COCO's JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from fastcnn.data.sources.label_files import BadLabels
from fastcnn.data.sources.manifest import in_threads
from fastcnn.data.targets import Boxes
from fastcnn.errors import UserError

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

    def add_broken(self, image: int, number: int, reason: str) -> None:
        """Add an invalid row."""
        self.broken[len(self.values)] = reason
        self.values.append((image, number, *(0.0,) * 6))

    def add_unread(self, image: int, reason: str) -> None:
        """Add an image whose boxes cannot be read."""
        self.unread.add(image)
        self.add_broken(image, 0, reason)


def checked(rows: Rows, sizes: np.ndarray, num_classes: int, bad: BadLabels) -> Boxes:
    """Return the valid boxes, clipped at the border of their images.

    Args:
        sizes: height and width of the images, [N, 2]; 0 if unknown, which disables clipping.
        bad: collects the invalid boxes.
    """
    table = np.array(rows.values, dtype=np.float64).reshape(-1, 8)
    image, classes = table[:, 0].astype(np.int64), table[:, 2]
    sides = sizes[image][:, ::-1].astype(np.float64)
    known = (sides > 0).all(axis=1, keepdims=True)
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
    good = np.ones(len(table), dtype=bool)
    good[list(reason_of)] = False
    order = np.flatnonzero(good)[np.argsort(image[good], kind="stable")]
    first = np.concatenate([[0], np.bincount(image[order], minlength=len(sizes)).cumsum()]).astype(np.int64)
    values = np.column_stack([classes, *ends, table[:, 7]]).astype(np.float32)
    return Boxes(first, values[order])


def read_yolo(paths: Sequence[str | None]) -> Rows:
    """Read YOLO's text files: a box per line, `class cx cy w h` as fractions of the image's sides.

    Args:
        paths: files of N images; None for an image without boxes.
    """
    rows = Rows(
        lambda image, number: f"{paths[image]}" + (f", line {number}" if number else ""), relative=True
    )
    for image, content in enumerate(in_threads(_read, paths)):
        if isinstance(content, OSError):
            rows.add_unread(image, content.strerror or "cannot be read")
            continue
        for number, line in enumerate(content.decode("utf-8-sig", "replace").split("\n"), 1):
            words = line.split()
            if not words:
                continue
            try:
                label, x, y, w, h = map(float, words)
            except ValueError:
                label = math.nan
            if label % 1 != 0:  # also true for NaN
                rows.add_broken(image, number, f"{line.strip()[:60]!r} is not `class cx cy w h`")
                continue
            rows.values.append((image, number, label, x - w / 2, y - h / 2, x + w / 2, y + h / 2, 0))
    return rows


def read_voc(paths: Sequence[str], class_names: Sequence[str]) -> Rows:
    """Read PASCAL VOC's XML files.

    Pixels are counted from 1, and a box includes its last pixel (development kit of 2012, section 3.5);
    `difficult` objects are crowds.

    Args:
        paths: files of N images.
    """
    rows = Rows(lambda image, number: f"{paths[image]}, object {number}" if number else paths[image])
    index = {name: float(i) for i, name in enumerate(class_names)}
    for image, content in enumerate(in_threads(_read, paths)):
        if isinstance(content, OSError):
            rows.add_unread(image, content.strerror or "cannot be read")
            continue
        try:
            root = ElementTree.fromstring(content)
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            rows.add_unread(image, f"not XML ({error})")
            continue
        for number, item in enumerate(root.iter("object"), 1):
            name = item.findtext("name", "").strip()
            try:
                left, top, right, bottom = (
                    float(item.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
            except ValueError:
                rows.add_broken(image, number, "no bndbox of four numbers")
                continue
            if name not in index:
                rows.add_broken(image, number, f"class {name!r}, which is none of the {len(index)}")
                continue
            difficult = item.findtext("difficult", "0").strip() == "1"
            rows.values.append((image, number, index[name], left - 1, top - 1, right, bottom, difficult))
    return rows


def _read(path: str | None) -> bytes | OSError:
    try:
        return Path(path).read_bytes() if path is not None else b""
    except OSError as error:
        return error


class Coco(NamedTuple):
    """A COCO file of instances (Lin et al. 2014; cocodataset.org/#format-data)."""

    path: Path
    images: dict[Any, str]
    """File names by image id."""
    categories: dict[Any, str]
    """Names by category id, in the order of the ids."""
    annotations: list[Any]


def read_coco(path: Path) -> Coco:
    """Read a COCO file; UserError if it is malformed."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=_without_outlines)
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        categories = {key: names[key] for key in sorted(names)}
        annotations = content["annotations"]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    except KeyError as error:
        raise UserError(f"{path}: something has no {error}; see cocodataset.org/#format-data") from error
    except TypeError as error:
        raise UserError(f"{path}: not as COCO has it ({error}); see cocodataset.org/#format-data") from error
    if len(images) < len(content["images"]):
        raise UserError(f"{path}: two images have the same id; give each its own")
    return Coco(path, images, categories, annotations)


def _without_outlines(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("segmentation", None)  # most of the file's bytes
    return record


def coco_rows(coco: Coco, index: dict[Any, int | None], classes: dict[Any, int]) -> Rows:
    """Return the boxes of a COCO file.

    Args:
        index: image numbers by image id; None for a skipped image.
        classes: class numbers by category id.
    """

    def where(image: int, number: int) -> str:
        annotation = coco.annotations[number]
        known = isinstance(annotation, dict) and "id" in annotation
        return f"{coco.path}, annotation {annotation['id'] if known else f'at place {number}'}"

    rows = Rows(where)
    for number, annotation in enumerate(coco.annotations):
        try:
            image, category = annotation["image_id"], annotation["category_id"]
            if image not in index:
                rows.add_broken(0, number, f"image {image}, which is not listed")
                continue
            place = index[image]
            if place is None:
                continue
            if category not in classes:
                rows.add_broken(place, number, f"category {category}, which is none of the {len(classes)}")
                continue
            left, top, width, height = map(float, annotation["bbox"])
            crowd = bool(annotation.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, OverflowError):
            rows.add_broken(0, number, "not image_id, category_id and a bbox of four numbers")
            continue
        rows.values.append((place, number, classes[category], left, top, left + width, top + height, crowd))
    return rows
