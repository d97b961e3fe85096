"""Listing images: order, leftovers, and links that are followed once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.layout import LEFTOVERS
from fastcnn.data.sources.open import open_source
from fastcnn.data.sources.walk import Listing, image_files, list_images
from fastcnn.errors import UserError


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root: Path, listing: Listing) -> list[str]:
    return [os.path.relpath(path, root) for path in listing.paths]


def by_os_walk(root: Path) -> list[str]:
    """The order of `os.walk` with sorted folders and files."""
    paths = []
    for parent, folders, names in os.walk(root):
        folders.sort()
        paths += [os.path.join(parent, name) for name in sorted(names)]
    return paths


# Order


def test_files_come_in_the_order_of_a_sorted_walk(tmp_path):
    make(
        tmp_path, "b/2.jpg", "b/10.jpg", "a/z.jpg", "a/b/c/1.jpg", "a/b.jpg", "a b/1.jpg", "z.jpg", "A/1.jpg"
    )
    assert list(image_files(tmp_path)) == by_os_walk(tmp_path)


def test_the_folders_are_listed_one_after_the_other(tmp_path):
    make(tmp_path, "b/1.jpg", "b/2.jpg", "a/1.jpg", "c/note.txt")
    listing = list_images([tmp_path / name for name in "bac"])
    assert found(tmp_path, listing) == ["b/1.jpg", "b/2.jpg", "a/1.jpg"]
    assert listing.counts.tolist() == [2, 1, 0]
    assert listing.remarks == ()


def test_no_folders_hold_no_files():
    assert len(list_images([]).paths) == 0


def test_only_files_with_the_suffixes_are_listed_whatever_their_case(tmp_path):
    make(tmp_path, "1.JPG", "2.Jpeg", "3.txt", "4.jpg.part", "5", "6.png")
    assert [Path(p).name for p in image_files(tmp_path)] == ["1.JPG", "2.Jpeg", "6.png"]
    assert [Path(p).name for p in image_files(tmp_path, (".txt",))] == ["3.txt"]


def test_a_folder_whose_name_looks_like_an_image_is_a_folder(tmp_path):
    make(tmp_path, "photo.jpg/1.jpg")
    assert [Path(p).name for p in image_files(tmp_path)] == ["1.jpg"]


def test_names_may_hold_any_bytes(tmp_path):
    names = [b"latin1-\xe9.jpg", b"two\nlines.jpg", "caf\u00e9.jpg".encode(), b"\xff/\xfe.jpg"]
    for name in names:
        make(tmp_path, os.fsdecode(name))
    paths = image_files(tmp_path)
    assert list(paths) == by_os_walk(tmp_path)
    assert sorted(paths.encoded()) == sorted(os.fsencode(tmp_path) + b"/" + name for name in names)


# Leftovers


@pytest.mark.parametrize(
    "folder", [*sorted(LEFTOVERS), "__MACOSX", "@eaDir", ".ipynb_checkpoints", ".thumbnails"]
)
def test_a_folder_that_no_person_made_is_passed_over_and_named(folder, tmp_path):
    make(tmp_path, "cat/0.jpg", f"cat/{folder}/0.jpg", f"cat/deep/{folder}/1.jpg")
    listing = list_images([tmp_path / "cat"])
    assert found(tmp_path, listing) == ["cat/0.jpg"]
    (remark,) = listing.remarks
    assert folder in remark
    assert "(2 in all)" in remark


def test_files_of_an_operating_system_are_passed_over(tmp_path):
    make(tmp_path, "0.jpg", "._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png")
    assert [Path(p).name for p in image_files(tmp_path)] == ["0.jpg"]


# Links


def link(place: Path, target: str | Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target, target_is_directory=True)


def animals(root: Path) -> list[Path]:
    """Two classes of two images."""
    make(root, "cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg")
    return [root / "cat", root / "dog"]


@pytest.mark.parametrize("target", ["..", ".", "../..", "../dog", "../cat"])
def test_a_link_to_what_is_listed_or_contains_it_is_passed_over_and_named(target, tmp_path, wording):
    root = tmp_path / "train"
    classes = animals(root)
    link(root / "cat" / "all", target)
    listing = list_images(classes)
    assert found(root, listing) == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"]
    assert listing.counts.tolist() == [2, 2]
    (remark,) = listing.remarks
    assert str(root / "cat" / "all") in remark
    wording(remark)


def test_an_image_stays_in_its_own_folder_whatever_the_order_of_links(tmp_path):
    root = tmp_path / "train"
    animals(root)
    link(root / "ape", "dog")
    listing = list_images([root / name for name in ("ape", "cat", "dog")])
    assert listing.counts.tolist() == [0, 2, 2]
    assert len(listing.remarks) == 1


def test_a_link_to_another_place_is_followed_once_and_in_its_place(tmp_path):
    classes = animals(tmp_path / "train")
    make(tmp_path / "more", "5.jpg", "deep/6.jpg")
    link(tmp_path / "train" / "cat" / "extra", tmp_path / "more")
    link(tmp_path / "train" / "dog" / "extra", tmp_path / "more")
    listing = list_images(classes)
    names = ["cat/0.jpg", "cat/1.jpg", "cat/extra/5.jpg", "cat/extra/deep/6.jpg", "dog/0.jpg", "dog/1.jpg"]
    assert found(tmp_path / "train", listing) == names
    (remark,) = listing.remarks
    assert remark.startswith(f"skipped: {tmp_path / 'train' / 'dog' / 'extra'} links to ")


def test_class_folders_may_be_links(tmp_path):
    animals(tmp_path / "raw")
    for name in ("cat", "dog"):
        link(tmp_path / "train" / name, Path("..") / "raw" / name)
    listing = list_images([tmp_path / "train" / "cat", tmp_path / "train" / "dog"])
    assert found(tmp_path / "train", listing) == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"]
    assert listing.remarks == ()


def test_the_folder_itself_may_be_a_link(tmp_path):
    animals(tmp_path / "raw")
    link(tmp_path / "data", "raw")
    assert len(image_files(tmp_path / "data")) == 4
    assert len(list_images([tmp_path / "data" / "cat"]).paths) == 2


def test_links_outside_that_lead_back_are_passed_over(tmp_path):
    classes = animals(tmp_path / "train")
    make(tmp_path / "more", "5.jpg")
    link(tmp_path / "train" / "cat" / "extra", tmp_path / "more")
    link(tmp_path / "more" / "self", ".")
    link(tmp_path / "more" / "back", tmp_path / "train")
    link(tmp_path / "more" / "dogs", tmp_path / "train" / "dog")
    listing = list_images(classes)
    assert listing.counts.tolist() == [3, 2]
    assert len(listing.remarks) == 2  # by kind, with the first of each


def test_the_same_folder_twice_is_listed_once(tmp_path):
    (cat, dog) = animals(tmp_path)
    assert list_images([cat, dog, cat]).counts.tolist() == [2, 2, 0]


def test_links_to_files_are_files_and_broken_ones_stay_to_be_reported(tmp_path):
    make(tmp_path, "raw/0.jpg")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.jpg").symlink_to("../raw/0.jpg")
    (tmp_path / "cat" / "1.jpg").symlink_to("../raw/gone.jpg")
    (tmp_path / "cat" / "2.jpg").symlink_to("2.jpg")
    assert found(tmp_path, list_images([tmp_path / "cat"])) == ["cat/0.jpg", "cat/1.jpg", "cat/2.jpg"]


def test_a_broken_link_without_a_suffix_is_named(tmp_path, wording):
    make(tmp_path, "cat/0.jpg")
    link(tmp_path / "cat" / "more", tmp_path / "unmounted")
    (remark,) = list_images([tmp_path / "cat"]).remarks
    wording(remark)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    make(tmp_path, "cat/0.jpg")
    (tmp_path / "cat").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        image_files(tmp_path / "cat")


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch, wording):
    make(tmp_path, "cat/0.jpg")

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError) as error:
        image_files(tmp_path / "cat")
    wording(error.value)


# In a data set


def test_a_data_set_that_links_to_itself_has_each_image_once_and_the_link_is_named(tmp_path):
    """A link in a class to the folder of all classes gave it the images of every class."""
    root = tmp_path / "data"
    for phase in ("train", "val"):
        for i, name in enumerate(("cat", "dog")):
            (root / phase / name).mkdir(parents=True)
            for number in range(8):
                shade = Image.new("RGB", (8, 8), (16 * number, 255 * i, 0))
                shade.save(root / phase / name / f"{number}.png")
    link(root / "train" / "cat" / "all", "..")
    source = open_source(DataSettings(data=str(root)), seed=0)
    assert np.bincount(source.train.labels).tolist() == [8, 8]
    assert np.bincount(source.val.labels).tolist() == [8, 8]
    (remark,) = source.remarks
    assert str(root / "train" / "cat" / "all") in remark


def test_a_fingerprint_is_of_folders_names_labels_and_order(tmp_path):
    """Checkpoints hold it: it stays the same whatever the way to compute it."""
    names = ["cat/0.jpg", "cat/caf\u00e9.jpg", os.fsdecode(b"dog/\xff.jpg")]
    labels = np.array([0, 0, 1])
    split = Split(labels, Files.unread([f"/data/train/{name}" for name in names]))
    assert split.fingerprint == "3 (79261119)"
    assert (
        Split(labels, Files.unread([f"elsewhere/{name}" for name in names])).fingerprint == split.fingerprint
    )
    spans = np.zeros((3, 2), dtype=np.int64)
    members = ["a.jpg", "deep/b.jpg", "very/deep/c.jpg"]
    shards = Split(labels, Files.unread(["/data/0.tar", "/data/0.tar", "/data/1.tar"], spans, members))
    assert shards.fingerprint == "3 (cafa1025)"
