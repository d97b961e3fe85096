"""Class folders in the layouts of archives, storage devices and tools."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.sources.layout import is_leftover, phase_of
from fastcnn.data.sources.parts import find_parts
from fastcnn.errors import UserError

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / ".cache"))


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path, format="JPEG")


def images(folder: Path, count: int = 2) -> None:
    for i in range(count):
        picture(folder / f"{i}.jpg", i)


def classes(root: Path, count: int = 2, names: tuple[str, ...] = CLASSES) -> Path:
    for name in names:
        images(root / name, count)
    return root


def read(root: Path, val_split: float | None = None, test_split: float | None = None) -> Source:
    settings = DataSettings(data=str(root), val_split=val_split, test_split=test_split)
    return read_folder(root, settings, 0)


def refusal(root: Path, val_split: float | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read(root, val_split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def places(split: Split | None) -> set[str]:
    """The folders of the images, without their names."""
    assert split is not None
    assert split.files is not None
    return {str(Path(path).parent) for path in split.files.paths}


# Names of the parts


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        *(
            (name, "train")
            for name in ("train", "Train", "TRAINING", "seg_train", "train_images", "train2017")
        ),
        *((name, "val") for name in ("Val", "valid", "Validation", "val_images", "val2017", "dev")),
        *((name, "test") for name in ("Test", "testing", "Testing_Set", "test-data", "seg_test")),
        *(
            (name, None)
            for name in ("cat", "trains", "train 1", "contest", "seg_pred", "train_masks", "1990", "")
        ),
    ],
)
def test_a_part_is_known_by_its_usual_names(name, phase):
    assert phase_of(name) == phase


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", None),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("seg_train", "seg_val", "seg_test"),
        ("train_images", "val_images", "test_images"),
        ("training_set", "validation_set", "test_set"),
        ("train2017", "val2017", None),
    ],
)
def test_parts_are_found_whatever_their_case_and_usual_name(train, val, test, tmp_path):
    for name, count in ((train, 3), (val, 2), (test, 1)):
        if name is not None:
            classes(tmp_path / name, count)
    source = read(tmp_path)
    assert source.class_names == CLASSES
    assert (len(source.train), len(source.val)) == (6, 4)
    assert (source.test is None) == (test is None)
    assert source.test is None or len(source.test) == 2
    assert source.remarks == ()


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("seg_train/seg_train", "seg_test/seg_test")]
)
def test_training_and_testing_of_an_archive_are_no_classes(train, test, tmp_path):
    classes(tmp_path / train, 5)
    classes(tmp_path / test, 2)
    alone, held_out = read(tmp_path), read(tmp_path, val_split=0.2)
    assert alone.class_names == held_out.class_names == CLASSES
    assert (len(alone.train), len(alone.val), alone.test) == (10, 4, None)
    assert places(alone.val) == {str(tmp_path / test / name) for name in CLASSES}
    assert held_out.test is not None
    assert (len(held_out.train), len(held_out.val), len(held_out.test)) == (8, 2, 4)
    assert places(held_out.test) == places(alone.val)


# Wrappers


@pytest.mark.parametrize("wrapper", ["dataset", "dataset/dataset", "archive/images", "images", "a/b/data"])
@pytest.mark.parametrize("parts", [True, False])
def test_wrappers_are_passed_through_and_named(wrapper, parts, tmp_path):
    if parts:
        classes(tmp_path / wrapper / "train")
        classes(tmp_path / wrapper / "val")
    else:
        classes(tmp_path / wrapper)
    source = read(tmp_path, None if parts else 0.5)
    assert source.class_names == CLASSES
    assert len(source.train) == (4 if parts else 2)
    assert source.remarks == (f"--data {tmp_path}: reading {tmp_path / wrapper}",)


def test_wrapped_parts_are_passed_through(tmp_path):
    classes(tmp_path / "train" / "train")
    classes(tmp_path / "valid" / "images")
    (tmp_path / "test" / "test").mkdir(parents=True)
    picture(tmp_path / "test" / "test" / "0.jpg")
    (tmp_path / "test.txt").write_text("0.jpg dog\n")
    source = read(tmp_path)
    assert source.test is not None
    assert (len(source.train), len(source.val), source.test.labels.tolist()) == (4, 4, [1])


def test_images_beside_annotations_are_a_wrapper(tmp_path):
    classes(tmp_path / "images")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.csv").write_text("")
    assert read(tmp_path, 0.5).class_names == CLASSES


def test_a_class_with_folders_beside_an_empty_class_is_no_wrapper(tmp_path):
    classes(tmp_path / "cat", names=("indoor", "outdoor"))
    (tmp_path / "dog").mkdir()
    assert "dog: a class folder without images" in refusal(tmp_path, 0.5)


@pytest.mark.parametrize("inner", ["cat", "cat/2019", "animals/cat/2019"])
def test_one_class_in_wrappers_is_refused_by_its_name(inner, tmp_path):
    images(tmp_path / inner)
    assert "one class only" in refusal(tmp_path, 0.5)


def test_wrappers_with_images_of_their_own_are_none(tmp_path):
    classes(tmp_path / "animals")
    picture(tmp_path / "stray.jpg")
    assert "one class only, animals" in refusal(tmp_path, 0.5)


# Leftovers


def test_leftovers_of_systems_and_tools_are_passed_over(tmp_path):
    classes(tmp_path, 8)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "System Volume Information"):
        picture(tmp_path / name / "cat" / "0.jpg")
        picture(tmp_path / "cat" / name / "0.jpg")
        assert is_leftover(name)
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "cat" / name).write_bytes(b"")
    source = read(tmp_path, 0.25)
    assert source.class_names == CLASSES
    assert Counter([*source.train.labels, *source.val.labels]) == {0: 8, 1: 8}
    assert not source.train.problems


def test_an_archive_with_leftovers_beside_its_wrapper_is_read(tmp_path):
    classes(tmp_path / "pets" / "train")
    classes(tmp_path / "pets" / "val")
    picture(tmp_path / "__MACOSX" / "pets" / "train" / "cat" / "._0.jpg")
    assert read(tmp_path).class_names == CLASSES


# Layouts that may mean two things


@pytest.mark.parametrize("part", ["train", "Test", "val"])
def test_a_part_beside_classes_is_refused(part, tmp_path, wording):
    classes(tmp_path, names=("bus", "car", part))
    message = refusal(tmp_path, 0.2)
    wording(message)
    (tmp_path / part).rename(tmp_path / f"{part}s")  # the advice works
    assert len(read(tmp_path, 0.2).class_names) == 3


def test_classes_beside_a_part_may_be_moved_into_train(tmp_path):
    classes(tmp_path)
    classes(tmp_path / "test")
    assert str(tmp_path / "train") in refusal(tmp_path, 0.2)
    (tmp_path / "train").mkdir()
    for name in CLASSES:
        (tmp_path / name).rename(tmp_path / "train" / name)
    assert read(tmp_path).class_names == CLASSES


def test_a_part_without_train_is_refused(tmp_path, wording):
    classes(tmp_path / "test")
    wording(refusal(tmp_path, 0.2))
    assert read(tmp_path / "test", 0.5).class_names == CLASSES  # the advice works


def test_parts_within_classes_are_refused(tmp_path, wording):
    for name in CLASSES:
        for part in ("train", "test"):
            images(tmp_path / name / part)
    wording(refusal(tmp_path, 0.2))


def test_a_part_within_a_part_is_refused(tmp_path, wording):
    classes(tmp_path / "train", names=(*CLASSES, "test"))
    classes(tmp_path / "val")
    wording(refusal(tmp_path))


def test_other_folders_beside_the_parts_are_named(tmp_path, wording):
    classes(tmp_path / "seg_train")
    classes(tmp_path / "seg_val")
    images(tmp_path / "seg_pred")
    (tmp_path / "docs").mkdir()
    (remark,) = read(tmp_path).remarks
    wording(remark)


def test_two_folders_for_one_part_are_named(tmp_path, wording):
    for name in ("train", "val", "validation"):
        classes(tmp_path / name)
    source = read(tmp_path)
    assert places(source.val) == {str(tmp_path / "val" / name) for name in CLASSES}
    wording(source.remarks[0])


def test_unlabeled_test_images_are_left_out(tmp_path, wording):
    classes(tmp_path / "train", 5)
    images(tmp_path / "test")
    wording(refusal(tmp_path))
    source = read(tmp_path, 0.2)
    assert source.test is None
    wording(source.remarks[0])
    assert read(tmp_path, 0.2, test_split=0.2).test is not None


# Names of classes


def test_the_same_class_in_two_unicode_forms_is_one_and_said(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    classes(tmp_path / "train", names=(composed, "tea", decomposed))
    classes(tmp_path / "val", 1, names=(composed, "tea"))
    classes(tmp_path / "test", 1, names=(decomposed, "tea"))
    source = read(tmp_path)
    assert [unicodedata.normalize("NFC", name) for name in source.class_names] == ["café", "tea"]
    assert Counter(source.train.labels.tolist()) == {0: 4, 1: 2}
    assert source.test is not None
    assert source.val.labels.tolist() == source.test.labels.tolist() == [0, 1]
    (remark,) = source.remarks
    assert "2 Unicode forms" in remark


def test_classes_that_differ_in_case_only_are_named_and_kept(tmp_path, wording):
    classes(tmp_path, names=("Cat", "cat", "dog"))
    source = read(tmp_path, 0.5)
    assert len(source.class_names) == 3
    wording(source.remarks[0])


def test_a_class_of_val_in_another_case_is_refused_with_the_right_one(tmp_path, wording):
    classes(tmp_path / "train")
    classes(tmp_path / "val", names=("Cat", "dog"))
    wording(refusal(tmp_path))


# Links


def test_a_class_that_links_to_a_folder_around_it_is_skipped_and_named(tmp_path, wording):
    classes(tmp_path / "train", 8)
    classes(tmp_path / "val")
    (tmp_path / "train" / "all").symlink_to("..", target_is_directory=True)
    source = read(tmp_path)
    assert source.class_names == CLASSES
    assert Counter(source.train.labels.tolist()) == {0: 8, 1: 8}
    wording(source.remarks[0])


def test_a_class_that_links_to_another_is_refused(tmp_path, wording):
    classes(tmp_path)
    (tmp_path / "kitten").symlink_to("cat", target_is_directory=True)
    wording(refusal(tmp_path, 0.5))


def test_class_folders_may_be_links_to_other_places(tmp_path):
    classes(tmp_path / "store")
    for part in ("train", "val"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for name in CLASSES:
            (tmp_path / "data" / part / name).symlink_to(tmp_path / "store" / name, target_is_directory=True)
    assert len(read(tmp_path / "data").train) == 4


# Lists


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["val.txt", "LOC_val_solution.csv"])
def test_a_list_is_read_in_any_encoding(name, encoding, tmp_path):
    classes(tmp_path / "train", names=("café", "dog"))
    images(tmp_path / "val")
    lines = ["0.jpg café", "1.jpg dog"]
    if name.endswith(".csv"):
        lines = ["ImageId,PredictionString", "0,café 1 2 3 4", "1,dog 1 2 3 4"]
    (tmp_path / name).write_bytes("\r\n".join([*lines, ""]).encode(encoding))
    assert read(tmp_path).val.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "line", ["val/a b.jpg dog", "./a b.jpg dog", "a b.jpg\tdog", "a b dog", "val\\a b.jpg 1"]
)
def test_a_listed_image_is_found_by_its_usual_forms(line, tmp_path):
    classes(tmp_path / "train")
    picture(tmp_path / "val" / "a b.jpg")
    (tmp_path / "val.txt").write_text(line)
    assert read(tmp_path).val.labels.tolist() == [1]


def test_a_class_of_several_words_is_read_after_a_tab(tmp_path):
    classes(tmp_path / "train", names=("polar bear", "seal"))
    picture(tmp_path / "val" / "0.jpg")
    (tmp_path / "val.txt").write_text("0.jpg\tpolar bear\n")
    assert read(tmp_path).val.labels.tolist() == [0]


def test_a_decomposed_file_name_is_found(tmp_path):
    classes(tmp_path / "train")
    picture(tmp_path / "val" / unicodedata.normalize("NFD", "é.jpg"))
    (tmp_path / "val.txt").write_text("é.jpg dog\n", encoding="utf-8")
    assert read(tmp_path).val.labels.tolist() == [1]


def test_an_image_listed_twice_is_refused(tmp_path, wording):
    classes(tmp_path / "train")
    images(tmp_path / "val", 1)
    (tmp_path / "val.txt").write_text("0.jpg dog\n0.jpg cat\n")
    wording(refusal(tmp_path))


def test_a_folder_without_parts_is_for_training(tmp_path):
    parts = find_parts(classes(tmp_path))
    assert (parts.train, parts.val, parts.test, parts.remarks) == (tmp_path, None, None, ())


@pytest.mark.parametrize(
    "names", [("images", "masks"), ("Images", "labels"), ("JPEGImages", "SegmentationClass")]
)
@pytest.mark.parametrize("phases", [("train", "val"), ("",)])
def test_masks_beside_images_are_not_two_classes(tmp_path, wording, names, phases):
    for phase in phases:
        classes(tmp_path / "data" / phase, names=names)
    line = refusal(tmp_path / "data", 0.5 if len(phases) == 1 else None)
    assert "no classes; use --arch unet" in line
    wording(line)
