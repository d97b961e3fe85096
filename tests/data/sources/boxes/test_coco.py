"""COCO's files as labeling tools export them: places, names of images, boxes from outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small_boxes import boxes, coco, opened, picture, refusal, text
from small_sources import names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def one_each(count: int) -> list[dict[str, Any]]:
    """A box of 10 i + 10 pixels in each image i."""
    return [
        {"id": i, "image_id": 5 + i, "category_id": 3, "bbox": [0, 0, 10 * i + 10, 10]} for i in range(count)
    ]


def widths(split: Any) -> dict[str, list[float]]:
    """Widths of the boxes by the names of their images."""
    return {name: [box[3] - box[1] for box in found] for name, found in zip(names(split), boxes(split))}


SPLIT = {"a": [10], "b": [20], "c": [30], "d": [40]}


@pytest.mark.parametrize(
    ("file", "folder", "prefix"),
    [
        ("annotations/instances_default.json", "images/default", ""),
        ("Annotations/instances_Default.json", "Images/Default", ""),
        ("result.json", "images", "images/"),
        ("result.json", "images", "images\\"),
        ("result.json", "images", "../../label-studio/data/media/upload/1/"),
        ("labels.json", "data", ""),
        ("_annotations.coco.json", ".", ""),
        ("train/_annotations.coco.json", "train", ""),
        ("annotations/coco.json", ".", "C:\\Users\\me\\photos\\"),
        ("annotations/instances.json", "images/deep", "/home/me/photos/"),
    ],
)
def test_a_file_alone_is_found_with_its_images_and_split(file, folder, prefix, root):
    for stem in SPLIT:
        picture(root / folder / f"{stem}.jpg")
    coco(root / file, [f"{prefix}{stem}.jpg" for stem in SPLIT], one_each(4))
    source = opened(root, val_split=0.25)
    assert (len(source.train), len(source.val)) == (3, 1)
    assert {**widths(source.train), **widths(source.val)} == SPLIT
    chosen = opened(root / file, val_split=0.25)
    assert widths(chosen.train) == widths(source.train)


@pytest.mark.parametrize("name", ["sub\\{}.jpg", "./sub/{}.jpg", "SUB/{}.JPG", "train/sub/{}.jpg", "{}.jpg"])
def test_names_of_other_systems_and_places_are_found(name, root):
    for phase, stems in (("train", "ab"), ("val", "c")):
        for stem in stems:
            picture(root / phase / "sub" / f"{stem}.jpg")
        coco(
            root / "annotations" / f"instances_{phase}.json",
            [name.format(stem) for stem in stems],
            one_each(len(stems)),
        )
    source = opened(root) if "train/" not in name else opened(root, skip=True)
    assert widths(source.train) == {"a": [10], "b": [20]}


def test_names_found_by_their_last_part_are_said(root, wording):
    picture(root / "images" / "a.jpg")
    picture(root / "images" / "b.jpg")
    coco(root / "result.json", ["/old/a.jpg", "/old/b.jpg"], one_each(2))
    (remark,) = opened(root, val_split=0.5).remarks
    assert remark.startswith(f"{root}/result.json: ")
    wording(remark)


def test_a_last_part_that_is_not_unique_is_no_match(root, wording):
    for name in ("x/a", "y/a", "b"):
        picture(root / "images" / f"{name}.jpg")
    coco(root / "result.json", ["old/a.jpg", "b.jpg"], one_each(2))
    message = refusal(root, val_split=0.5)
    assert message.startswith(f"{root}/result.json, image 5: old/a.jpg ")
    coco(root / "result.json", ["x/a.jpg", "old1/b.jpg", "old2/b.jpg"], one_each(3))
    wording(refusal(root, val_split=0.5))


def test_a_missing_training_image_is_not_taken_from_the_validation_images(root):
    for phase in ("train", "val"):
        for stem in "ab":
            picture(root / phase / f"{stem}.jpg")
        coco(root / "annotations" / f"{phase}.json", ["a.jpg", "b.jpg"], one_each(2))
    (root / "train" / "a.jpg").unlink()
    assert refusal(root).startswith(f"{root}/annotations/train.json, image 5: ")
    assert names(opened(root, skip=True).train) == ["b"]


def test_files_beside_the_images_of_each_phase_are_read_whatever_they_are_called(root):
    for phase, stems in (("Train", "ab"), ("Valid", "c"), ("Test", "d")):
        for stem in stems:
            picture(root / phase / "images" / f"{stem}.jpg")
        coco(root / phase / "labels.json", [f"{stem}.jpg" for stem in stems], one_each(len(stems)))
        (root / phase / "notes.json").write_text("{}")
    source = opened(root)
    assert source.test is not None
    assert [widths(split) for split in (source.train, source.val, source.test)] == [
        {"a": [10], "b": [20]},
        {"c": [10]},
        {"d": [10]},
    ]


def test_a_test_file_without_annotations_is_passed_over(root):
    for phase, stems in (("train", "ab"), ("val", "c"), ("test", "d")):
        for stem in stems:
            picture(root / phase / f"{stem}.jpg")
        path = root / "annotations" / f"instances_{phase}2017.json"
        coco(path, [f"{stem}.jpg" for stem in stems], one_each(len(stems)))
    path = root / "annotations" / "instances_test2017.json"
    path.rename(root / "annotations" / "image_info_test2017.json")
    content = json.loads((root / "annotations" / "image_info_test2017.json").read_text())
    del content["annotations"]
    (root / "annotations" / "image_info_test2017.json").write_text(json.dumps(content))
    assert opened(root).test is None


def test_a_validation_file_alone_leaves_the_folder_to_other_readers(root):
    for phase, stems in (("train", "ab"), ("val", "c")):
        for stem in stems:
            picture(root / "images" / phase / f"{stem}.jpg")
            text(root / "labels" / phase / f"{stem}.txt", "0 0.5 0.5 0.1 0.2")
    coco(root / "annotations" / "instances_val2017.json", ["c.jpg"], one_each(1))
    text(root / "classes.txt", "cat")
    assert opened(root).class_names == ("cat",)


def test_a_file_that_is_not_the_only_one_can_be_chosen(root, wording):
    for stem in SPLIT:
        picture(root / "images" / f"{stem}.jpg")
    for name in ("first", "second"):
        coco(root / "annotations" / f"{name}.json", [f"{stem}.jpg" for stem in SPLIT], one_each(4))
    message = refusal(root, val_split=0.25)
    wording(message)
    assert len(opened(root / "annotations" / "second.json", val_split=0.25).train) == 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_any_encoding_are_read(encoding, root):
    for stem in "ab":
        picture(root / "images" / f"{stem}.jpg")
    path = root / "annotations" / "instances_default.json"
    coco(path, ["a.jpg", "b.jpg"], one_each(2))
    path.write_text(path.read_text(), encoding=encoding)
    assert len(opened(root, val_split=0.5).train) == 1


def test_an_outline_without_a_box_gives_one(root):
    for stem in "ab":
        picture(root / "images" / f"{stem}.jpg")
    outlines: list[dict[str, Any]] = [
        {"segmentation": [[10, 20, 60, 20, 30, 90], [5, 30, 8, 30, 8, 40]]},
        {"bbox": [], "segmentation": [[10, 20, 60, 20, 30, 90]]},
        {"bbox": [1, 2, 3, 4], "segmentation": [[10, 20, 60, 20, 30, 90]]},
        {"bbox": [1, 2, 3, 5], "segmentation": {"counts": [1, 2], "size": [100, 200]}},
    ]
    annotations = [
        {"id": i, "image_id": 5 + i % 2, "category_id": 3, **fields} for i, fields in enumerate(outlines)
    ]
    coco(root / "result.json", ["a.jpg", "b.jpg"], annotations)
    source = opened(root, val_split=0.5)
    found = dict(zip(names(source.train) + names(source.val), boxes(source.train) + boxes(source.val)))
    assert found == {
        "a": [[0, 5, 20, 60, 90, 0], [0, 1, 2, 4, 6, 0]],
        "b": [[0, 10, 20, 60, 90, 0], [0, 1, 2, 4, 7, 0]],
    }


def test_crowds_alone_are_no_boxes_to_train_on(root, wording):
    for stem in "ab":
        picture(root / "images" / f"{stem}.jpg")
    coco(root / "result.json", ["a.jpg", "b.jpg"], [{**found, "iscrowd": 1} for found in one_each(2)])
    wording(refusal(root, val_split=0.5))


@pytest.mark.parametrize("files", [[], ["x.jpg"]])
@pytest.mark.parametrize("annotation", [one_each(1)[0], {"image_id": 1}, 5])
def test_a_file_of_which_no_image_is_there_is_refused(files, annotation, root, wording):
    picture(root / "images" / "a.jpg")
    coco(root / "result.json", files, [annotation])
    wording(refusal(root, val_split=0.5))
    wording(refusal(root, val_split=0.5, skip=True))


@pytest.mark.parametrize("whole", [False, True])
def test_images_of_another_phase_do_not_stand_for_missing_ones(whole, root, wording):
    """`whole`: the file is named by `--data`."""
    picture(root / "images" / "train" / "0001.jpg")
    for phase in ("train", "val"):
        coco(root / "annotations" / f"{phase}.json", ["0001.jpg"], one_each(1))
    wording(refusal(root / "annotations" / "val.json" if whole else root))
    picture(root / "images" / "val" / "0001.jpg")
    coco(root / "annotations" / "val.json", ["elsewhere/0001.jpg"], one_each(1))
    val = opened(root).val
    assert val.files is not None
    assert val.files.paths[0] == str(root / "images" / "val" / "0001.jpg")
