"""Images with boxes: the layouts that are read, what their numbers mean, and how a bad box is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.synthetic import SyntheticLoader
from fastcnn.data.sources.boxes import source as box_sources
from fastcnn.data.sources.boxes.source import BOXES_NAMED
from fastcnn.data.sources.demo import CLASS_NAMES
from fastcnn.data.targets import NO_BOX, Boxes
from fastcnn.data.transforms.transform import Transform
from small_boxes import ANNOTATIONS, boxes, coco, opened, picture, refusal, text, voc
from small_sources import names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


# YOLO


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two training images and one to validate on, of 200 x 100 pixels and three classes."""
    root = tmp_path / "yolo"
    for phase, name in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(root / "images" / phase / f"{name}.jpg")
        text(root / "labels" / phase / f"{name}.txt", "2 0.5 0.5 0.1 0.2", "0 0.25 0.1 0.5 0.2")
    text(root / "data.yaml", "names: [cat, dog, cow]")
    return root


@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
@pytest.mark.parametrize("folders", ["{}/images {}/labels", "images/{} labels/{}"])
def test_yolo_texts_of_the_same_names_as_images_give_their_boxes(folders, val, tmp_path):
    root = tmp_path / "farm"
    for phase, name in (("train", "b"), ("train", "deep/a"), (val, "c")):
        images, labels = folders.format(phase, phase).split()
        picture(root / images / f"{name}.jpg")
        text(root / labels / f"{name}.txt", "1 0.5 0.5 0.1 0.2", "", "0 0.25 0.1 0.5 0.2")
    text(root / "classes.txt", "cat", "dog")
    source = opened(root)
    assert (source.name, source.class_names) == ("farm", ("cat", "dog"))
    assert len(source.remarks) == (val == "test")
    assert (names(source.train), names(source.val)) == (["b", "a"], ["c"])
    assert boxes(source.val) == [[[1, 90, 40, 110, 60, 0], [0, 0, 0, 100, 20, 0]]]
    assert boxes(source.train) == boxes(source.val) * 2
    assert source.train.labels.tolist() == [0, 0]
    assert source.train.sizes.tolist() == [[100, 200]] * 2


def test_boxes_of_test_images_beside_those_of_validation_are_held_out(tmp_path):
    for phase, name in (("Train", "a"), ("val", "b"), ("test", "c")):
        picture(tmp_path / "images" / phase / f"{name}.jpg")
        text(tmp_path / "labels" / phase / f"{name}.txt", "0 0.5 0.5 0.1 0.2")
    text(tmp_path / "classes.txt", "cat")
    source = opened(tmp_path)
    assert source.test is not None
    assert [names(split) for split in (source.train, source.val, source.test)] == [["a"], ["b"], ["c"]]
    assert boxes(source.test) == [[[0, 90, 40, 110, 60, 0]]]


def test_yolo_folders_without_train_and_val_are_shared_by_the_seed(tmp_path):
    for i in range(10):
        picture(tmp_path / "images" / f"{i}.jpg")
        text(tmp_path / "labels" / f"{i}.txt", *[f"0 0.5 0.{j + 1} 0.1 0.1" for j in range(i)])
    text(tmp_path / "labels" / "classes.txt", "cat")
    source = opened(tmp_path, val_split=0.3)
    assert (len(source.train), len(source.val)) == (7, 3)
    for split in (source.train, source.val):
        assert [str(len(found)) for found in boxes(split)] == names(split)
    assert names(opened(tmp_path, val_split=0.3).val) == names(source.val)


def test_an_image_without_a_text_or_with_an_empty_one_has_no_boxes(yolo, wording):
    for name in ("e", "f"):
        picture(yolo / "images" / "train" / f"{name}.jpg")
    text(yolo / "labels" / "train" / "e.txt")
    source = opened(yolo)
    assert names(source.train) == ["a", "b", "e", "f"]
    assert [len(found) for found in boxes(source.train)] == [2, 2, 0, 0]
    (remark,) = source.remarks
    assert re.findall(r"\d+", remark) == ["2", "4", "1"]
    wording(remark)


def test_a_text_without_an_image_is_left_out_with_a_remark(yolo, wording):
    text(yolo / "labels" / "train" / "x.txt", "nonsense")
    (remark,) = opened(yolo).remarks
    wording(remark)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data.yaml", "names:\n  0: cat\n  1: dog\n  2: cow\n"),
        ("farm.yml", "names: [cat, dog, cow]"),
        ("classes.txt", "cat\ndog\ncow\n"),
    ],
)
def test_classes_are_named_in_a_list_or_numbered_or_a_line_each(file, content, yolo):
    (yolo / "data.yaml").unlink()
    (yolo / file).write_text(content)
    assert opened(yolo).class_names == ("cat", "dog", "cow")


@pytest.mark.parametrize(
    ("content", "named"),
    [("names: {0: cat, 2: dog}", "{path}: "), ("names: [cat", "{path}: "), ("nc: 3", "--data {root}: ")],
    ids=["a gap", "not YAML", "no names"],
)
def test_names_that_cannot_be_read_are_told(content, named, yolo, wording):
    (yolo / "data.yaml").write_text(content)
    message = refusal(yolo)
    assert message.startswith(named.format(path=yolo / "data.yaml", root=yolo))
    wording(message.partition(" (")[0])  # the rest is PyYAML's


BAD_LINES = [
    "7 0.5 0.5 0.1 0.1",
    "-1 0.5 0.5 0.1 0.1",
    "1.5 0.5 0.5 0.1 0.1",
    "1 0.5 0.5 0.1",
    "cat 0.5 0.5 0.1 0.1",
    "1 nan 0.5 0.1 0.1",
    "1 0.5 0.5 0 0.1",
    "1 0.5 0.5 0.1 -0.1",
    "1 1.2 0.5 0.1 0.1",
    "1 0.5 -0.1 0.1 0.3",
    "1 0.95 0.5 0.2 0.1",
]


@pytest.mark.parametrize("phase", ["train", "val"])
@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_and_can_be_left_out(line, phase, yolo, wording):
    path = yolo / "labels" / phase / ("b.txt" if phase == "train" else "c.txt")
    text(path, "2 0.5 0.5 0.1 0.2", "", line, "0 0.25 0.1 0.5 0.2")
    message = refusal(yolo)
    assert message.startswith(f"{path}, line 3: ")
    assert "--bad-labels" in message
    wording(message)
    source = opened(yolo, skip=True)
    counted, remark = source.remarks
    assert re.findall(r"\d+", counted) == ["1"]
    assert message.startswith(remark.removeprefix("skipped: "))
    wording(counted)
    expected = [[2, 90, 40, 110, 60, 0], [0, 0, 0, 100, 20, 0]]
    assert boxes(source.train) == [expected] * 2
    assert boxes(source.val) == [expected]


def test_a_box_that_reaches_over_the_border_by_a_little_is_cut(yolo):
    text(yolo / "labels" / "train" / "a.txt", "1 0.0505 0.5 0.12 1.018")  # 1.9 of 200 and 0.9 of 100 px
    assert boxes(opened(yolo).train)[0] == [[1, 0, 0, 22.1, 100, 0]]


def test_a_text_that_cannot_be_read_takes_its_image_along(yolo, wording):
    path = yolo / "labels" / "train" / "a.txt"
    path.unlink()
    path.symlink_to(yolo / "nowhere")
    message = refusal(yolo)
    assert message.startswith(f"{path}: ")
    wording(message)
    source = opened(yolo, skip=True)
    assert (names(source.train), len(boxes(source.train)[0])) == (["b"], 2)


def test_all_bad_lines_are_named_together_in_their_order_and_counted(yolo, wording):
    text(yolo / "labels" / "train" / "a.txt", "9 0.5 0.5 0.1 0.1", "broken")
    text(yolo / "labels" / "val" / "c.txt", *["4 0.5 0.5 0.1 0.1"] * 60)
    message = refusal(yolo)
    places = re.findall(r"(\w+).txt, line (\d+): ", message)
    assert places == [("a", "1"), ("a", "2"), *(("c", str(line)) for line in range(1, 49))]
    assert "(62 in all)" in message
    remarks = opened(yolo, skip=True).remarks
    assert remarks[0].startswith("--bad-labels")
    wording(remarks[0])
    assert sum(remark.startswith("skipped: ") for remark in remarks) == 50


def test_boxes_of_an_image_that_cannot_be_read_are_not_checked(yolo):
    (yolo / "images" / "train" / "a.jpg").write_bytes(b"")
    text(yolo / "labels" / "train" / "a.txt", "1 1.5 1.5 0 0")
    source = opened(yolo)
    assert source.train.problems == {0: "empty"}
    assert len(boxes(source.train)[0]) == 1


def test_missing_parts_of_a_folder_are_told(yolo, tmp_path, wording):
    told = refusal(yolo, val_split=0.1)
    assert told.startswith("--val-split")
    wording(told)
    (yolo / "labels" / "val").rename(yolo / "elsewhere")
    told = refusal(yolo)
    assert "--val-split" in told
    wording(told)
    picture(tmp_path / "other" / "train" / "cat" / "a.jpg")
    message = refusal(tmp_path / "other")
    wording(message)
    wording(refusal(tmp_path / "none"))
    for folder in ("images", "labels"):
        (tmp_path / "bare" / folder).mkdir(parents=True)
    text(tmp_path / "bare" / "classes.txt", "cat")
    wording(refusal(tmp_path / "bare", val_split=0.1))


# COCO


def coco_set(root: Path, folder: str = "{}2017", annotations: Sequence[Any] = ANNOTATIONS) -> Path:
    for phase, found in (("train", "abc"), ("val", "d")):
        for name in found:
            picture(root / folder.format(phase) / f"{name}.jpg")
        path = root / "annotations" / f"instances_{phase}2017.json"
        coco(path, [f"{name}.jpg" for name in found], annotations if phase == "train" else ())
    return root


@pytest.mark.parametrize("folder", ["{}2017", "{}", "images/{}2017", "images/{}", "images", "."])
def test_coco_files_are_read_with_their_images_wherever_they_lie(folder, tmp_path):
    root = coco_set(tmp_path / "coco", folder)
    coco(root / "annotations" / "captions_train2017.json", [])
    source = opened(root)
    assert (source.name, source.class_names) == ("coco", ("car", "toothbrush"))
    bare, warning = source.remarks
    assert re.findall(r"\b\d+ of \d+ training", bare) == ["1 of 3 training"]
    assert warning.startswith("warning: ")
    assert (names(source.train), names(source.val)) == (["a", "b", "c"], ["d"])
    assert boxes(source.val) == [[]]
    assert boxes(source.train) == [
        [[0, 0, 0, 200, 100, 0]],
        [],
        [[1, 10, 20, 40.5, 60, 0], [0, 0, 90, 19.5, 100, 1]],
    ]


def test_names_in_coco_files_may_have_folders(tmp_path):
    root = coco_set(tmp_path)
    picture(root / "train2017" / "deep" / "e.jpg")
    coco(
        root / "annotations" / "instances_train2017.json", ["train2017/a.jpg", "deep/e.jpg"], ANNOTATIONS[1:2]
    )
    assert names(opened(root).train) == ["a", "e"]


def test_a_coco_file_alone_is_shared(tmp_path, wording):
    root = coco_set(tmp_path)
    told = refusal(root, val_split=0.4)
    assert "--val-split" in told
    wording(told)
    (root / "annotations" / "instances_val2017.json").unlink()
    wording(refusal(root))
    source = opened(root, val_split=0.4)
    assert (len(source.train), len(source.val)) == (2, 1)


@pytest.mark.parametrize("val", ["valid", "val", "test"])
def test_roboflow_has_a_coco_file_beside_the_images(val, tmp_path):
    for phase in ("train", val):
        for name in ("a", "b", "c"):
            picture(tmp_path / phase / f"{name}.jpg")
        coco(tmp_path / phase / "_annotations.coco.json", ["a.jpg", "b.jpg", "c.jpg"], ANNOTATIONS)
    source = opened(tmp_path)
    assert len(source.train) == len(source.val) == 3
    assert boxes(source.train) == boxes(source.val)
    assert [Path(split.name(0)).parent.name for split in (source.train, source.val)] == ["train", val]


def shown(change: dict[str, Any]) -> str:
    """Its id."""
    return " ".join(f"{name}={value}" for name, value in change.items())


BAD_ANNOTATIONS: list[dict[str, Any]] = [
    {"category_id": 4},
    {"image_id": 99},
    {"bbox": [1, 2, 3]},
    {"bbox": [1, 2, 3, None]},
    {"category_id": [3]},
    {"bbox": [1, 2, float("nan"), 4]},
    {"bbox": [1, 2, 0, 4]},
    {"bbox": [300, 2, 5, 4]},
    {"bbox": [-1.5, 2, 9, 4]},
]


@pytest.mark.parametrize("change", BAD_ANNOTATIONS, ids=shown)
def test_a_bad_annotation_is_named_and_can_be_left_out(change, tmp_path, wording):
    bad = {"id": 55, "image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4], **change}
    root = coco_set(tmp_path, annotations=[bad, *ANNOTATIONS])
    message = refusal(root)
    assert message.startswith(f"{root}/annotations/instances_train2017.json, annotation 55: ")
    wording(message)
    source = opened(root, skip=True)
    assert message.startswith(source.remarks[1].removeprefix("skipped: "))
    assert [len(found) for found in boxes(source.train)] == [1, 0, 2]


def test_an_image_that_is_listed_and_not_there_is_named_and_left_out(tmp_path, wording):
    root = coco_set(tmp_path)
    (root / "train2017" / "a.jpg").unlink()
    path = root / "annotations" / "instances_train2017.json"
    message = refusal(root)
    assert message.startswith(f"{path}, ")
    wording(message)
    source = opened(root, skip=True)
    assert names(source.train) == ["b", "c"]
    assert [len(found) for found in boxes(source.train)] == [0, 2]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[]",
        '{"images": [{"id": 1}]}',
        '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], '
        '"categories": [], "annotations": []}',
        '{"images": [], "categories": [], "annotations": []}',
        '{"images": [], "categories": [], "annotations": null}',
    ],
    ids=["not JSON", "no images", "a list", "no file name", "two of one id", "no categories", "no list"],
)
def test_a_file_that_is_not_cocos_is_refused(content, tmp_path, wording):
    path = coco_set(tmp_path) / "annotations" / "instances_train2017.json"
    path.write_text(content)
    message = refusal(tmp_path, skip=True)
    assert message.startswith(f"{path}: ")
    wording(message.partition(" (")[0])  # the rest is Python's


def test_two_files_of_one_phase_or_other_categories_are_refused(tmp_path, wording):
    root = coco_set(tmp_path)
    path = root / "annotations" / "instances_val2017.json"
    coco(path, ["d.jpg"], categories=[{"id": 3, "name": "bus"}])
    message = refusal(root)
    assert message.startswith(f"{path}: ")
    wording(message)
    coco(root / "annotations" / "instances_train2014.json", [])
    wording(refusal(root))


# Named sets


@pytest.fixture
def voc2007(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2007"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    voc(root, "000001", ("dog", 0, (1, 1, 200, 100)), ("person", 1, (11.5, 21, 30, 40)))
    voc(root, "000002", ("tvmonitor", 0, (5, 5, 5, 5)))
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("000002\n")
    return root


def test_vocs_pixels_begin_at_one_and_end_with_the_last(voc2007, tmp_path):
    source = opened("voc2007", data_root=str(tmp_path))
    assert (source.name, len(source.class_names)) == ("voc2007", 20)
    assert (names(source.train), names(source.val)) == (["000001"], ["000002"])
    assert boxes(source.train) == [[[11, 0, 0, 200, 100, 0], [14, 10.5, 20, 30, 40, 1]]]
    assert boxes(source.val) == [[[19, 4, 4, 5, 5, 0]]]


def test_voc2012_is_trained_on_its_train_and_validated_on_its_val(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for phase in ("train", "val"):
        voc(root, f"2008_{phase}", ("cow", 0, (1, 1, 9, 9)))
        (root / "ImageSets" / "Main" / f"{phase}.txt").write_text(f"2008_{phase}\n")
    source = opened("voc2012", data_root=str(tmp_path))
    assert (names(source.train), names(source.val)) == (["2008_train"], ["2008_val"])


def test_bad_objects_of_voc_are_named_and_can_be_left_out(voc2007, tmp_path, wording):
    path = voc(
        voc2007,
        "000001",
        ("dog", 0, (1, 1, 20, 20)),
        ("unicorn", 0, (1, 1, 20, 20)),
        ("cat", 0, (1, 1, "wide", 20)),
        ("cat", 0, (30, 1, 20, 20)),
    )
    message = refusal("voc2007", data_root=str(tmp_path))
    assert message.startswith(f"{path}, ")
    assert re.findall(r"object (\d+): ", message) == ["2", "3", "4"]
    wording(message)
    assert boxes(opened("voc2007", skip=True, data_root=str(tmp_path)).train) == [[[11, 0, 0, 20, 20, 0]]]


def test_broken_xml_takes_its_image_along(voc2007, tmp_path, wording):
    voc(voc2007, "000003", ("cow", 0, (1, 1, 9, 9)))
    (voc2007 / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n000003\n")
    path = voc2007 / "Annotations" / "000001.xml"
    path.write_text("<annotation><object>")
    message = refusal("voc2007", data_root=str(tmp_path))
    assert message.startswith(f"{path}: ")
    wording(message.partition(" (")[0])  # the rest is Python's
    source = opened("voc2007", skip=True, data_root=str(tmp_path))
    assert (names(source.train), boxes(source.train)) == (["000003"], [[[9, 0, 0, 9, 9, 0]]])


@pytest.mark.parametrize("name", BOXES_NAMED)
def test_named_sets_take_no_share(name, wording):
    message = refusal(name, val_split=0.1)
    assert message.startswith("--val-split")
    wording(message)


def test_the_demo_set_has_a_box_around_each_shape(demo, monkeypatch):
    monkeypatch.setattr(box_sources, "ensure_demo", lambda: demo)
    source = opened("demo")
    assert (source.name, source.native_size, source.class_names) == ("demo", 64, CLASS_NAMES)
    assert (len(source.train), len(source.val)) == (160, 50)
    for i, found in enumerate(boxes(source.val)):
        ((label, *box, crowd),) = found
        path = source.val.name(i)
        assert CLASS_NAMES[int(label)].replace(" ", "_") == Path(path).parent.name
        with Image.open(path.replace(f"{demo}/", f"{demo}/masks/").replace(".jpg", ".png")) as mask:
            assert tuple(box) == mask.getbbox()
        assert crowd == 0


def test_synthetic_boxes_are_of_80_classes_and_make_batches():
    source = opened("synthetic")
    assert (len(source.train), len(source.val), len(source.class_names)) == (12_800, 1_280, 80)
    assert isinstance(source.train.annotations, Boxes)
    assert source.train.annotations.most == 8
    assert source.native_size is None
    sampler = ShardedSampler(count=len(source.train), batch_size=4, rank=0, world_size=1, train=True)
    batch = next(iter(SyntheticLoader(source.train, Transform(size=96), sampler, torch.device("cpu"))))
    assert batch.images.shape == (4, 3, 96, 96)
    assert batch.targets.shape == (4, 8, 6)
    assert batch.targets.dtype == torch.float32
    for i in range(4):
        own = source.train.annotations.of(i)
        assert (batch.targets[i, len(own) :, 0] == NO_BOX).all()
        expected = own * np.array([1, 1.5, 1.5, 1.5, 1.5, 1], dtype=np.float32)
        np.testing.assert_allclose(batch.targets[i, : len(own)], expected, rtol=1e-5)


APART = "{}/images {}/labels", "images/{} labels/{}"
PLACES = [
    *((folders, kind) for folders in APART for kind in ("labels", "xml")),
    *(("{} {}", kind) for kind in ("labels", "xml", "csv", "coco")),
]
TWINS = [("train2007", "train2012"), ("train", "train_images"), ("val", "validation"), ("val2007", "val2012")]


@pytest.mark.parametrize("twins", TWINS)
@pytest.mark.parametrize(("folders", "kind"), PLACES)
def test_two_folders_of_one_phase_are_refused(folders, kind, twins, tmp_path, wording):
    root = tmp_path / "farm"
    for i, phase in enumerate(dict.fromkeys(("train", *twins))):
        if phase == "train" and twins[0] == "train2007":
            continue
        images, labels = (root / name for name in folders.format(phase, phase).split())
        picture(images / f"{i}.jpg")
        if kind == "labels":
            text(labels / f"{i}.txt", "0 0.5 0.5 0.1 0.2")
        elif kind == "xml":
            text(labels / f"{i}.xml", f"<annotation>{OBJECT}</annotation>")
        elif kind == "csv":
            text(labels / "boxes.csv", "file,class,xmin,ymin,xmax,ymax", f"{i}.jpg,cat,1,2,30,40")
        else:
            coco(labels / "_annotations.coco.json", [f"{i}.jpg"], [{**ANNOTATIONS[0], "image_id": 5}])
    text(root / "classes.txt", "cat")
    message = refusal(root)
    wording(message)
    assert all(re.search(rf"(/|: ){name}\b", message) for name in twins)
    for folder in list(root.rglob(twins[1])):
        folder.rename(tmp_path / f"{folder.parent.name} {folder.name}")
    if twins[0] not in ("train2007", "train"):
        assert len(opened(root).val) == 1


OBJECT = (
    "<object><name>cat</name><bndbox>"
    "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
)


def test_images_of_one_year_are_not_paired_with_labels_of_another(tmp_path, wording):
    root = tmp_path / "farm"
    for year in ("train2007", "train2012"):
        picture(root / "images" / year / "1.jpg")
    text(root / "labels" / "train2012" / "1.txt", "0 0.5 0.5 0.1 0.2")
    wording(refusal(root, val_split=0.5))


def test_a_second_folder_of_a_phase_without_files_is_passed_over(yolo):
    (yolo / "images" / "validation").mkdir()
    assert names(opened(yolo).val) == ["c"]


def test_yaml_of_other_programs_is_passed_over(yolo):
    (yolo / "data.yaml").rename(yolo / "mine.yaml")
    for name, content in (("a.yaml", "x: &x 1\ny: *x"), ("b.yml", "{"), ("c.yaml", "services: [web]")):
        (yolo / name).write_text(content)
    assert opened(yolo).class_names == ("cat", "dog", "cow")


def test_folders_of_one_phase_that_data_yaml_lists_are_all_read(tmp_path):
    for folder in ("train2007", "train2012", "val2007", "val2012"):
        picture(tmp_path / "images" / folder / f"{folder}.jpg")
        text(tmp_path / "labels" / folder / f"{folder}.txt", "0 0.5 0.5 0.1 0.2")
    text(
        tmp_path / "data.yaml",
        "names: [cat]",
        "train: [images/train2007, images/train2012]",
        "val: [images/val2007, images/val2012]",
    )
    assert names(opened(tmp_path).train) == ["train2007", "train2012"]


@pytest.mark.parametrize("second", ["a.png", "a.jpeg", "a.bmp"])
def test_images_that_share_a_label_file_are_refused_but_for_the_first(second, yolo, wording):
    picture(yolo / "images" / "train" / second)
    wording(refusal(yolo))
    assert len(opened(yolo, skip=True).train) == 2
    (yolo / "images" / "train" / second).rename(yolo / "images" / "train" / f"new {second}")
    assert len(opened(yolo).train) == 3


def test_an_image_that_is_listed_twice_shares_its_label_file_with_itself(yolo):
    text(yolo / "train.txt", "images/train/a.jpg", "images/train/a.jpg", "images/train/b.jpg")
    text(yolo / "data.yaml", "names: [cat, dog, cow]", "train: train.txt", "val: images/val")
    assert names(opened(yolo).train) == ["a", "a", "b"]
