"""Folders in VOC's layout, and images with XML files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from small_boxes import boxes, opened, picture, refusal, text, voc
from small_sources import names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def xml(path: Path, name: str = "dog", box: Sequence[object] = (11, 21, 60.5, 40), size: str = "") -> None:
    corners = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>another.png</filename>{size}"
        f"<object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"
    )


def voc_folder(
    root: Path, stems: str = "abcd", images: str = "JPEGImages", labels: str = "Annotations"
) -> None:
    for stem in stems:
        picture(root / images / f"{stem}.jpg")
        xml(root / labels / f"{stem}.xml", "dog" if stem in "ab" else "cat")


BOX = [10, 20, 60.5, 40, 0]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("JPEGImages", "Annotations"),
        ("jpegimages", "annotations"),
        ("images", "labels"),
        ("images", "xmls"),
        (".", "."),
        ("VOCdevkit/VOC2007/JPEGImages", "VOCdevkit/VOC2007/Annotations"),
    ],
)
def test_a_folder_without_lists_is_split_and_named_by_its_classes(images, labels, root):
    voc_folder(root, "abcd", images, labels)
    source = opened(root, val_split=0.25)
    assert source.class_names == ("cat", "dog")
    assert (len(source.train), len(source.val)) == (3, 1)
    for split in (source.train, source.val):
        for name, found in zip(names(split), boxes(split)):
            assert found == [[1 if name in "ab" else 0, *BOX]]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("{}/images", "{}/annotations"), ("images/{}", "annotations/{}"), ("{}", "{}")],
)
def test_folders_of_the_phases_are_read(images, labels, root):
    for phase, stems in (("Train", "ac"), ("valid", "b"), ("test", "d")):
        voc_folder(root, stems, images.format(phase), labels.format(phase))
    source = opened(root)
    assert source.test is not None
    assert [names(split) for split in (source.train, source.val, source.test)] == [["a", "c"], ["b"], ["d"]]
    assert boxes(source.train) == [[[1, *BOX]], [[0, *BOX]]]


@pytest.mark.parametrize("folder", ["ImageSets/Main", "ImageSets", "imagesets/main"])
@pytest.mark.parametrize("line", ["{}", "{}  1", "{}.jpg", "JPEGImages/{}.jpg", " {}\r"])
def test_lists_tell_the_phases(folder, line, root):
    voc_folder(root, "abcd")
    for phase, stems in (("train", "ac"), ("val", "b"), ("test", "d"), ("dog_train", "b")):
        text(root / folder / f"{phase}.txt", *(line.format(stem) for stem in stems))
    source = opened(root)
    assert source.test is not None
    assert [names(split) for split in (source.train, source.val, source.test)] == [["a", "c"], ["b"], ["d"]]


def test_a_training_list_alone_is_split_and_trainval_goes_with_test(root):
    voc_folder(root, "abcd")
    text(root / "ImageSets" / "Main" / "trainval.txt", "a", "b", "c")
    assert len(opened(root, val_split=0.3).train) == 2
    text(root / "ImageSets" / "Main" / "test.txt", "d")
    source = opened(root)
    assert (names(source.train), names(source.val)) == (["a", "b", "c"], ["d"])


def test_a_listed_image_that_is_not_there_is_named(root, wording):
    voc_folder(root, "abcd")
    text(root / "ImageSets" / "Main" / "train.txt", "a", "x", "b")
    text(root / "ImageSets" / "Main" / "val.txt", "c")
    message = refusal(root)
    assert message.startswith(f"{root}/ImageSets/Main/train.txt, line 2: ")
    wording(message)
    assert names(opened(root, skip=True).train) == ["a", "b"]


def test_an_image_without_xml_has_no_boxes(root):
    voc_folder(root, "abcd")
    (root / "Annotations" / "a.xml").unlink()
    source = opened(root, val_split=0.25)
    found = dict(zip(names(source.train) + names(source.val), boxes(source.train) + boxes(source.val)))
    assert found["a"] == []
    assert source.remarks == ("1 of 4 training images have no boxes, 1 of them without a label file",)


def test_listed_classes_keep_their_order_and_others_are_named(root, wording):
    voc_folder(root, "abcd")
    text(root / "labels.txt", "dog", "cow", "cat")
    assert opened(root, val_split=0.25).class_names == ("dog", "cow", "cat")
    text(root / "labels.txt", "dog", "cow")
    message = refusal(root, val_split=0.25)
    assert message.startswith(f"{root}/Annotations/c.xml, object 1: ")
    wording(message)


def test_classes_that_differ_in_case_only_are_worth_a_warning(root, wording):
    voc_folder(root, "abcd")
    xml(root / "Annotations" / "d.xml", "Dog")
    (remark,) = opened(root, val_split=0.25).remarks
    assert remark.startswith("warning: ")
    wording(remark)


def test_files_without_objects_are_read_and_named_as_a_set_without_boxes(root, wording):
    voc_folder(root, "abcd")
    for stem in "abcd":
        (root / "Annotations" / f"{stem}.xml").write_text("<annotation/>")
    message = refusal(root, val_split=0.25)
    assert f"{root}/Annotations" in message
    wording(message)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("<size><width>200</width><height>100</height></size>", BOX),
        ("<size><width>400</width><height>200</height></size>", [5, 10, 30.25, 20, 0]),
        ("<size><width>0</width><height>0</height></size>", BOX),
        ("<size><width></width></size>", BOX),
        ("", BOX),
    ],
)
def test_boxes_fit_the_size_that_a_file_states(size, expected, root):
    for stem in "ab":
        picture(root / f"{stem}.jpg")
        xml(root / f"{stem}.xml", size=size)
    source = opened(root, val_split=0.5)
    assert boxes(source.train) == boxes(source.val) == [[[0, *expected]]]


def test_a_file_for_another_image_is_named(root, wording):
    for stem in "ab":
        picture(root / f"{stem}.jpg")
        xml(root / f"{stem}.xml", size="<size><width>100</width><height>100</height></size>" * (stem == "a"))
    message = refusal(root, val_split=0.5)
    assert message.startswith(f"{root}/a.xml: ")
    wording(message)


@pytest.mark.parametrize("width", ["9" * 30, "9" * 5000, str(2**31), "0", "-5", "wide"])
def test_widths_that_no_image_has_are_passed_over(width, tmp_path):
    for name in "ab":
        path = voc(tmp_path, name, ("dog", 0, (11, 21, 60, 40)))
        size = f"<size><width>{width}</width><height>100</height></size></annotation>"
        path.write_text(path.read_text().replace("</annotation>", size))
    assert boxes(opened(tmp_path, val_split=0.5).train) == [[[0, 10, 20, 60, 40, 0]]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_expand(encoding, root):
    voc_folder(root)
    entities = '<!ENTITY a "lol">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi")
    )
    path = root / "Annotations/a.xml"
    text = path.read_text().replace("dog", "&i;")
    path.write_bytes(f"<!DOCTYPE x [{entities}]>{text}".encode(encoding))
    assert f"{path}: it declares entities" in refusal(root, val_split=0.25)
    assert len(opened(root, val_split=0.25, skip=True).train) == 2
