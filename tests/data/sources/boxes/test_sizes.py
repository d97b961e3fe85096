"""Sizes that label files state, compared with those of the images: resized, rotated and other images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcnn.data.decode import TRANSPOSED
from fastcnn.data.sources.dataset import Split
from odd_images import STORED
from small_boxes import boxes, coco, opened, refusal
from small_sources import names

RED = (10, 60, 40, 90)
"""Left, top, right and bottom of the object in the upright image of 64 x 128 pixels."""
UPRIGHT = (64, 128)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


def photo(path: Path, orientation: int = 1, factor: float = 1, tagged: bool = True) -> tuple[int, ...]:
    """Draw a red object, and store it rotated; return its stored bounds."""
    image = Image.new("RGB", UPRIGHT, "blue")
    image.paste("red", RED)
    turn = STORED.get(orientation)
    stored = image if turn is None else image.transpose(turn)
    bounds = red_of(np.asarray(stored))
    if factor != 1:
        stored = stored.resize((round(stored.width * factor), round(stored.height * factor)))
    exif = Image.Exif()
    exif[0x0112] = orientation if tagged else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, quality=95, subsampling=0, exif=exif)
    return bounds


def red_of(pixels: np.ndarray) -> tuple[int, ...]:
    """Return the bounds of what is red, right and bottom exclusive."""
    red = (pixels[..., 0] > 128) & (pixels[..., 2] < 128)
    (rows,), (columns,) = np.nonzero(red.any(axis=1)), np.nonzero(red.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def annotated(root: Path, images: Mapping[str, tuple[tuple[int, ...], tuple[Any, Any]]]) -> Path:
    """Write a COCO file with a box in each image, and the width and height that it states."""
    path = root / "annotations" / "instances_default.json"
    coco(path, [])
    listed, annotations = [], []
    for i, (name, ((left, top, right, bottom), (width, height))) in enumerate(images.items()):
        listed.append({"id": i, "file_name": name, "width": width, "height": height})
        box = [left, top, right - left, bottom - top]
        annotations.append({"id": i, "image_id": i, "category_id": 3, "bbox": box})
    coco(path, [], annotations, images=listed)
    return path


def covers(split: Split) -> dict[str, float]:
    """Return the IoU of the only box of each image with what is red in it, by name."""
    found = {}
    assert split.files is not None
    for i, (name, ((_, left, top, right, bottom, _),)) in enumerate(zip(names(split), boxes(split))):
        a = red_of(split.files.decode(i, 3))
        width = min(a[2], right) - max(a[0], left)
        height = min(a[3], bottom) - max(a[1], top)
        shared = max(0, width) * max(0, height)
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (right - left) * (bottom - top)
        found[name] = shared / (areas - shared)
    return found


def all_covers(root: Path, **settings: Any) -> dict[str, float]:
    source = opened(root, val_split=0.3, **settings)
    return {**covers(source.train), **covers(source.val)}


@pytest.mark.parametrize("labeled", ["upright", "as stored"])
def test_boxes_cover_their_objects_in_rotated_images(labeled, tmp_path, wording):
    images = {}
    for orientation in (1, *STORED):
        bounds = photo(tmp_path / "images" / f"{orientation}.jpg", orientation)
        swapped = orientation >= TRANSPOSED and labeled == "as stored"
        size = UPRIGHT[::-1] if swapped else UPRIGHT
        images[f"{orientation}.jpg"] = (RED if labeled == "upright" else bounds, size)
    annotated(tmp_path, images)
    found = all_covers(tmp_path)
    assert len(found) == 8
    assert min(found.values()) > 0.9
    remarks = opened(tmp_path, val_split=0.3).remarks
    assert [re.findall(r" (\d+) images", remark) for remark in remarks] == [["7"]] * (labeled != "upright")
    for remark in remarks:
        wording(remark)


def test_a_few_images_labeled_as_stored_are_turned_alone(tmp_path):
    images = {}
    for number, orientation in enumerate((3, 6, 6, 8)):
        bounds = photo(tmp_path / "images" / f"{number}.jpg", orientation)
        stored = number == 3
        images[f"{number}.jpg"] = (bounds if stored else RED, UPRIGHT[::-1] if stored else UPRIGHT)
    annotated(tmp_path, images)
    assert min(all_covers(tmp_path).values()) > 0.9


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.7, 1.5, 2])
@pytest.mark.parametrize("labeled", ["upright", "as stored"])
def test_boxes_are_scaled_to_images_that_were_resized(labeled, factor, tmp_path):
    images = {}
    for orientation in (1, 6):
        bounds = photo(tmp_path / "images" / f"{orientation}.jpg", orientation, factor)
        swapped = orientation == 6 and labeled == "as stored"
        images[f"{orientation}.jpg"] = (bounds if swapped else RED, UPRIGHT[::-1] if swapped else UPRIGHT)
    annotated(tmp_path, images)
    found = all_covers(tmp_path)
    assert len(found) == 2
    assert min(found.values()) > 0.8  # whole pixels of a small image
    remarks = " ".join(opened(tmp_path, val_split=0.3).remarks)
    assert f"scaled by {factor:g}" in remarks


def test_factors_of_their_own_are_said_as_a_range(tmp_path, wording):
    images = {}
    for factor in (0.5, 0.75, 1):
        photo(tmp_path / "images" / f"{factor}.jpg", factor=factor)
        images[f"{factor}.jpg"] = (RED, UPRIGHT)
    annotated(tmp_path, images)
    assert min(all_covers(tmp_path).values()) > 0.8
    wording(*opened(tmp_path, val_split=0.3).remarks)


@pytest.mark.parametrize(
    "size", [(65, 128), (64, 127), (0, 0), (None, None), ("64", 128), (-1, 9), (1e9, None)]
)
def test_sizes_that_differ_by_rounding_or_are_not_stated_leave_boxes_alone(size, tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    photo(tmp_path / "images" / "b.jpg")
    annotated(tmp_path, {"a.jpg": (RED, size), "b.jpg": (RED, UPRIGHT)})
    source = opened(tmp_path, val_split=0.3)
    assert boxes(source.train) == boxes(source.val) == [[[0, *RED, 0]]]
    assert source.remarks == ()


@pytest.mark.parametrize(
    ("size", "reason"),
    [((64, 64), "other"), ((640, 480), "other"), (UPRIGHT[::-1], "rotated"), ((256, 128), "rotated")],
)
def test_images_of_another_shape_are_named_once_and_can_be_skipped(size, reason, tmp_path, wording):
    for name in "abc":
        photo(tmp_path / "images" / f"{name}.jpg")
    outside = (60, 100, 90, 200)
    path = annotated(tmp_path, {"a.jpg": (outside, size), "b.jpg": (RED, UPRIGHT), "c.jpg": (RED, UPRIGHT)})
    message = refusal(tmp_path, val_split=0.3)
    assert message.startswith(f"{path}, image 0: ")
    assert ("rotate" in message) == (reason == "rotated")
    assert "in all" not in message
    wording(message)
    assert sorted(all_covers(tmp_path, skip=True)) == ["b", "c"]


def test_the_size_of_an_image_without_boxes_does_not_matter(tmp_path):
    for name in "abc":
        photo(tmp_path / "images" / f"{name}.jpg")
    path = annotated(tmp_path, {"a.jpg": (RED, UPRIGHT), "b.jpg": (RED, UPRIGHT)})
    content = path.read_text().replace(
        '"images": [', '"images": [{"id": 9, "file_name": "c.jpg", "width": 5, "height": 9}, '
    )
    path.write_text(content)
    source = opened(tmp_path, val_split=0.3)
    assert len(source.train) + len(source.val) == 3


def test_ignored_orientation_with_upright_labels_is_named(tmp_path, wording):
    for name in "ab":
        photo(tmp_path / "images" / f"{name}.jpg", 6)
    path = annotated(tmp_path, {"a.jpg": (RED, UPRIGHT), "b.jpg": (RED, UPRIGHT)})
    message = refusal(tmp_path, val_split=0.3, exif="ignore")
    assert message.startswith(f"{path}, image 0: ")
    assert "omit --exif ignore" in message
    wording(message)
    assert min(all_covers(tmp_path).values()) > 0.9  # the advice works


def test_ignored_orientation_is_worth_a_warning(tmp_path, wording):
    images = {}
    for name in "ab":
        bounds = photo(tmp_path / "images" / f"{name}.jpg", 6)
        images[f"{name}.jpg"] = (bounds, UPRIGHT[::-1])
    annotated(tmp_path, images)
    assert min(all_covers(tmp_path, exif="ignore").values()) > 0.9
    wording(*opened(tmp_path, val_split=0.3, exif="ignore").remarks)
