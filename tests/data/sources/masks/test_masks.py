"""Images with masks: the layouts that are read, what their values mean, and how a bad mask is told."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.synthetic import SyntheticLoader
from fastcnn.data.mask_files import MaskFiles
from fastcnn.data.sources.demo import CLASS_NAMES
from fastcnn.data.sources.masks import source as masks
from fastcnn.data.sources.masks.source import MASKS_NAMED, mask_source
from fastcnn.data.targets import IGNORE, Masks
from fastcnn.data.transforms.transform import Transform
from small_masks import first_values, mask, opened, pair, picture, refusal
from small_sources import names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training images and one to validate on, of three classes."""
    root = tmp_path / "data"
    pair(root, "train/images", "train/masks", "a", 0, 1, 2, 255)
    pair(root, "train/images", "train/masks", "b", 1)
    pair(root, "val/images", "val/masks", "c", 2, 0)
    return root


# Layouts


@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
@pytest.mark.parametrize("folders", ["{}/images {}/masks", "images/{} masks/{}"])
def test_images_and_masks_of_the_same_names_are_pairs(folders, val, tmp_path):
    root = tmp_path / "streets"
    for phase, name, value in (("train", "b", 1), ("train", "deep/a", 2), (val, "c", 1)):
        images, masks = folders.format(phase, phase).split()
        pair(root, images, masks, name, value, 0)
    source = opened(root)
    assert (source.name, source.channels, source.native_size) == ("streets", 3, None)
    assert source.remarks[0] == "training pixels: class 0 91.7%, class 1 4.2%, class 2 4.2%"
    assert len(source.remarks) == 1 + (val == "test")
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert names(source.train) == ["b", "a"]
    assert names(source.val) == ["c"]
    assert source.train.labels.tolist() == [0, 0]
    assert source.train.sizes.tolist() == [[3, 4], [3, 4]]
    assert [first_values(source.train, i, 2) for i in (0, 1)] == [[1, 0], [2, 0]]


def test_masks_of_test_images_beside_those_of_validation_are_held_out(tmp_path):
    for phase, name, value in (("Training", "a", 1), ("valid", "b", 1), ("TEST", "c", 1)):
        pair(tmp_path, f"{phase}/Images", f"{phase}/masks", name, value, 0)
    source = opened(tmp_path)
    assert source.test is not None
    assert [names(split) for split in (source.train, source.val, source.test)] == [["a"], ["b"], ["c"]]
    assert first_values(source.test, 0, 2) == [1, 0]


def test_a_share_of_images_with_masks_is_held_out(tmp_path):
    for i in range(10):
        pair(tmp_path, "images", "masks", str(i), i)
    source = mask_source(DataSettings(data=str(tmp_path), val_split=0.2, test_split=0.3), seed=0)
    assert source.test is not None
    assert (len(source.train), len(source.val), len(source.test)) == (5, 2, 3)
    assert [str(first_values(source.test, i, 1)[0]) for i in range(3)] == names(source.test)


def test_images_and_masks_without_train_and_val_are_shared_by_the_seed(tmp_path):
    for i in range(10):
        pair(tmp_path, "images", "masks", str(i), i)
    source = opened(tmp_path, val_split=0.3)
    assert (len(source.train), len(source.val)) == (7, 3)
    assert sorted(names(source.train) + names(source.val)) == [str(i) for i in range(10)]
    for split in (source.train, source.val):
        assert [str(first_values(split, i, 1)[0]) for i in range(len(split))] == names(split)
    other = mask_source(DataSettings(data=str(tmp_path), val_split=0.3), seed=1)
    assert names(opened(tmp_path, val_split=0.3).val) == names(source.val) != names(other.val)


def test_small_square_images_of_one_size_keep_it(tmp_path):
    for phase in ("train", "val"):
        picture(tmp_path / phase / "images" / "a.jpg", (32, 32))
        mask(tmp_path / phase / "masks" / "a.png", 0, 1, size=(32, 32))
    assert opened(tmp_path).native_size == 32


def test_test_images_without_masks_are_not_validated_on(root, wording):
    (root / "val").rename(root / "test")
    (root / "test" / "masks").rename(root / "elsewhere")
    wording(refusal(root))
    assert len(opened(root, val_split=0.5).val) == 1


def test_a_folder_with_val_takes_no_share(root, wording):
    message = refusal(root, val_split=0.1)
    assert message.startswith("--val-split")
    wording(message)


def test_a_folder_without_masks_is_told_the_layouts(tmp_path, wording):
    picture(tmp_path / "train" / "cat" / "a.jpg")
    message = refusal(tmp_path)
    assert message.startswith("--data")
    assert "--val-split" in message
    wording(message)


def test_folders_that_are_not_there_or_empty_are_named(tmp_path, wording):
    wording(refusal(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    wording(refusal(tmp_path / "file"))
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    wording(refusal(tmp_path, val_split=0.1))
    pair(tmp_path, "images", "masks", "a", 0, 1)
    wording(refusal(tmp_path, val_split=0.1))


# Classes


def test_classes_are_named_by_their_list(root):
    (root / "classes.txt").write_text("road\n side walk \n\ncar\n")
    assert opened(root).class_names == ("road", "side walk", "car")


def test_an_empty_list_of_classes_is_refused(root, wording):
    (root / "classes.txt").write_text("\n")
    message = refusal(root)
    assert message.startswith(f"{root / 'classes.txt'}: ")
    wording(message)


@pytest.mark.parametrize(("ignored", "first"), [(255, [0, 1, 2, IGNORE]), (0, [IGNORE, 1, 2, 3])])
def test_the_ignored_value_is_told(ignored, first, root):
    mask(root / "train" / "masks" / "a.png", 0, 1, 2, 255 if ignored == 255 else 3)
    source = opened(root, ignore_index=ignored)
    assert first_values(source.train, 0) == first
    assert len(source.class_names) == (3 if ignored == 255 else 4)


def test_masks_may_be_palettes_of_any_colours(root):
    path = root / "train" / "masks" / "a.png"
    image = Image.new("P", (4, 3), 255)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    for value in (0, 1, 2):
        image.putpixel((value, 0), value)
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == "P"
    assert first_values(opened(root).train, 0) == [0, 1, 2, IGNORE]


# Bad masks

BAD = {
    "a mask that is missing": (lambda path: path.unlink(), "image"),
    "a mask of colours": (lambda path: Image.new("RGB", (4, 3), "red").save(path), "mask"),
    "a mask that is no image": (lambda path: path.write_bytes(b"nothing"), "mask"),
    "a mask of another size": (
        lambda path: mask(path, 0, size=(3, 4)),
        "mask",
    ),
}


@pytest.mark.parametrize("phase", ["train", "val"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_mask_is_named_and_its_image_can_be_left_out(kind, phase, root, wording):
    pair(root, f"{phase}/images", f"{phase}/masks", "bad", 0, 1, 2)
    paths = {"image": root / phase / "images" / "bad.jpg", "mask": root / phase / "masks" / "bad.png"}
    spoil, blamed = BAD[kind]
    spoil(paths["mask"])
    message = refusal(root)
    assert message.startswith(f"{paths[blamed]}: ")
    assert "--bad-labels" in message
    wording(re.sub("cannot identify.*?: ", "...: ", message))  # Pillow's words
    source = opened(root, skip=True)
    assert (names(source.train), names(source.val)) == (["a", "b"], ["c"])
    assert first_values(source.train, 1, 1) == [1]
    assert source.remarks[0].startswith("--bad-labels")
    wording(source.remarks[0])
    assert message.startswith(source.remarks[1].removeprefix("skipped: "))
    assert len(source.remarks) == 3


@pytest.mark.parametrize("listed", [True, False])
def test_a_class_out_of_range_is_bad(listed, root, wording):
    if listed:
        (root / "classes.txt").write_text("road\ncar\ntree\n")
    pair(root, "val/images", "val/masks", "d", 0, 7, 255)
    message = refusal(root)
    assert message.startswith(f"{root}/val/masks/d.png: ")
    wording(message)
    assert names(opened(root, skip=True).val) == ["c"]


def test_all_bad_masks_are_named_together_and_counted(root, wording):
    (root / "classes.txt").write_text("road\ncar\ntree\n")
    for i in range(60):
        pair(root, "train/images", "train/masks", f"m{i:02}", 9)
    (root / "val" / "masks" / "c.png").unlink()
    message = refusal(root)
    assert re.findall(r"(\w+).png: ", message) == [f"m{i:02}" for i in range(50)]
    assert "(61 in all)" in message
    pair(root, "val/images", "val/masks", "d", 1)
    source = opened(root, skip=True)
    assert source.remarks[0].startswith("--bad-labels")
    wording(source.remarks[0])
    assert len(source.remarks) == 52
    assert (names(source.train), names(source.val)) == (["a", "b"], ["d"])


def test_an_image_that_cannot_be_read_itself_is_not_a_masks_business(root):
    (root / "train" / "images" / "a.jpg").write_bytes(b"")
    source = opened(root)
    assert source.train.problems == {0: "empty"}
    assert len(source.train) == 2


def test_a_mask_without_an_image_is_left_out_with_a_remark(root, wording):
    mask(root / "train" / "masks" / "x.png", 99)
    mask(root / "train" / "masks" / "deep" / "y.png", 99)
    wording(opened(root).remarks[0])


def test_when_all_are_bad_nothing_is_left_to_train_on(root, wording):
    for path in (root / "train" / "masks").iterdir():
        path.unlink()
    message = refusal(root, skip=True)
    assert "--bad-labels" in message
    wording(message)


# The cache


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the masks that are examined."""
    seen = []

    def examine(stored: MaskFiles, index: int) -> tuple[int | str, ...]:
        seen.append(Path(stored.paths[index]).name)
        return examine_mask(stored, index)

    examine_mask = masks.examine_mask
    monkeypatch.setattr(masks, "examine_mask", examine)
    return seen


def test_masks_are_examined_once_and_again_when_they_change(root, examined):
    first = opened(root)
    assert sorted(examined) == ["a.png", "b.png", "c.png"]
    examined.clear()
    assert opened(root).class_names == first.class_names
    assert examined == []
    mask(root / "train" / "masks" / "b.png", 5, 5, 6)
    assert len(opened(root).class_names) == 7
    assert examined == ["b.png"]


def test_a_bad_mask_stays_bad_without_being_examined_again(root, examined):
    mask(root / "train" / "masks" / "b.png", 1, size=(9, 9))
    message = refusal(root)
    examined.clear()
    assert refusal(root) == message
    assert examined == []


def test_a_long_examination_is_announced(root, monkeypatch, capsys, wording):
    monkeypatch.setattr(masks, "SLOW_MASKS", 1)
    opened(root)
    wording(capsys.readouterr().err.splitlines()[0])


# Named sets


@pytest.mark.parametrize("name", MASKS_NAMED)
def test_named_sets_take_no_share(name, wording):
    message = refusal(name, val_split=0.1)
    assert message.startswith("--val-split")
    wording(message)


def test_the_demo_set_has_a_background_and_ten_shapes(demo, monkeypatch):
    monkeypatch.setattr(masks, "ensure_demo", lambda: demo)
    source = opened("demo")
    assert source.class_names == ("background", *CLASS_NAMES)
    assert (source.name, source.native_size, len(source.train), len(source.val)) == ("demo", 64, 160, 50)
    assert isinstance(source.val.annotations, Masks)
    for i in (0, 49):
        (number,) = set(np.unique(source.val.annotations.read(i))) - {0}
        assert source.class_names[number].replace(" ", "_") in source.val.name(i)


def test_oxford_pets_are_read_from_the_files_of_torchvision(tmp_path, wording):
    root = tmp_path / "oxford-iiit-pet"
    for part, pets in (("trainval", ("Abyssinian_1", "pug_2")), ("test", ("Bombay_3",))):
        for pet in pets:
            picture(root / "images" / f"{pet}.jpg")
            mask(root / "annotations" / "trimaps" / f"{pet}.png", 1, 2, 3)
        (root / "annotations" / f"{part}.txt").write_text("".join(f"{pet} 1 1 1\n" for pet in pets))
    source = mask_source(DataSettings(data="oxford-iiit-pet", data_root=str(tmp_path)), seed=0)
    assert source.class_names == ("background", "pet")
    assert (names(source.train), names(source.val)) == (["Abyssinian_1", "pug_2"], ["Bombay_3"])
    assert first_values(source.train, 1) == [1, 0, IGNORE, IGNORE]
    mask(root / "annotations" / "trimaps" / "pug_2.png", 1, 4)
    with pytest.raises(ValueError) as caught:
        mask_source(DataSettings(data="oxford-iiit-pet", data_root=str(tmp_path)), seed=0)
    wording(caught.value)


@pytest.mark.parametrize(("year", "sets"), [("2007", ("trainval", "test")), ("2012", ("train", "val"))])
def test_voc_is_read_from_the_files_of_torchvision(year, sets, tmp_path):
    root = tmp_path / "VOCdevkit" / f"VOC{year}"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for phase, name in zip(sets, ("one", "two")):
        pair(root, "JPEGImages", "SegmentationClass", name, 0, 20, 255)
        (root / "ImageSets" / "Segmentation" / f"{phase}.txt").write_text(f"{name}\n")
    source = mask_source(DataSettings(data=f"voc{year}", data_root=str(tmp_path)), seed=0)
    assert (source.name, len(source.class_names)) == (f"voc{year}", 21)
    assert (source.class_names[0], source.class_names[20]) == ("background", "tvmonitor")
    assert (names(source.train), names(source.val)) == (["one"], ["two"])
    assert first_values(source.val, 0) == [0, 20, IGNORE, IGNORE]


@pytest.mark.parametrize("name", ["oxford-iiit-pet", "voc2007", "voc2012"])
def test_a_named_set_that_can_be_neither_found_nor_downloaded_names_its_folder(
    name, tmp_path, monkeypatch, wording
):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(ValueError, match=f"^--data {name}: ") as caught:
        mask_source(DataSettings(data=name, data_root=str(tmp_path)), seed=0)
    wording(re.sub(r"\(.*\)", "(...)", str(caught.value)))  # torchvision's words


def test_synthetic_masks_are_of_21_classes_and_make_batches():
    source = opened("synthetic")
    assert (len(source.train), len(source.val), len(source.class_names)) == (12_800, 1_280, 21)
    assert source.native_size is None
    sampler = ShardedSampler(count=len(source.train), batch_size=4, rank=0, world_size=1, train=True)
    batch = next(iter(SyntheticLoader(source.train, Transform(size=96), sampler, torch.device("cpu"))))
    assert batch.images.shape == (4, 3, 96, 96)
    assert batch.targets.shape == (4, 96, 96)
    assert batch.targets.dtype == torch.uint8
    assert len(batch.targets.unique()) > 10
    assert batch.targets.max() <= 20
    assert (batch.targets[:, :12, :12] == batch.targets[:, :1, :1]).all()  # a block of 8 in 64
    assert (batch.targets[:, -12:, -12:] == batch.targets[:, -1:, -1:]).all()


def test_synthetic_images_have_the_masks_of_a_folder_too_and_no_bad_ones(root):
    (root / "classes.txt").write_text("road\ncar\ntree\n")
    (root / "train" / "images" / "a.jpg").write_bytes(b"")
    (root / "train" / "masks" / "a.png").unlink()
    train = opened(root).train
    sampler = ShardedSampler(count=len(train), batch_size=2, rank=0, world_size=1, train=True)
    batch = next(iter(SyntheticLoader(train, Transform(size=8), sampler, torch.device("cpu"))))
    assert (batch.targets == 1).all()
