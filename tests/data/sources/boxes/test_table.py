"""Tables of boxes, one box a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_boxes import boxes, opened, picture, refusal
from small_sources import names

HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def table(path: Path, *rows: str, head: str = HEAD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\r\n" for row in (head, *rows)), encoding="utf-8-sig")


def test_roboflows_tables_are_read(root):
    for phase, stems in (("train", "abe"), ("valid", "c"), ("test", "d")):
        for stem in stems:
            picture(root / phase / f"{stem}.jpg")
        rows = [f"{stem}.jpg,200,100,dog,10,20,60,40" for stem in stems if stem != "e"]
        table(
            root / phase / "_annotations.csv",
            *rows,
            *(["a.jpg,200,100,cat,1,2,3,4.5"] if phase == "train" else []),
        )
    source = opened(root)
    assert source.test is not None
    assert source.class_names == ("cat", "dog")
    assert [names(split) for split in (source.train, source.val, source.test)] == [
        ["a", "b", "e"],
        ["c"],
        ["d"],
    ]
    assert boxes(source.train) == [
        [[1, 10, 20, 60, 40, 0], [0, 1, 2, 3, 4.5, 0]],
        [[1, 10, 20, 60, 40, 0]],
        [],
    ]


def test_tables_beside_a_shared_folder_list_their_own_images(root):
    for stem in "abc":
        picture(root / "images" / f"{stem}.jpg")
    table(root / "train_labels.csv", "a.jpg,200,100,dog,10,20,60,40", "b.jpg,400,200,dog,10,20,60,40")
    table(root / "val_labels.csv", "c.jpg,200,100,dog,10,20,60,40")
    source = opened(root)
    assert (names(source.train), names(source.val)) == (["a", "b"], ["c"])
    assert boxes(source.train) == [[[0, 10, 20, 60, 40, 0]], [[0, 5, 10, 30, 20, 0]]]


@pytest.mark.parametrize(
    ("head", "row", "expected"),
    [
        ("image_id,x1,y1,x2,y2,label", "{},10,20,60,40,dog", [10, 20, 60, 40]),
        ("ImageID,LabelName,XMin,XMax,YMin,YMax", "{},dog,0.05,0.3,0.2,0.4", [10, 20, 60, 40]),
        ("path,x_min,y_min,x_max,y_max,class_name", "C:\\old\\{}.jpg,10,20,60,40,dog", [10, 20, 60, 40]),
    ],
)
def test_usual_columns_are_known(head, row, expected, root):
    for stem in "ab":
        picture(root / "train" / f"{stem}.jpg")
    table(root / "train.csv", *(row.format(stem) for stem in "ab"), head=head)
    source = opened(root, val_split=0.5)
    assert boxes(source.train) == boxes(source.val) == [[[0, *expected, 0]]]


def test_a_row_without_a_box_is_an_image_without_objects(root):
    for stem in "ab":
        picture(root / "images" / f"{stem}.jpg")
    table(root / "a.csv", "a.jpg,200,100,,,,,", "b.jpg,200,100,dog,1,2,3,4", "b.jpg,200,100,dog,5,6,7,8")
    source = opened(root, val_split=0.5)
    assert source.class_names == ("dog",)
    assert sorted(map(len, boxes(source.train) + boxes(source.val))) == [0, 2]


@pytest.mark.parametrize(
    "row",
    [
        "x.jpg,200,100,dog,1,2,3,4",
        "a.jpg,200,100,dog,1,2,3,wide",
        "a.jpg,200,100,,1,2,3,4",
        "a.jpg,200,100,dog,9,2,3,4",
        "a.jpg,300,100,dog,1,2,3,4",
    ],
)
def test_a_bad_row_is_named_and_can_be_left_out(row, root, wording):
    for stem in "abc":
        picture(root / "images" / f"{stem}.jpg")
    table(root / "boxes.csv", "b.jpg,200,100,dog,1,2,3,4", "c.jpg,200,100,dog,1,2,3,4", row)
    message = refusal(root, val_split=0.4)
    assert message.startswith(f"{root}/boxes.csv, row 4: ")
    wording(message)
    source = opened(root, val_split=0.4, skip=True)
    assert sum(map(len, boxes(source.train) + boxes(source.val))) == 2


def test_a_broken_table_is_told(root):
    picture(root / "images" / "a.jpg")
    table(root / "boxes.csv", "a.jpg,200,100," + "x" * 200_000 + ",1,2,3,4")
    assert refusal(root, val_split=0.5).startswith(f"{root}/boxes.csv: not a table (")


def test_other_tables_are_no_boxes(root):
    (root / "folder.csv").mkdir(parents=True)
    picture(root / "train" / "cat" / "a.jpg")
    table(root / "train.csv", "a,1", head="id,label")
    table(root / "empty.csv", head="")
    assert refusal(root).startswith(f"--data {root}: no images with boxes; ")


@pytest.mark.parametrize("folder", [".", "train"])
def test_a_table_that_names_no_image_is_refused(folder, root, wording):
    picture(root / "train" / "a.jpg")
    path = root / folder / "annotations.csv"
    table(path, "x.jpg,200,100,dog,10,20,60,40", "y.jpg,200,100,cat,10,20,60,40")
    wording(refusal(root, val_split=0.5))
    (root / "train" / "a.jpg").unlink()
    wording(refusal(root, val_split=0.5, skip=True))


def test_boxes_of_missing_images_are_told_although_the_first_image_has_another_size(root, wording):
    for stem in "ab":
        picture(root / f"{stem}.jpg")
    table(root / "annotations.csv", "a.jpg,90,100,dog,10,20,60,40", "x.jpg,200,100,dog,10,20,60,40")
    wording(refusal(root, val_split=0.5))


@pytest.mark.parametrize("width", ["9" * 30, "9" * 5000, str(2**31), "0", "-5", "wide"])
def test_widths_that_no_image_has_are_passed_over(width, root):
    for stem in "ab":
        picture(root / f"{stem}.jpg")
    rows = [f"{stem}.jpg,{width},100,dog,10,20,60,40" for stem in "ab"]
    table(root / "annotations.csv", *rows)
    assert boxes(opened(root, val_split=0.5).train) == [[[0, 10, 20, 60, 40, 0]]]
