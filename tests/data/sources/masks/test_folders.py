"""Layouts of images with masks: usual names in any case, pairs by their ends, phases, VOC's lists."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastcnn.data.sources.masks.folders import FORMS, IMAGE_FOLDERS, MASK_FOLDERS
from fastcnn.data.targets import Masks
from small_masks import first_values, mask, opened, pair, picture, refusal
from small_sources import names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


LAYOUTS = {
    "of this project": ("train/images", "train/masks", "val/images", "val/masks"),
    "phases within": ("images/train", "masks/train", "images/val", "masks/val"),
    "capitals": ("Train/Images", "Train/Masks", "Val/Images", "Val/Masks"),
    "all capitals": ("TRAIN/IMAGES", "TRAIN/MASKS", "VALID/IMAGES", "VALID/MASKS"),
    "long names": ("training/image", "training/label", "validation/image", "validation/label"),
    "ADE20K": ("images/training", "annotations/training", "images/validation", "annotations/validation"),
    "masks beside": ("train", "train_masks", "val", "val_masks"),
    "CamVid of SegNet": ("train", "trainannot", "val", "valannot"),
    "CamVid of Kaggle": ("train", "train_labels", "val", "val_labels"),
    "images and masks beside": ("train_images", "train_masks", "val_images", "val_masks"),
    "masks before": ("images_train", "masks_train", "images_val", "masks_val"),
    "ground truth": ("train/img", "train/gt", "test/img", "test/gt"),
    "ground truth in words": (
        "Train/JPEGImages",
        "Train/ground_truth",
        "Test/JPEGImages",
        "Test/ground_truth",
    ),
    "years": ("images/train2017", "masks/train2017", "images/val2017", "masks/val2017"),
    "wrapped once": ("set/train/images", "set/train/masks", "set/val/images", "set/val/masks"),
    "wrapped twice": ("a/a/train/images", "a/a/train/masks", "a/a/val/images", "a/a/val/masks"),
    "phases repeated": ("train/train/images", "train/train/masks", "val/val/images", "val/val/masks"),
    "Cityscapes": ("leftImg8bit/train", "gtFine/train", "leftImg8bit/val", "gtFine/val"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_are_found(layout, root):
    images, masks, val_images, val_masks = LAYOUTS[layout]
    pair(root, images, masks, "a", 0, 1)
    pair(root, images, masks, "deep/b", 1, 0)
    pair(root, val_images, val_masks, "c", 1)
    source = opened(root)
    assert (names(source.train), names(source.val)) == (["a", "b"], ["c"])
    assert [first_values(source.train, i, 2) for i in (0, 1)] == [[0, 1], [1, 0]]
    assert first_values(source.val, 0, 1) == [1]


@pytest.mark.parametrize("images", IMAGE_FOLDERS)
@pytest.mark.parametrize("masks", MASK_FOLDERS)
def test_usual_names_of_the_two_folders_are_found(images, masks, root):
    for i in range(3):
        pair(root, images.title(), masks.upper(), str(i), 0, 1)
    source = opened(root, val_split=0.4)
    assert sorted(names(source.train) + names(source.val)) == ["0", "1", "2"]


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("together", [True, False])
def test_masks_are_paired_by_the_usual_ends_of_their_names(form, together, root):
    for i in range(3):
        for phase in ("train", "val"):
            folder = root / phase
            picture(folder / ("" if together else "images") / f"im{i}{form[0]}.jpg")
            mask(folder / ("" if together else "masks") / f"im{i}{form[1]}.png", i, 3)
    source = opened(root)
    assert names(source.train) == names(source.val) == [f"im{i}{form[0]}" for i in range(3)]
    assert [first_values(source.train, i, 1) for i in range(3)] == [[0], [1], [2]]


def test_pairs_of_one_folder_without_phases_are_shared(root):
    for i in range(4):
        picture(root / f"{i}.jpg")
        mask(root / f"{i}_mask.gif", 0, 1)
    source = opened(root, val_split=0.25)
    assert (len(source.train), len(source.val)) == (3, 1)


def test_an_image_without_its_mask_in_one_folder_is_named(root):
    for phase in ("train", "val"):
        for i in range(3):
            picture(root / phase / f"{i}.jpg")
            mask(root / phase / f"{i}_mask.png", 0, 1)
    (root / "train" / "1_mask.png").unlink()
    message = refusal(root)
    assert message.startswith(f"{root}/train/1.jpg: no mask {root}/train/1_mask.png")
    assert names(opened(root, skip=True).train) == ["0", "2"]


def test_color_and_instance_masks_beside_cityscapes_labels_are_not_taken(root):
    for phase in ("train", "val"):
        picture(root / "leftImg8bit" / phase / "aachen" / "x_leftImg8bit.png")
        for end, value in (("color", 9), ("instanceIds", 9), ("labelIds", 7), ("labelTrainIds", 1)):
            mask(root / "gtFine" / phase / "aachen" / f"x_gtFine_{end}.png", 0, value)
    assert first_values(opened(root).train, 0, 2) == [0, 1]


def test_lossless_masks_win_over_jpegs_of_the_same_name(root):
    for phase in ("train", "val"):
        pair(root, f"{phase}/images", f"{phase}/masks", "a", 0, 1)
        Image.new("RGB", (4, 3), "red").save(root / phase / "masks" / "a.jpg")
    assert first_values(opened(root).train, 0, 2) == [0, 1]


def test_what_a_system_left_is_passed_over(root):
    for phase in ("train", "val"):
        pair(root, f"{phase}/images", f"{phase}/masks", "a", 0, 1)
        picture(root / "__MACOSX" / phase / "images" / "._a.jpg")
        (root / phase / "masks" / ".DS_Store").write_bytes(b"")
        (root / phase / "masks" / "._a.png").write_bytes(b"x")
    assert names(opened(root).train) == ["a"]


def test_labels_of_yolo_are_not_masks(root):
    pair(root, "images", "masks", "a", 0, 1)
    pair(root, "images", "masks", "b", 0, 1)
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    assert len(opened(root, val_split=0.5).train) == 1


# Phases


def test_a_test_folder_beside_val_is_held_out(root):
    for phase, name in (("Train", "a"), ("Valid", "b"), ("Test", "c")):
        pair(root, f"{phase}/images", f"{phase}/masks", name, 0, 1)
    source = opened(root)
    assert source.test is not None
    assert [names(split) for split in (source.train, source.val, source.test)] == [["a"], ["b"], ["c"]]
    assert isinstance(source.test.annotations, Masks)


def test_test_images_are_held_out_beside_a_share(root):
    for name in "abcd":
        pair(root, "train/images", "train/masks", name, 0, 1)
    pair(root, "test/images", "test/masks", "e", 0, 1)
    source = opened(root, val_split=0.25)
    assert source.test is not None
    assert (len(source.train), len(source.val), names(source.test)) == (3, 1, ["e"])


# PASCAL VOC's layout


def voc(root: Path, lists: dict[str, str], masks: str = "SegmentationClass") -> None:
    for name in "abc":
        pair(root, "JPEGImages", masks, name, 0, 1, 255)
    for name, lines in lists.items():
        path = root / "ImageSets" / "Segmentation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lines.encode())


@pytest.mark.parametrize("masks", ["SegmentationClass", "SegmentationClassPNG"])
def test_vocs_folder_is_found_by_its_layout_alone(masks, root):
    voc(root, {"train.txt": "\ufeffa\r\nb\r\n", "val.txt": "c\n", "trainval.txt": "a\nb\nc\n"}, masks)
    picture(root / "JPEGImages" / "without.jpg")
    pair(root, "JPEGImages", "SegmentationObject", "a", 0, 1, 2)
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text("<annotation/>")
    source = opened(root)
    assert (names(source.train), names(source.val), source.test) == (["a", "b"], ["c"], None)


def test_vocs_list_of_all_images_or_none_takes_a_share(root, wording):
    voc(root, {"default.txt": "a\nb\nc\n"})
    assert len(opened(root, val_split=0.4).train) == 2
    wording(refusal(root))
    shutil.rmtree(root / "ImageSets")
    assert len(opened(root, val_split=0.4).train) == 2


def test_vocs_trainval_and_test_lists_are_used_if_the_test_has_masks(root):
    voc(root, {"trainval.txt": "a\nb\n", "test.txt": "c\n"})
    assert names(opened(root).val) == ["c"]
    (root / "SegmentationClass" / "c.png").unlink()
    assert opened(root, val_split=0.5).test is None


def test_a_name_in_vocs_list_without_an_image_is_named_and_the_advice_works(root, wording):
    voc(root, {"train.txt": "a\n\nx\n", "val.txt": "c\n"})
    message = refusal(root)
    assert message.startswith(f"{root}/ImageSets/Segmentation/train.txt, line 3: ")
    wording(message)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    assert names(opened(root).train) == ["a"]


# Orientation


def rotated(path: Path, orientation: int, size: tuple[int, int] = (4, 3)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_of_upright_images_fit_rotated_ones(orientation, root):
    for phase in ("train", "val"):
        rotated(root / phase / "images" / "a.jpg", orientation)
        mask(root / phase / "masks" / "a.png", 0, 1, size=(3, 4))
    source = opened(root)
    assert source.train.sizes.tolist() == [[4, 3]]
    assert len(source.remarks) == 1


def test_masks_of_stored_images_are_named_and_the_advice_works(root, wording):
    for phase in ("train", "val"):
        rotated(root / phase / "images" / "a.jpg", 6)
        mask(root / phase / "masks" / "a.png", 0, 1, size=(4, 3))
    message = refusal(root)
    assert message.startswith(f"{root}/train/masks/a.png: ")
    assert "--exif ignore" in message
    wording(message)
    source = opened(root, exif="ignore")
    assert source.train.sizes.tolist() == [[3, 4]]


def test_masks_of_upright_images_that_stay_as_stored_are_named_and_the_advice_works(root, wording):
    for phase in ("train", "val"):
        rotated(root / phase / "images" / "a.jpg", 6)
        mask(root / phase / "masks" / "a.png", 0, 1, size=(3, 4))
    message = refusal(root, exif="ignore")
    assert "omit --exif ignore" in message
    wording(message)
    assert opened(root).train.sizes.tolist() == [[4, 3]]


@pytest.mark.parametrize(("orientation", "size"), [(3, (4, 3)), (2, (4, 3)), (6, (4, 4))])
def test_a_rotation_that_no_size_shows_is_a_warning(orientation, size, root, wording):
    for phase in ("train", "val"):
        rotated(root / phase / "images" / "a.jpg", orientation, size)
        mask(root / phase / "masks" / "a.png", 0, 1, size=size)
    (warning,) = [remark for remark in opened(root).remarks if remark.startswith("warning: ")]
    wording(warning)
    assert not any(remark.startswith("warning") for remark in opened(root, exif="ignore").remarks)
    rotated(root / "train" / "images" / "b.jpg", 6, (4, 3))
    mask(root / "train" / "masks" / "b.png", 0, 1, size=(3, 4))
    assert not any(remark.startswith("warning") for remark in opened(root).remarks)


def test_a_mask_with_an_orientation_of_its_own_is_turned_as_its_image(root):
    for phase in ("train", "val"):
        rotated(root / phase / "images" / "a.jpg", 6)
        path = root / phase / "masks" / "a.png"
        mask(path, 1, 0)
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(path) as image:
            image.save(path, exif=exif)
    source = opened(root)
    assert isinstance(source.train.annotations, Masks)
    assert source.train.annotations.read(0).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert first_values(opened(root, exif="ignore").train, 0, 2) == [1, 0]


@pytest.mark.parametrize("twins", [("train2007", "train2012"), ("val", "validation"), ("val2007", "val2012")])
@pytest.mark.parametrize("layout", ["{}/images {}/masks", "images/{} masks/{}", "{} {}_masks"])
def test_two_folders_of_one_phase_are_refused(layout, twins, root, wording):
    phases = twins if twins[0].startswith("train") else ("train", *twins)
    for i, phase in enumerate(phases):
        images, masks = layout.format(phase, phase).split()
        pair(root, images, masks, str(i), 0, 1)
    message = refusal(root)
    wording(message)
    assert all(name in message for name in twins)


def test_images_of_one_year_are_not_paired_with_masks_of_another(root, wording):
    pair(root, "images/train2012", "masks/train2012", "1", 0, 1)
    pair(root, "images/train2007", "masks/other", "1", 0, 1)
    wording(refusal(root))
