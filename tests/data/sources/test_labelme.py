"""LabelMe's files: shapes, their bounds, and files that are not LabelMe's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcnn.data.sources.labelme import bounds, read_labelme


def labelme(path: Path, *shapes: Any, **others: Any) -> Path:
    content = {
        "shapes": list(shapes),
        "imagePath": "..\\a.jpg",
        "imageHeight": 100,
        "imageWidth": 200,
        **others,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        ("polygon", [[10, 20], [30, 5], [20, 40]], (10, 5, 30, 40)),
        ("rectangle", [[30, 40], [10, 20]], (10, 20, 30, 40)),
        ("rectangle", [[10, 20], [30, 20], [30, 40], [10, 40]], (10, 20, 30, 40)),
        ("rotation", [[20, 10], [30, 20], [20, 30], [10, 20]], (10, 10, 30, 30)),
        ("circle", [[50, 50], [53, 54]], (45, 45, 55, 55)),
        ("mask", [[10, 20], [29, 39]], (10, 20, 30, 40)),
        ("polygon", [[10, 20], [30, 5]], None),
        ("rectangle", [[10, 20]], None),
        ("rectangle", [[1, 2], [3]], None),
        ("rectangle", [["a", 2], [3, 4]], None),
        ("rectangle", None, None),
    ],
)
def test_bounds_enclose_a_shape(kind, points, expected, tmp_path):
    path = labelme(tmp_path / "a.json", {"label": " cat ", "shape_type": kind, "points": points})
    (shape,) = read_labelme(path).shapes
    assert (shape.label, shape.kind) == ("cat", kind)
    assert bounds(shape) == expected


def test_a_shape_without_a_kind_is_a_polygon_as_in_old_files(tmp_path):
    path = labelme(tmp_path / "a.json", {"label": 3, "points": [[1, 2], [3, 4], [1, 4]]})
    found = read_labelme(path)
    assert (found.image_path, found.height, found.width) == ("..\\a.jpg", 100, 200)
    assert (found.shapes[0].label, found.shapes[0].kind) == ("3", "polygon")
    np.testing.assert_array_equal(found.shapes[0].points, [[1, 2], [3, 4], [1, 4]])


def test_missing_sizes_and_malformed_shapes_do_not_hide_the_others(tmp_path):
    path = labelme(tmp_path / "a.json", "cat", {}, imageHeight=None, imageWidth="wide", imagePath=None)
    found = read_labelme(path)
    assert (found.image_path, found.height, found.width) == ("", 0, 0)
    assert [(shape.label, len(shape.points)) for shape in found.shapes] == [("", 0)] * 2


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"images": []}', b'{"shapes": {}}', b"\xff\xfe", b"[" * 9**6]
)
def test_another_file_is_refused_with_a_reason(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^not "):
        read_labelme(tmp_path / "a.json")
