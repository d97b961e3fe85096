"""Reader of LabelMe's JSON: one file per image with its outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastcnn.data.reading import read_file
from fastcnn.data.sources.text import stated_side

NO_AREA = ("point", "points", "line", "linestrip")
"""Kinds of shapes that cover no area, and so are neither boxes nor regions of a mask."""


class Shape(NamedTuple):
    """One outline."""

    label: str
    """Class name."""
    kind: str
    """polygon; rectangle: opposite corners in any order; circle: center and a point of the rim; mask: first
    and last pixel of its bounds; or one of `NO_AREA`."""
    points: np.ndarray
    """Points x, y in pixels, float64 [P, 2]; none if they are malformed."""
    mask: str = ""
    """PNG in base64 within the bounds, for kind mask."""


class LabelMe(NamedTuple):
    """One file of LabelMe (github.com/wkentaro/labelme); its pixels are those of the upright image."""

    image_path: str
    """Path of the image, relative to the file's folder, as a system of any kind writes it; "" if missing."""
    height: int
    """Height of the image in pixels; 0 if missing."""
    width: int
    shapes: list[Shape]


def read_labelme(path: str | Path) -> LabelMe:
    """Read a file of LabelMe.

    Raises:
        OSError: missing, or not a regular file.
        ReadError: it cannot be read.
        ValueError: not LabelMe's JSON; the message is the reason.
    """
    data = read_file(path)
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("not JSON (nested too deeply)") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise ValueError("not LabelMe's JSON: no list of shapes")
    return LabelMe(
        str(content.get("imagePath") or ""),
        stated_side(content.get("imageHeight")),
        stated_side(content.get("imageWidth")),
        [_shape(shape) for shape in shapes],
    )


def bounds(shape: Shape) -> tuple[float, float, float, float] | None:
    """Return left, top, right and bottom of a shape, right and bottom exclusive; None if malformed."""
    points = shape.points
    if len(points) < (3 if shape.kind == "polygon" else 2):
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    if shape.kind == "circle":
        radius = np.hypot(*(points[1] - points[0]))
        low, high = points[0] - radius, points[0] + radius
    elif shape.kind == "mask":
        high = high + 1
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _shape(content: Any) -> Shape:
    fields = content if isinstance(content, dict) else {}
    label = fields.get("label")
    try:
        points = np.array(fields.get("points"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        points = np.zeros((0, 2))
    return Shape(
        "" if label is None else str(label).strip(),
        str(fields.get("shape_type") or "polygon"),  # older files have polygons only
        points,
        str(fields.get("mask") or ""),
    )
