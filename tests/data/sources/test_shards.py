"""WebDataset shards: which tars are read, what they must hold, and that it is the images that went in."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources import shards
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.sources.open import open_source
from fastcnn.data.sources.shards import expand, is_shards
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FASTCNN_CACHE", str(folder))
    return folder / "shards"


def jpeg(shade: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(stream, "JPEG")
    return stream.getvalue()


def write(path: Path, members: Mapping[str, bytes], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(classes: Mapping[str, object]) -> dict[str, bytes]:
    """Members of a shard: KEY.jpg and KEY.cls of each key."""
    return {
        name: content
        for i, (key, label) in enumerate(classes.items())
        for name, content in ((f"{key}.jpg", jpeg(i)), (f"{key}.cls", str(label).encode()))
    }


def train_and_val(root: Path, **classes: object) -> Path:
    """A shard of two samples to train on and one of one to validate on; keyword arguments change them."""
    write(root / "train-0.tar", samples(classes or {"a": 0, "b": 1}))
    write(root / "val-0.tar", samples({"c": 0}))
    return root


def read(data: object, val_split: float | None = None, data_root: object = "data") -> Source:
    return open_source(DataSettings(data=str(data), data_root=str(data_root), val_split=val_split), seed=0)


def refusal(data: object, val_split: float | None = None) -> str:
    """The message of the ValueError that opening this raises, which must be one line."""
    with pytest.raises(ValueError) as caught:
        read(data, val_split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def names(split: Split) -> list[str]:
    return [split.name(i) for i in range(len(split))]


# Which tars are meant


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", "a.tar"),
        ("{a,b}.tar", "a.tar b.tar"),
        ("x-{0..2}", "x-0 x-1 x-2"),
        ("x-{008..011}", "x-008 x-009 x-010 x-011"),
        ("x-{9..10}", "x-9 x-10"),
        ("{a,b}/{0..1}", "a/0 a/1 b/0 b/1"),
        ("{a,b{c,d}}", "a bc bd"),
        ("{{a,b},c}", "a b c"),
        ("{train-{000..002},val-{00..01}}.tar", "train-000 train-001 train-002 val-00 val-01"),
        ("{x{0..1}{a,b},y}", "x0a x0b x1a x1b y"),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern, expected):
    suffix = ".tar" if pattern.endswith(".tar") else ""
    assert list(expand(pattern)) == [word.removesuffix(".tar") + suffix for word in expected.split()]


@pytest.mark.parametrize("data", ["s3://bucket/a-{0..1}.tar", "gs://bucket/a.tar", "a/{b,c}-{0..9}.tar"])
def test_a_pattern_of_tars_means_shards(data):
    assert is_shards(data)


def test_a_folder_of_tars_means_shards_and_another_folder_does_not(tmp_path):
    train_and_val(tmp_path / "tars")
    (tmp_path / "images" / "train" / "ant").mkdir(parents=True)
    assert is_shards(str(tmp_path / "tars"))
    assert not is_shards(str(tmp_path / "images"))
    assert not is_shards(str(tmp_path / "nowhere"))
    assert not is_shards("cifar10")


def test_an_image_folder_in_which_its_archive_was_left_is_an_image_folder(photos, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(photos / split)
    write(tmp_path / "ILSVRC2012_img_train.tar", {"n01440764.tar": b""})
    assert len(read(tmp_path).train) == 23


def test_leftovers_beside_tars_are_passed_over(tmp_path):
    train_and_val(tmp_path)
    for name in ("@eaDir", ".cache", "lost+found"):
        (tmp_path / name).mkdir()
    assert is_shards(str(tmp_path))


def test_test_shards_beside_those_of_validation_are_held_out(tmp_path):
    write(train_and_val(tmp_path) / "TEST-0.tar", samples({"d": 1, "e": 0}))
    source = read(tmp_path)
    assert source.test is not None
    assert [len(split) for split in (source.train, source.val, source.test)] == [2, 1, 2]
    assert source.test.labels.tolist() == [1, 0]


def test_members_of_a_group_are_on_one_side(tmp_path):
    names_of = [f"patient{p}_{i}" for p in range(10) for i in range(3)]
    write(tmp_path / "train-0.tar", samples({name: i % 2 for i, name in enumerate(names_of)}))
    settings = DataSettings(data=str(tmp_path), val_split=0.2, group_by=r"patient\d")
    source = open_source(settings, seed=0)
    patients = [{name.rsplit("/")[-1][:8] for name in names(split)} for split in (source.train, source.val)]
    assert [len(side) for side in patients] == [8, 2]
    assert not patients[0] & patients[1]


def test_a_folder_of_tars_is_read(tmp_path):
    write(tmp_path / "shards" / "train-1.tar", samples({"c": 1, "d": 0}))
    write(tmp_path / "shards" / "train-0.tar", samples({"a": 0, "b": 1}))
    write(tmp_path / "shards" / "val-0.tar", samples({"e": 1}))
    (tmp_path / "shards" / "readme.txt").write_text("")
    source = read(tmp_path / "shards")
    assert source.name == "shards"
    assert source.class_names == ("0", "1")
    first, second = (tmp_path / "shards" / f"train-{i}.tar" for i in range(2))
    assert names(source.train) == [f"{first}/a.jpg", f"{first}/b.jpg", f"{second}/c.jpg", f"{second}/d.jpg"]
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert source.train.labels.dtype == np.int64
    assert source.val.labels.tolist() == [1]
    assert source.train.sizes.tolist() == [[8, 8]] * 4
    assert (source.channels, source.native_size) == (3, 8)


def test_a_pattern_is_read_in_its_order_and_each_shard_once(tmp_path):
    for name, key in (("train-00", "a"), ("train-01", "b"), ("val-0", "c"), ("val-1", "d")):
        write(tmp_path / "mine" / f"{name}.tar", samples({key: 0, key + "2": 1}))
    source = read(tmp_path / "mine" / "{train-{00..01},val-{0..1}}.tar")
    assert source.name == "mine"
    assert [Path(name).name for name in names(source.train)] == ["a.jpg", "a2.jpg", "b.jpg", "b2.jpg"]
    assert [Path(name).name for name in names(source.val)] == ["c.jpg", "c2.jpg", "d.jpg", "d2.jpg"]


def test_shards_in_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    train_and_val(tmp_path / "mine")
    assert len(read("~/mine").train) == len(read("~/mine/{train,val}-0.tar").train) == 2


@pytest.mark.parametrize("name", ["val-0.tar", "validation_3.tar", "test.tar"])
def test_shards_to_validate_on_are_known_by_their_names(name, tmp_path):
    write(tmp_path / "latest-0.tar", samples({"a": 0, "b": 1}))  # not at its beginning
    write(tmp_path / name, samples({"c": 1}))
    source = read(tmp_path)
    assert (len(source.train), len(source.val)) == (2, 1)


def test_an_empty_shard_adds_nothing(tmp_path):
    train_and_val(tmp_path)
    write(tmp_path / "train-1.tar", {})
    for _ in range(2):  # the second time from the cache
        source = read(tmp_path)
        assert source.train.labels.tolist() == [0, 1]
        assert source.train.labels.dtype == np.int64


def test_shards_to_test_on_are_held_out_beside_shards_to_validate_on(tmp_path):
    train_and_val(tmp_path)
    write(tmp_path / "test-0.tar", samples({"d": 1, "e": 0}))
    source = read(tmp_path)
    assert (len(source.train), len(source.val)) == (2, 1)
    assert source.test is not None
    assert source.test.labels.tolist() == [1, 0]
    assert read(tmp_path / "{train,val}-0.tar").test is None


def test_a_share_is_taken_where_no_shard_is_for_validation(tmp_path):
    write(tmp_path / "part-0.tar", samples({f"{i:02}": i % 2 for i in range(10)}))
    write(tmp_path / "part-1.tar", samples({f"{i:02}": i % 2 for i in range(10, 20)}))
    source = read(tmp_path, 0.3)
    keys = [Path(name).stem for split in (source.train, source.val) for name in names(split)]
    assert sorted(keys) == [f"{i:02}" for i in range(20)]
    assert np.bincount(source.val.labels).tolist() == [3, 3]
    for split in (source.train, source.val):
        assert split.files is not None
        for i, name in enumerate(names(split)):
            key = int(Path(name).stem)
            assert split.labels[i] == key % 2
            assert split.files.read(i).tobytes() == jpeg(key % 10)


# What a shard holds


@pytest.mark.parametrize(
    ("classes", "class_names", "labels"),
    [
        ((1, 0, 2), "0 1 2", [1, 0, 2]),
        ((5, 0, 0), "0 1 2 3 4 5", [5, 0, 0]),
        (("001", "000", "2\n"), "0 1 2", [1, 0, 2]),
        ((9, 10, 2), "0 1 2 3 4 5 6 7 8 9 10", [9, 10, 2]),
        (("dog", "cat", "ant\n"), "ant cat dog", [2, 1, 0]),
        (("n02", "1", "n01"), "1 n01 n02", [2, 0, 1]),
    ],
    ids=str,
)
def test_classes_are_numbers_or_names(classes, class_names, labels, tmp_path):
    write(tmp_path / "train-0.tar", samples(dict(zip("abc", classes))))
    write(tmp_path / "val-0.tar", samples({"d": classes[0]}))
    source = read(tmp_path)
    assert source.class_names == tuple(class_names.split())
    assert source.train.labels.tolist() == labels
    assert source.val.labels.tolist() == labels[:1]


def test_a_class_that_only_validation_has_counts(tmp_path):
    write(tmp_path / "train-0.tar", samples({"a": 0, "b": 1}))
    write(tmp_path / "val-0.tar", samples({"c": 4}))
    assert len(read(tmp_path).class_names) == 5


@pytest.mark.parametrize(
    "listed",
    ["ant\nbee\ncat dog\n", "ant\nbee\ncat dog", "ant\r\nbee\r\ncat dog\r\n", "\ufeffant\nbee\ncat dog\n"],
    ids=["lines", "no last line end", "Windows line ends", "byte-order mark"],
)
def test_numbers_have_the_names_of_the_list_beside_the_shards(listed, tmp_path):
    train_and_val(tmp_path, a=1, b=0)
    (tmp_path / "classes.txt").write_bytes(listed.encode())
    source = read(tmp_path)
    assert source.class_names == ("ant", "bee", "cat dog")
    assert source.train.labels.tolist() == [1, 0]
    assert read(tmp_path / "{train,val}-0.tar").class_names == source.class_names


def test_names_in_the_shards_need_no_list(tmp_path):
    write(tmp_path / "train-0.tar", samples({"a": "dog", "b": "cat"}))
    write(tmp_path / "val-0.tar", samples({"c": "dog"}))
    (tmp_path / "classes.txt").write_text("x\ny\n")
    assert read(tmp_path).class_names == ("cat", "dog")


def test_a_list_that_is_too_short_is_refused(tmp_path, wording):
    train_and_val(tmp_path, a=0, b=2)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}/classes.txt: names 2 classes")
    wording(message)


def test_a_pack_that_is_not_finished_is_refused(tmp_path, wording):
    train_and_val(tmp_path)
    (tmp_path / "pack.json").write_text(json.dumps({"shards": ["train-0.tar", "train-1.tar", "val-0.tar"]}))
    message = refusal(tmp_path)
    assert message == f"--data {tmp_path}: train-1.tar is not there; finish fastcnn pack first"
    wording(message)
    write(tmp_path / "train-1.tar", samples({"d": 0}))
    assert len(read(tmp_path).train) == 3


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"shards": 3}', "text"])
def test_another_file_of_that_name_does_not_matter(text, tmp_path):
    train_and_val(tmp_path)
    (tmp_path / "pack.json").write_text(text)
    assert len(read(tmp_path).train) == 2


def test_orientation_is_of_the_setting(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=exif)
    write(tmp_path / "train-0.tar", {**samples({"a": 0, "b": 1}), "a.jpg": stream.getvalue()})
    write(tmp_path / "val-0.tar", samples({"c": 0}))
    for exif_setting, size in (("upright", [8, 4]), ("ignore", [4, 8])):
        settings = DataSettings(data=str(tmp_path), exif=exif_setting)  # type: ignore[arg-type]
        assert open_source(settings, seed=0).train.sizes[0].tolist() == size


def test_a_sample_is_known_by_its_name_up_to_the_first_dot_in_its_folder(tmp_path):
    long = "long/" * 30 + "name"
    write(
        tmp_path / "train-0.tar",
        {
            "2.0/a.cls": b"0",  # in any order
            "1.0/a.cls": b"1",
            "1.0/a.json": b"{}",
            "1.0/a.JPG": jpeg(1),
            "2.0/a.view.png": jpeg(2),
            f"{long}.jpg": jpeg(3),
            f"{long}.cls": b"1",
            "readme.txt": b"",
        },
    )
    with tarfile.open(tmp_path / "train-0.tar", "a") as tar:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    write(tmp_path / "val-0.tar", samples({"c": 0}))
    train = read(tmp_path).train
    assert train.files is not None
    assert train.files.members == ("1.0/a.JPG", "2.0/a.view.png", f"{long}.jpg")
    assert train.labels.tolist() == [1, 0, 1]
    assert [train.files.read(i).tobytes() for i in range(3)] == [jpeg(1), jpeg(2), jpeg(3)]


def test_a_bad_image_is_named_by_its_shard_and_its_name_in_it(tmp_path):
    write(tmp_path / "train-0.tar", {**samples({"a": 0, "b": 1}), "b.jpg": b"text"})
    write(tmp_path / "val-0.tar", samples({"c": 0}))
    train = read(tmp_path).train
    assert {train.name(i): why for i, why in train.problems.items()} == {
        f"{tmp_path}/train-0.tar/b.jpg": "not an image"
    }


# What is refused


def test_a_missing_shard_is_named(tmp_path, wording):
    train_and_val(tmp_path)
    message = refusal(tmp_path / "{train-0,train-1,val-0}.tar")
    assert message.startswith(f"--data {tmp_path}/train-1.tar: ")
    wording(message)


@pytest.mark.parametrize("off", [1, 100, 513, 1100])
def test_a_shard_that_was_cut_within_a_sample_is_refused(off, tmp_path):
    path = train_and_val(tmp_path) / "train-0.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 512
    path.write_bytes(path.read_bytes()[: end - off])
    assert refusal(tmp_path).startswith(f"--data {path}: ")


def test_a_shard_that_was_cut_between_samples_is_refused(tmp_path, wording):
    path = train_and_val(tmp_path, a=0, b=1, c=0, d=1) / "train-0.tar"
    with tarfile.open(path) as tar:
        path.write_bytes(path.read_bytes()[: tar.getmembers()[4].offset])
    message = refusal(tmp_path)
    assert message.startswith(f"--data {path}: ")
    wording(message.partition(" (")[0])  # the rest is Python's


def test_a_shard_with_a_damaged_header_is_refused(tmp_path, wording):
    path = train_and_val(tmp_path, a=0, b=1, c=0, d=1) / "train-0.tar"
    with tarfile.open(path) as tar:
        header = tar.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"x" * 512
    path.write_bytes(data)
    message = refusal(tmp_path)
    assert message.startswith(f"--data {path}: ")
    wording(message.partition(" (")[0])


@pytest.mark.parametrize(
    "content", [b"", b"text", b"x" * 3000, jpeg() * 3], ids=["empty", "text", "noise", "jpeg"]
)
def test_a_file_that_is_no_tar_is_refused(content, tmp_path, wording):
    train_and_val(tmp_path)
    (tmp_path / "train-1.tar").write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"--data {tmp_path}/train-1.tar: ")
    wording(re.sub(r"\(.*\)", "(...)", message))


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (b"1000000000", "a class has the number 1000000000"),
        (b"x" * 20_000_000, "a.cls is neither a class's number nor its name"),
        (b"9" * 5000, "a.cls is neither"),
        (b"a\nb", "a.cls is neither"),
        (b"\xff\xfe", "can't decode"),
    ],
    ids=["number", "20 MB", "digits", "lines", "bytes"],
)
def test_a_class_of_no_usual_size_is_refused_at_once(word, reason, tmp_path):
    train_and_val(tmp_path)
    write(tmp_path / "train-1.tar", {"a.jpg": jpeg(), "a.cls": word})
    tracemalloc.start()
    try:
        assert reason in refusal(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def with_header(path: Path, place: int, **fields: bytes) -> None:
    """Overwrite fields of the tar header at a place, with a correct checksum."""
    data = bytearray(path.read_bytes())
    starts = {"size": 124, "kind": 156}
    for name, value in fields.items():
        data[place + starts[name] : place + starts[name] + len(value)] = value
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\x00 " % sum(data[place : place + 512])
    path.write_bytes(data)


@pytest.mark.parametrize(
    "size",
    [b"77777777777\x00", b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"\xff" * 10 + b"\xfc\x00"],
    ids=["8 GB", "base 256", "-1", "-1024"],
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"], ids=["file", "pax", "long name", "sparse"])
def test_a_member_of_an_absurd_size_is_refused_at_once(size, kind, tmp_path):
    path = train_and_val(tmp_path, a=0, b=1, c=0, d=1) / "train-0.tar"
    with tarfile.open(path) as tar:
        place = tar.getmembers()[4].offset
    with_header(path, place, size=size, kind=kind)
    assert refusal(tmp_path).startswith(f"--data {path}: ")


def test_links_and_names_of_other_folders_lead_nowhere(tmp_path):
    train_and_val(tmp_path)
    with tarfile.open(tmp_path / "train-1.tar", "w") as tar:
        for name, link in (("../../e.jpg", "/etc/passwd"), ("f.cls", "../../f")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, link
            tar.addfile(member)
        for name, content in (("../../e.cls", b"1"), ("../../g.jpg", jpeg()), ("../../g.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert "../../e has no image" in refusal(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-0.tar", "train-1.tar", "val-0.tar"]


def test_a_compressed_tar_is_refused(tmp_path):
    write(train_and_val(tmp_path) / "train-1.tar", samples({"c": 0}), "w:gz")
    assert refusal(tmp_path).startswith(f"--data {tmp_path}/train-1.tar: ")


@pytest.mark.parametrize(("left_out", "missing"), [("b.cls", ".cls"), ("b.jpg", "image")])
def test_a_sample_needs_an_image_and_a_class(left_out, missing, tmp_path, wording):
    train_and_val(tmp_path)
    members = samples({"a": 0, "b": 1})
    del members[left_out]
    write(tmp_path / "train-1.tar", members)
    message = refusal(tmp_path)
    assert message.startswith(f"--data {tmp_path}/train-1.tar: b has no {missing};")
    wording(message)


def test_a_sample_with_two_images_is_refused(tmp_path):
    two = {"c.jpg": jpeg(), "c.mask.png": jpeg(), "c.cls": b"0"}
    write(train_and_val(tmp_path) / "train-1.tar", two)
    assert refusal(tmp_path).startswith(f"--data {tmp_path}/train-1.tar: c ")


def test_shards_need_some_to_train_on(tmp_path, wording):
    write(tmp_path / "val-0.tar", samples({"a": 0, "b": 1}))
    message = refusal(tmp_path)
    assert message.startswith(f"--data {tmp_path}: ")
    wording(message)


def test_shards_without_validation_ask_for_a_share(tmp_path, wording):
    write(tmp_path / "train-0.tar", samples({"a": 0, "b": 1}))
    message = refusal(tmp_path)
    assert message.startswith("--data")
    wording(message)


def test_a_share_beside_shards_to_validate_on_is_refused(tmp_path, wording):
    train_and_val(tmp_path)
    message = refusal(tmp_path, 0.1)
    assert message.startswith("--val-split")
    wording(message)


# The index is kept


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are gone through from now on."""
    paths: list[str] = []
    read_index = shards.read_index

    def noted(path: str) -> shards.Index:
        paths.append(Path(path).name)
        return read_index(path)

    monkeypatch.setattr(shards, "read_index", noted)
    return paths


def test_a_shard_is_gone_through_once_and_again_when_it_changed(tmp_path, indexed):
    train_and_val(tmp_path, a=0, b=1)
    first = read(tmp_path)
    assert sorted(indexed) == ["train-0.tar", "val-0.tar"]
    indexed.clear()
    again = read(tmp_path)
    assert indexed == []
    assert names(again.train) == names(first.train)
    assert again.train.labels.tolist() == first.train.labels.tolist() == [0, 1]
    path = tmp_path / "train-0.tar"
    written = path.stat().st_mtime_ns
    write(path, samples({"a": 1, "b": 1}))
    os.utime(path, ns=(written, written + 1))
    assert read(tmp_path).train.labels.tolist() == [1, 1]
    write(path, samples({f"{i:02}": i % 2 for i in range(20)}))
    os.utime(path, ns=(written, written + 1))
    assert len(read(tmp_path).train) == 20
    assert indexed == ["train-0.tar"] * 2


def test_a_damaged_index_is_made_again(tmp_path, cache, indexed):
    train_and_val(tmp_path)
    read(tmp_path)
    for damage in (b"", b"text", None):
        for entry in cache.iterdir():
            entry.write_bytes(entry.read_bytes()[:-40] if damage is None else damage)
        indexed.clear()
        assert len(read(tmp_path).train) == 2
        assert sorted(indexed) == ["train-0.tar", "val-0.tar"]
        indexed.clear()
        read(tmp_path)
        assert indexed == []


def test_an_index_that_cannot_be_kept_is_made_every_time(tmp_path, monkeypatch):
    train_and_val(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "file"))
    assert len(read(tmp_path).train) == len(read(tmp_path).train) == 2


# Loaded as files are


@pytest.fixture(scope="session")
def photo_shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos in two shards to train on and one to validate on, in the folder's order."""
    root = tmp_path_factory.mktemp("photo-shards")
    for split in ("train", "val"):
        members: dict[str, bytes] = {}
        paths = sorted((photos / split).rglob("*.jpg"))
        for i, path in enumerate(paths, 1):
            key = f"{path.parent.name}/{path.stem}"
            members |= {f"{key}.jpg": path.read_bytes(), f"{key}.cls": path.parent.name.encode()}
            if i in (len(paths) // 2, len(paths)):
                write(root / f"{split}-{i:03}.tar", members)
                members = {}
    return root


@pytest.mark.parametrize("backend", [pytest.param("dali", marks=needs_dali), "torch", "cached"])
@pytest.mark.parametrize("crop", ["random-resized", "pad"])
def test_shards_are_loaded_as_the_files_in_them(backend, crop, photos, photo_shards):
    def batches(source: Source) -> list[Any]:
        assert (len(source.train), len(source.val)) == (23, 7)
        loaders = build_loaders(
            source,
            Transform(size=32, channels=3, train_crop=crop),
            LoaderSettings(data_backend=backend, batch_size=4, workers=1, max_bad_fraction=0.0),
            ranks=Ranks(0, 1, 0, 1),
            device=torch.device("cpu"),
            seed=3,
        )
        found = [batch for loader in loaders for batch in loader]
        for loader in loaders:
            loader.close()
        return found

    source = read(photo_shards)
    assert source.class_names == ("cat", "dog")
    from_shards, from_files = batches(source), batches(read_folder(photos, DataSettings(), 0))
    assert len(from_shards) == len(from_files) == 5 + 2
    for ours, theirs in zip(from_shards, from_files):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3]))
    assert len(torch.unique(torch.cat([batch.images for batch in from_shards]))) > 200


# Remote shards


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to HEAD and GET of whole objects and of ranges."""

    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def reply(self) -> None:
        path = self.root / self.path.partition("?")[0].lstrip("/")
        self.asked.append(f"{self.command} {path.name}")
        content = path.read_bytes() if path.is_file() else b""
        total = len(content)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not path.is_file():
            self.send_response(404)
        elif part:
            first, last = int(part[1]), min(int(part[2] or total - 1), total - 1)
            content = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD = reply

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    """Stands in for S3, for processes that are started from now on."""

    class Mine(Bucket):
        root = tmp_path / "s3"
        asked: list[str] = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield Mine
    server.shutdown()
    server.server_close()


# Run by itself, because DALI's client reads the environment once.
READER = """
import json, sys
from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.open import open_source

root, *patterns = sys.argv[1:]
for data in patterns:
    try:
        source = open_source(DataSettings(data=data, data_root=root), seed=0)
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
        continue
    names = [source.train.name(i) for i in range(len(source.train))]
    images = [source.train.files.read(i).tobytes().hex() for i in range(len(source.train))]
    print(json.dumps({"names": names, "images": images, "val": len(source.val)}))
"""


@pytest.mark.slow
@needs_dali
def test_remote_shards_are_copied_once_and_read_as_local_ones(bucket, tmp_path):
    large = {"large.jpg": np.random.default_rng(0).bytes(3_000_000), "large.cls": b"1"}
    write(bucket.root / "bucket" / "set" / "train-0.tar", {**samples({"a": 0, "b": 1}), **large})
    write(bucket.root / "bucket" / "set" / "val-0.tar", samples({"c": 0}))
    pattern = "s3://bucket/set/{train,val}-0.tar"
    missing = "s3://bucket/set/{train,val}-{0..1}.tar"
    command = [sys.executable, "-c", READER, str(tmp_path / "copies"), pattern, pattern, missing]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert first["val"] == 1
    assert [Path(name).name for name in first["names"]] == ["a.jpg", "b.jpg", "large.jpg"]
    assert all(Path(name).is_relative_to(tmp_path / "copies") for name in first["names"])
    assert [bytes.fromhex(image) for image in first["images"]] == [jpeg(0), jpeg(1), large["large.jpg"]]
    assert second == first
    fetched = [request for request in bucket.asked if request.startswith("GET") and "-0.tar" in request]
    assert sorted(set(fetched)) == ["GET train-0.tar", "GET val-0.tar"]
    assert len(fetched) == 2, "copied more than once"
    assert third["error"].startswith("--data s3://bucket/set/train-1.tar: cannot be read: ")
    assert "\n" not in third["error"]
    assert "not found" in third["error"].lower()
    left = sorted(path.name for path in (tmp_path / "copies").rglob("*") if path.is_file())
    assert left == ["train-0.tar", "val-0.tar"]


@needs_dali
def test_remote_folders_are_kept_apart(tmp_path, monkeypatch):
    from fastcnn.data.sources import remote

    monkeypatch.setattr(remote, "read_remote", str.encode)
    copies = [
        Path(shards.fetched(uri, tmp_path)).read_text()
        for uri in ("s3://b/a/b/x.tar", "s3://b/a-b/x.tar", "gs://b/a/b/x.tar")
    ]
    assert copies == ["s3://b/a/b/x.tar", "s3://b/a-b/x.tar", "gs://b/a/b/x.tar"]


def test_remote_shards_without_dali_say_what_is_missing(tmp_path, monkeypatch, wording):
    monkeypatch.setitem(sys.modules, "fastcnn.data.sources.remote", None)
    with pytest.raises(ValueError, match="^--data") as caught:
        read("s3://b/x.tar", data_root=tmp_path)
    wording(caught.value)
