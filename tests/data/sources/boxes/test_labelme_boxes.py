"""Images with LabelMe's files as sets of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small_boxes import boxes, opened, picture, refusal, text
from small_sources import names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def shape(label: str = "dog", kind: str = "rectangle", points: Any = ((60, 40), (10, 20))) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points}


def labelme(path: Path, *shapes: Any, size: tuple[int, int] = (200, 100)) -> None:
    content = {"imagePath": "..\\old.jpg", "imageWidth": size[0], "imageHeight": size[1], "shapes": shapes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


POLYGON = shape("cat", "polygon", [[10, 20], [30, 5], [20, 40]])


@pytest.mark.parametrize(
    ("images", "labels"), [(".", "."), ("images", "annotations"), ("images", "Labels"), ("images", "json")]
)
def test_files_beside_images_or_apart_give_boxes(images, labels, root):
    for stem in "abcd":
        picture(root / images / f"{stem}.jpg")
        labelme(root / labels / f"{stem}.json", shape(), POLYGON)
    source = opened(root, val_split=0.25)
    assert (source.class_names, source.remarks) == (("cat", "dog"), ())
    assert boxes(source.train) == [[[1, 10, 20, 60, 40, 0], [0, 10, 5, 30, 40, 0]]] * 3


@pytest.mark.parametrize("folders", ["{} {}", "{}/images {}/labels", "images/{} labels/{}"])
def test_folders_of_the_phases_are_read(folders, root):
    for phase, stems in (("train", "ab"), ("val", "c")):
        images, labels = folders.format(phase, phase).split()
        for stem in stems:
            picture(root / images / f"{stem}.jpg")
            labelme(root / labels / f"{stem}.json", shape())
    source = opened(root)
    assert (names(source.train), names(source.val)) == (["a", "b"], ["c"])


def test_points_and_lines_are_skipped_and_their_labels_are_no_classes(root, wording):
    for stem in "ab":
        picture(root / f"{stem}.jpg")
        labelme(
            root / f"{stem}.json",
            shape(),
            shape("eye", "point", [[3, 4]]),
            shape("edge", "line", [[3, 4], [9, 9]]),
            shape("edge", "linestrip", [[3, 4], [9, 9], [3, 9]]),
        )
    source = opened(root, val_split=0.5)
    assert source.class_names == ("dog",)
    assert boxes(source.train) == [[[0, 10, 20, 60, 40, 0]]]
    (remark,) = source.remarks
    wording(remark)


def test_listed_classes_keep_their_order_without_labelmes_own(root):
    picture(root / "a.jpg")
    picture(root / "b.jpg")
    for stem in "ab":
        labelme(root / f"{stem}.json", shape(), POLYGON)
    text(root / "labels.txt", "__ignore__", "_background_", "dog", "cat")
    assert opened(root, val_split=0.5).class_names == ("dog", "cat")


@pytest.mark.parametrize(
    "bad",
    [
        shape(points=[[1, 2]]),
        shape(kind="polygon", points=[[1, 2], [3, 4]]),
        shape(label=""),
        shape(points=[[1, 2], [1, 9]]),
        shape(points=[[300, 2], [301, 9]]),
        shape(points=[[float("nan"), 2], [3, 4]]),
        {"points": [[1, 2], [3, 4]], "shape_type": "rectangle"},
        "dog",
    ],
    ids=["a point", "two points", "no label", "no area", "outside", "NaN", "label missing", "no shape"],
)
def test_a_bad_shape_is_named_and_can_be_left_out(bad, root, wording):
    for stem in "ab":
        picture(root / f"{stem}.jpg")
        labelme(root / f"{stem}.json", shape(), *([bad] if stem == "a" else []))
    message = refusal(root, val_split=0.5)
    assert message.startswith(f"{root}/a.json, shape 2: ")
    wording(message)
    source = opened(root, val_split=0.5, skip=True)
    assert boxes(source.train) + boxes(source.val) == [[[0, 10, 20, 60, 40, 0]]] * 2


def test_a_broken_file_takes_its_image_along(root):
    for stem in "abc":
        picture(root / f"{stem}.jpg")
        labelme(root / f"{stem}.json", shape())
    (root / "a.json").write_text("{")
    assert refusal(root, val_split=0.5).startswith(f"{root}/a.json: not JSON (")
    source = opened(root, val_split=0.5, skip=True)
    assert sorted(names(source.train) + names(source.val)) == ["b", "c"]


def test_boxes_are_scaled_to_resized_images(root):
    for stem in "ab":
        picture(root / f"{stem}.jpg")
        labelme(root / f"{stem}.json", shape(), size=(400, 200))
    assert boxes(opened(root, val_split=0.5).train) == [[[0, 5, 10, 30, 20, 0]]]
