"""YOLO's texts: lines, names of files and folders, data.yaml."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from small_boxes import boxes, opened, picture, refusal, text
from small_sources import names

LINE = "0 0.5 0.5 0.1 0.2"
BOX = [0, 90, 40, 110, 60, 0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


def labeled(images: Path, labels: Path, stems: Sequence[str] = "ab", lines: Sequence[str] = (LINE,)) -> None:
    """Images of 200 x 100 pixels with these lines each."""
    for stem in stems:
        picture(images / f"{stem}.jpg")
        text(labels / f"{stem}.txt", *lines)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images a and b to train on, c to validate on, in train/images and train/labels."""
    for phase, stems in (("train", "ab"), ("valid", "c")):
        labeled(tmp_path / "set" / phase / "images", tmp_path / "set" / phase / "labels", stems)
    text(tmp_path / "set" / "data.yaml", "names: [cat, dog]")
    return tmp_path / "set"


# Lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 0.1 0.2 0.6 0.2 0.35 0.9", [1, 20, 20, 120, 90, 0]),
        ("1 0.1 0.2 0.6 0.2 0.6 0.9 0.1 0.9", [1, 20, 20, 120, 90, 0]),
        ("1 0.6 0.9 0.1 0.2 0.3 0.3 0.2 0.8 0.6 0.9", [1, 20, 20, 120, 90, 0]),
        ("1 -0.005 0.2 0.6 0.2 0.35 1.008", [1, 0, 20, 120, 100, 0]),
        ("1.0 .5 5e-1 0.1 0.2", [1, 90, 40, 110, 60, 0]),
        ("1\t0.5  0.5 0.1 0.2\r", [1, 90, 40, 110, 60, 0]),
        ("1 0.5 0.5 0.1 0.2 0.87", [1, 90, 40, 110, 60, 0]),
    ],
)
def test_boxes_and_polygons_stand_in_any_order(line, expected, root):
    text(root / "train" / "labels" / "a.txt", LINE, line, "", "# a remark", "0 0.25 0.1 0.5 0.2")
    source = opened(root)
    assert boxes(source.train) == [[BOX, expected, [0, 0, 0, 100, 20, 0]], [BOX]]


@pytest.mark.parametrize(
    "line",
    [
        "1 0.5 0.5 0.1 0.2 3",
        "1 0.5 0.5 0.1 0.2 -0.1",
        "1 0.1 0.2 0.6 0.2 0.35 0.9 0.1",
        "1 0.1 0.2 0.6 0.2 0.35 nan",
        "1 0.1 0.2 0.6 0.2 0.6 1.5",
        "1 0.5 0.5",
        "1",
        "1 0.1 0.1 0.1 0.1 0.1 0.1",
        "1 20 10 30 40",
        "1,0.5,0.5,0.1,0.2",
    ],
)
def test_a_line_that_is_neither_box_nor_polygon_is_named(line, root):
    path = root / "train" / "labels" / "a.txt"
    text(path, LINE, line)
    assert refusal(root).startswith(f"{path}, line 2: ")
    assert boxes(opened(root, skip=True).train) == [[BOX]] * 2


def test_polygons_confidences_and_duplicates_are_said(root, wording):
    text(
        root / "train" / "labels" / "a.txt", LINE, LINE, "1 0.1 0.2 0.6 0.2 0.35 0.9", "1 0.5 0.5 0.1 0.2 0.5"
    )
    source = opened(root)
    assert [len(found) for found in boxes(source.train)] == [3, 1]
    assert len(source.remarks) == 3
    for remark in source.remarks:
        assert remark.startswith(f"{root}/train/labels: ")
        wording(remark)


def test_keypoints_after_a_box_are_no_polygon(root):
    text(root / "data.yaml", "names: [cat, dog]", "kpt_shape: [2, 3]")
    text(root / "train" / "labels" / "a.txt", f"{LINE} 0.9 0.9 2 0.1 0.1 1")
    assert boxes(opened(root).train) == [[BOX]] * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_texts_are_read_in_any_encoding(encoding, root):
    (root / "train" / "labels" / "a.txt").write_text(f"{LINE}\r\n", encoding=encoding)
    assert boxes(opened(root).train) == [[BOX]] * 2


def test_a_text_that_is_none_takes_its_image_along(root, wording):
    path = root / "train" / "labels" / "a.txt"
    path.write_bytes(bytes(range(256)))
    message = refusal(root)
    assert message.startswith(f"{path}: ")
    wording(message)
    assert names(opened(root, skip=True).train) == ["b"]


# Names of files and folders


@pytest.mark.parametrize(
    ("image", "label"),
    [("a 1.jpg", "a 1.TXT"), ("A.JPG", "a.txt"), ("a.jpeg", "A.Txt"), ("b.c.jpg", "b.c.txt")],
)
def test_label_files_are_found_whatever_their_case(image, label, root):
    picture(root / "train" / "images" / "deep" / image)
    text(root / "train" / "labels" / "Deep" / label, "1 0.25 0.1 0.5 0.2")
    source = opened(root)
    found = dict(zip(names(source.train), boxes(source.train)))
    assert found[Path(image).stem] == [[1, 0, 0, 100, 20, 0]]
    assert source.remarks == ()


def test_accents_match_in_both_forms_of_unicode(root):
    picture(root / "train" / "images" / (unicodedata.normalize("NFD", "café") + ".jpg"))
    text(root / "train" / "labels" / (unicodedata.normalize("NFC", "café") + ".txt"), LINE)
    assert boxes(opened(root).train) == [[BOX]] * 3


def test_two_label_files_of_one_image_are_named_unless_one_has_its_exact_name(root, wording):
    for name in ("B.txt", "B.TXT"):
        text(root / "train" / "labels" / name, "1 0.5 0.5 0.1 0.2")
    assert boxes(opened(root).train) == [[BOX]] * 2
    (root / "train" / "labels" / "b.txt").unlink()
    message = refusal(root)
    assert message.startswith(f"{root}/train/images/b.jpg: ")
    wording(message)


@pytest.mark.parametrize(
    "folders",
    [
        "Train/Images Train/Labels",
        "TRAINING/image TRAINING/label",
        "Images/Train Labels/Train",
        "images/train2017 labels/train",
        "train train",
    ],
)
def test_folders_are_found_by_usual_names_in_any_case(folders, tmp_path):
    root = tmp_path / "set"
    for phase, stems in (("train", "ab"), ("val", "c")):
        images, labels = (
            re.sub("(?i)train(ing)?", phase, f) if phase != "train" else f for f in folders.split()
        )
        labeled(root / images, root / labels, stems)
    text(root / "classes.txt", "cat")
    source = opened(root)
    assert (names(source.train), names(source.val)) == (["a", "b"], ["c"])
    assert boxes(source.train) == [[BOX]] * 2


@pytest.mark.parametrize("folder", [".", "obj_train_data"])
def test_images_and_texts_side_by_side_are_split(folder, tmp_path):
    root = tmp_path / "set"
    labeled(root / folder, root / folder, "abcd")
    text(root / "obj.names", "cat")
    text(root / "train.txt", *(f"data/obj_train_data/{stem}.jpg" for stem in "abcd"))
    source = opened(root, val_split=0.25)
    assert (len(source.train), len(source.val)) == (3, 1)
    assert boxes(source.train) == [[BOX]] * 3
    assert source.remarks == ()


def test_a_set_may_be_wrapped_in_two_folders(root, tmp_path):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "__MACOSX").mkdir()
    root.rename(tmp_path / "outer" / "inner" / "set")
    source = opened(tmp_path / "outer")
    assert (source.name, boxes(source.train)) == ("set", [[BOX]] * 2)
    assert source.remarks == (f"--data {tmp_path}/outer: reading {tmp_path}/outer/inner/set",)


def test_test_images_beside_validation_images_are_held_out(root):
    labeled(root / "test" / "images", root / "test" / "labels", "de")
    source = opened(root)
    assert source.test is not None
    assert (names(source.val), names(source.test), boxes(source.test)) == (["c"], ["d", "e"], [[BOX]] * 2)


def test_test_images_are_held_out_of_a_split(root):
    (root / "valid").rename(root / "test")
    assert names(opened(root).val) == ["c"]
    source = opened(root, val_split=0.5)
    assert source.test is not None
    assert (len(source.train), len(source.val), names(source.test)) == (1, 1, ["c"])


def test_test_images_without_boxes_are_not_used(root, wording):
    labeled(root / "test" / "images", root / "test" / "labels", "de", lines=())
    source = opened(root)
    assert source.test is None
    warning, remark = source.remarks
    assert warning.startswith("warning: the test images have no boxes")
    wording(remark)


def test_validation_images_without_training_images_are_told(root, wording):
    (root / "train").rename(root / "elsewhere")
    wording(refusal(root))


# No boxes


def test_label_files_that_list_nothing_are_an_error(root, wording):
    for stem in "ab":
        text(root / "train" / "labels" / f"{stem}.txt")
    message = refusal(root)
    assert f"{root}/train/labels" in message
    wording(message)


def test_missing_label_files_are_an_error(root, wording):
    for stem in "ab":
        (root / "train" / "labels" / f"{stem}.txt").unlink()
    message = refusal(root)
    assert f"{root}/train/labels" in message
    wording(message)


def test_label_files_of_other_names_are_an_error(root, wording):
    for stem in "ab":
        (root / "train" / "labels" / f"{stem}.txt").rename(root / "train" / "labels" / f"label_{stem}.txt")
    message = refusal(root)
    assert "label_a.txt" in message
    wording(message)


def test_many_label_files_of_other_names_are_worth_a_warning(root, wording):
    labeled(root / "train" / "images", root / "train" / "elsewhere", "defg")
    for stem in "defg":
        text(root / "train" / "labels" / f"label_{stem}.txt", LINE)
    warning, bare = opened(root).remarks
    assert warning.startswith("warning: 4 of 6 ")
    wording(warning)
    wording(bare)


def test_validation_images_without_boxes_are_worth_a_warning(root):
    text(root / "valid" / "labels" / "c.txt")
    (remark,) = opened(root).remarks
    assert remark.startswith("warning: the validation images have no boxes")


def test_a_split_that_takes_all_boxes_is_an_error(tmp_path, wording):
    labeled(tmp_path / "images", tmp_path / "labels", "abcd", lines=())
    text(tmp_path / "labels" / "a.txt", LINE)
    text(tmp_path / "classes.txt", "cat")
    assert sum(map(len, boxes(opened(tmp_path, val_split=0.25).train))) == 1
    message = refusal(tmp_path, val_split=0.75)
    assert "--split-seed" in message
    wording(message)


# data.yaml


@pytest.mark.parametrize(
    "content",
    [
        'names: {"0": cat, "1": dog}',
        "names: {1: dog, 0: cat}",
        "names:\n  '1': dog\n  '0': cat\nnc: 2",
        "names:\n- cat\n- dog\nnc: '2'",
    ],
)
@pytest.mark.parametrize("file", ["data.yaml", "Data.YAML", "farm.yml"])
def test_names_are_a_list_or_numbered_by_numbers_or_texts(content, file, root):
    (root / "data.yaml").unlink()
    text(root / file, content)
    assert opened(root).class_names == ("cat", "dog")


def test_names_that_yaml_takes_for_other_values_stay_names(root):
    text(root / "data.yaml", "names: [yes, no, 1.0, null, 2024-01-01]")
    assert opened(root).class_names == ("yes", "no", "1.0", "null", "2024-01-01")


@pytest.mark.parametrize(
    "content", ["names: [cat, dog]\nnc: 3", "names: {cat: 0, dog: 1}", 'names: {"0": a, "2": b}']
)
def test_contradicting_names_are_told(content, root, wording):
    text(root / "data.yaml", content)
    message = refusal(root)
    assert message.startswith(f"{root}/data.yaml: ")
    wording(message)


@pytest.mark.parametrize(
    "content",
    [
        "train: ../train/images\nval: ../valid/images",
        "train: train/images\nval: valid/images",
        "path: .\ntrain: train/images\nval: valid/images",
        "path: ../set\ntrain: train/images/\nval: valid/images/",
        "path: {root}\ntrain: train/images\nval: valid/images",
        "train: {root}/train/images\nvalidation: {root}/valid/images",
        "train: [train/images]\nval: [valid/images]",
        "train: train\nval: valid",
        "train: .\\train\\images\nval: .\\valid\\images",
        "path: ../datasets/set\ntrain: train/images\nval: valid/images\ntest:",
        "path: /content/gone\ntrain: /content/gone/train/images\nval: /content/gone/valid/images",
        "train: list.txt\nval: valid/images/c.jpg",
    ],
)
@pytest.mark.parametrize("by", ["folder", "file"])
def test_places_in_data_yaml_are_found_in_all_forms(content, by, root):
    text(root / "data.yaml", "names: [cat, dog]", content.replace("{root}", str(root)))
    text(root / "list.txt", "./train/images/a.jpg", "", "/old/place/train/images/b.jpg")
    source = opened(root if by == "folder" else root / "data.yaml")
    assert (source.name, names(source.train), names(source.val)) == ("set", ["a", "b"], ["c"])
    assert boxes(source.train) == [[BOX]] * 2
    assert source.remarks == ()


def test_data_yaml_chooses_among_the_folders(root):
    labeled(root / "more" / "images", root / "more" / "labels", "xy")
    labeled(root / "held" / "images", root / "held" / "labels", "z")
    text(
        root / "data.yaml",
        "names: [cat]",
        "train: [train/images, more/images]",
        "val: valid/images",
        "test: held/images",
    )
    source = opened(root)
    assert source.test is not None
    assert [names(split) for split in (source.train, source.val, source.test)] == [
        ["a", "b", "x", "y"],
        ["c"],
        ["z"],
    ]
    assert boxes(source.train) == [[BOX]] * 4


def test_a_place_that_does_not_exist_is_named_unless_the_folders_are_usual(root, wording):
    text(root / "data.yaml", "names: [cat]", "train: pictures/images", "val: valid/images")
    assert names(opened(root / "data.yaml").train) == ["a", "b"]
    (root / "train").rename(root / "elsewhere")
    (root / "valid").rename(root / "elsewhere too")
    message = refusal(root / "data.yaml")
    assert "pictures/images" in message
    wording(message)


@pytest.mark.parametrize("described", [True, False])
def test_darknets_lists_tell_the_phases(described, tmp_path):
    root = tmp_path / "set"
    for folder, stems in (("obj_Train_data", "ab"), ("obj_Validation_data", "c"), ("obj_Test_data", "d")):
        labeled(root / folder, root / folder, stems)
    for name, folder, stems in (
        ("train", "Train", "ab"),
        ("valid", "Validation", "c"),
        ("test", "Test", "d"),
    ):
        text(root / f"{name}.txt", *(f"data/obj_{folder}_data/{stem}.jpg" for stem in stems))
    text(root / "obj.names", "cat")
    if described:
        text(
            root / "obj.data",
            "classes = 1",
            "train = data/train.txt",
            "valid = data/valid.txt",
            "backup = b/",
        )
    source = opened(root)
    assert (names(source.train), names(source.val)) == (["a", "b"], ["c"])
    assert (source.test is None) == described
    assert boxes(source.train) == [[BOX]] * 2


def test_classes_outside_of_the_folder_are_not_taken(root, tmp_path):
    labeled(tmp_path / "other", tmp_path / "other")
    text(tmp_path / "classes.txt", "horse")
    assert refusal(tmp_path / "other", val_split=0.5).startswith(f"--data {tmp_path}/other: no class names")


def test_pixels_instead_of_fractions_are_told(root, wording):
    text(root / "train" / "labels" / "a.txt", "0 90 40 110 60")
    wording(refusal(root))


def test_a_list_with_a_missing_image_is_told(root, wording):
    text(root / "data.yaml", "names: [cat]", "train: list.txt", "val: valid/images")
    text(root / "list.txt", "train/images/a.jpg", "train/images/nowhere.jpg")
    message = refusal(root)
    assert message.startswith(f"{root}/list.txt, line 2: ")
    wording(message)


def test_labels_outside_of_the_folder_are_said(root, tmp_path, wording):
    text(
        tmp_path / "other" / "farm.yaml",
        "path: ../set",
        "train: train/images",
        "val: valid/images",
        "names: [cat]",
    )
    source = opened(tmp_path / "other" / "farm.yaml")
    assert boxes(source.train) == [[BOX]] * 2
    wording(*source.remarks)


def test_another_file_as_data_is_told(root, wording):
    text(root / "other.yaml", "learning_rate: 3")
    wording(refusal(root / "other.yaml"))
    wording(refusal(root / "train" / "images" / "a.jpg"))
