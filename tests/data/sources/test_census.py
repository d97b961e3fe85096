"""The lines about a data set at the start of a run."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcnn.config.settings import DataSettings, TaskName
from fastcnn.data.sources import census
from fastcnn.data.sources.census import count_lines, same_images
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.headers import Files, scan
from fastcnn.data.sources.open import open_data
from small_boxes import text


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / ".cache"))


def picture(path: Path, seed: int) -> None:
    """A picture of its own, whose file is as long as that of every other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")


def labeled(
    train: list[int], val: list[int], names: tuple[str, ...], test: list[int] | None = None
) -> Source:
    return Source(
        name="x",
        train=Split(np.array(train)),
        val=Split(np.array(val)),
        test=None if test is None else Split(np.array(test)),
        class_names=names,
    )


def opened(root: Path, task: TaskName = "classification", **settings: float) -> Source:
    return open_data(DataSettings(data=str(root), **settings), task=task, seed=0)  # type: ignore[arg-type]


def warnings(source: Source) -> list[str]:
    return [line for line in source.remarks if line.startswith("warning")]


@pytest.mark.parametrize(
    ("train", "val", "test", "line"),
    [
        (
            [0, 0, 1, 1],
            [0, 1],
            None,
            "2 classes (cat, dog): 2 training images each; 4 images for training, 2 for validation",
        ),
        (
            [0, 0, 1, 1, 1],
            [0, 1],
            [0],
            "2 classes (cat, dog): 2 (cat) to 3 (dog) training images each; 5 images for training, "
            "2 for validation, 1 held out for the test",
        ),
    ],
)
def test_the_classes_are_named_with_the_least_and_the_most_images(train, val, test, line):
    assert count_lines(labeled(train, val, ("cat", "dog"), test)) == [line]


def test_many_classes_are_counted_alone():
    names = tuple(f"class {i}" for i in range(1000))
    train = np.repeat(np.arange(1000), 3).tolist()
    (line,) = count_lines(labeled(train[1:], list(range(1000)), names))
    assert line == (
        "1,000 classes: 2 (class 0) to 3 (class 1) training images each; 2,999 images for training, "
        "1,000 for validation"
    )


def test_rare_classes_are_named(wording):
    names = tuple("abcdefghijklmn")
    lines = count_lines(labeled([0, 0, 0, *range(2, 14)], [0, 2], names))
    assert len(lines) == 4
    for line in lines:
        wording(line)


def test_lone_images_that_stay_in_training_are_named_by_their_classes(tmp_path, wording):
    counts = {"big": 20, "bigger": 20, **{f"rare{i:02}": 1 for i in range(12)}}
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(tmp_path / "data" / name / f"{i}.bmp", 100 * c + i)
    source = opened(tmp_path / "data", val_split=0.2)
    assert set(source.train.labels) == set(range(14))
    for line in warnings(source):
        wording(line)


# Images on both sides


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for p, part in enumerate(("train", "val", "test")):
        for c, name in enumerate(("cat", "dog")):
            for i in range(4):
                picture(tmp_path / "pets" / part / name / f"{i}.bmp", 100 * p + 10 * c + i)
    return tmp_path / "pets"


def test_images_of_the_same_length_are_not_taken_for_the_same(pets):
    assert warnings(opened(pets)) == []


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("again", ["cat/again.bmp", "dog/other class.bmp"])
def test_an_image_in_training_and_in_another_part_is_named(part, again, pets, wording):
    picture(pets / part / again, 0)
    for _ in range(2):  # from the files, then from the cache
        (line,) = warnings(opened(pets))
        assert str(pets / part / again) in line
        assert str(pets / "train" / "cat" / "0.bmp") in line
    wording(line)
    (pets / part / again).unlink()  # the advice works
    assert warnings(opened(pets)) == []


def test_images_on_both_sides_of_a_share_are_counted(pets):
    for i in range(4):
        for copy in range(5):
            picture(pets / "train" / "cat" / f"{i} copy {copy}.bmp", i)
    (pets / "val").rename(pets.parent / "val")
    (pets / "test").rename(pets.parent / "test")
    (line,) = warnings(opened(pets, val_split=0.3))
    assert int(line.split()[1]) > 1


def test_a_changed_file_is_compared_again(pets):
    picture(pets / "val" / "cat" / "0.bmp", 0)
    assert len(warnings(opened(pets))) == 1
    picture(pets / "val" / "cat" / "0.bmp", 999)
    assert warnings(opened(pets)) == []


def test_contents_are_read_once(pets, monkeypatch):
    first = opened(pets).remarks
    monkeypatch.setattr(Files, "read", lambda *_: pytest.fail("read again"))
    assert opened(pets).remarks == first


def test_files_of_other_lengths_are_not_read(tmp_path, monkeypatch):
    for name, size in (("train/a/0", 8), ("train/b/0", 8), ("val/a/0", 9), ("val/b/0", 9)):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        Image.new("RGB", (size, size)).save(tmp_path / "data" / f"{name}.bmp")
    monkeypatch.setattr(Files, "read", lambda *_: pytest.fail("read"))
    assert len(opened(tmp_path / "data").remarks) == 2  # the counts, and classes of one image


@pytest.mark.parametrize(("limit", "value"), [("COMPARED_FILES", 12), ("COMPARED_BYTES", 12 * 246)])
def test_of_many_files_a_part_is_compared_and_said(limit, value, tmp_path, monkeypatch, wording):
    monkeypatch.setattr(census, limit, value)
    for i in range(20):  # of 20 sizes
        for part in ("train", "val"):
            path = tmp_path / part / f"{i}.bmp"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 4 + i), (i, 0, 0)).save(path)
    sides = [sorted(map(str, (tmp_path / part).glob("*.bmp"))) for part in ("train", "val")]
    train, val = (Split(np.zeros(20, np.int64), scan("x", paths)) for paths in sides)
    (line,) = same_images(train, val, "validation", "x")
    assert " compared)" in line
    assert 1 <= int(line.split()[1]) <= 12
    wording(line)


def test_too_many_files_of_one_size_are_said_not_to_be_compared(pets, monkeypatch, wording):
    monkeypatch.setattr(census, "COMPARED_FILES", 3)
    lines = [line for line in opened(pets).remarks if "compared" in line]
    assert len(lines) == 2
    wording(lines[0])


def test_missing_and_empty_files_are_not_the_same(pets):
    for part in ("train", "val"):
        (pets / part / "cat" / "empty.jpg").write_bytes(b"")
        (pets / part / "cat" / "broken.jpg").write_bytes(b"no image")
    assert warnings(opened(pets)) == []


def test_members_of_shards_are_compared(pets, tmp_path):
    picture(pets / "val" / "cat" / "1.bmp", 1)
    for part in ("train", "val"):
        with tarfile.open(tmp_path / f"{part}-0.tar", "w") as tar:
            for i, path in enumerate(sorted((pets / part).rglob("*.bmp"))):
                tar.add(path, f"{part}{i}.bmp")
                label = tmp_path / "label"
                label.write_text(path.parent.name)
                tar.add(label, f"{part}{i}.cls")
    (line,) = warnings(opened(tmp_path / "{train,val}-0.tar"))
    assert "val1.bmp" in line
    assert "train1.bmp" in line


def test_masks_and_boxes_count_their_images_and_compare_them(pets, tmp_path, wording):
    for part, shade in (("train", 1), ("val", 1)):
        for i in range(3):
            picture(tmp_path / "seg" / part / "images" / f"{i}.bmp", i if part == "train" else 10 + i)
            (tmp_path / "seg" / part / "masks").mkdir(exist_ok=True)
            mask = Image.fromarray(np.array([[0, shade] * 4] * 8, dtype=np.uint8))
            mask.save(tmp_path / "seg" / part / "masks" / f"{i}.png")
    picture(tmp_path / "seg" / "val" / "images" / "2.bmp", 2)
    lines = opened(tmp_path / "seg", "segmentation").remarks
    assert len(lines) >= 2
    wording(next(line for line in lines if line.startswith("2 classes")))
    assert [line for line in lines if "is also a training image" in line]


def test_boxes_of_each_class_are_counted_and_rare_classes_named(tmp_path, wording):
    for part in ("train", "val"):
        for i in range(3):
            picture(tmp_path / part / "images" / f"{i}.bmp", i if part == "train" else 10 + i)
            lines = ["0 0.5 0.5 0.5 0.5", "0 0.4 0.4 0.5 0.5"] + ["1 0.5 0.5 0.5 0.5"] * (i == 0)
            text(tmp_path / part / "labels" / f"{i}.txt", *lines)
    text(tmp_path / "classes.txt", "cat", "dog", "cow")
    first, *others = opened(tmp_path, "detection").remarks
    assert "0 (cow) to 6 (cat) training boxes each" in first
    assert len(others) == 3
    wording(first)
    for line in others:
        wording(line)
    text(tmp_path / "classes.txt", "cat")
    text(tmp_path / "train" / "labels" / "0.txt")
    text(tmp_path / "val" / "labels" / "0.txt")
    wording(opened(tmp_path, "detection").remarks[0])
