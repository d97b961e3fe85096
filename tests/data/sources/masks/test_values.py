"""Values of masks: which are classes, and advice that works where that cannot be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcnn.data.targets import IGNORE
from small_masks import (
    advised_values,
    class_pixels,
    disk_mask,
    disks,
    first_values,
    mask,
    opened,
    pair,
    picture,
    refusal,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def both(root: Path, *values: int, smooth: bool = False) -> None:
    for phase in ("train", "val"):
        disks(root, f"{phase}/images", f"{phase}/masks", *values, smooth=smooth)


# Values that tell the classes


def test_0_and_255_alone_are_two_classes_and_said(root, wording):
    both(root, 0, 255)
    source = opened(root)
    assert source.class_names == ("class 0 (value 0)", "class 1 (value 255)")
    assert set(class_pixels(source.train)) == set(class_pixels(source.val)) == {0, 1}
    for remark in source.remarks:
        wording(remark)


def test_one_bit_masks_are_0_and_255(root):
    both(root, 0, 255)
    for path in (root / "train" / "masks").iterdir():
        Image.open(path).convert("1").save(path)
    source = opened(root)
    assert len(source.class_names) == 2
    assert set(class_pixels(source.train)) == {0, 1}


def test_class_numbers_with_255_keep_it_as_ignored(root):
    both(root, 0, 1, 255)
    source = opened(root)
    assert source.class_names == ("class 0", "class 1")
    assert set(class_pixels(source.train)) == {0, 1, IGNORE}


@pytest.mark.parametrize("values", [(0, 128), (0, 10, 20, 30), (85, 170, 250), (7, 99)])
def test_few_values_with_gaps_are_classes_in_order_and_named_with_their_values(values, root, wording):
    both(root, *values)
    source = opened(root)
    assert source.class_names == tuple(f"class {i} (value {value})" for i, value in enumerate(values))
    assert set(class_pixels(source.train)) == set(range(len(values)))
    wording(source.remarks[0])
    assert opened(root, mask_values=values).class_names == source.class_names


def test_a_few_numbers_that_do_not_occur_are_classes_without_pixels_and_said(root, wording):
    both(root, 0, 1, 3)
    source = opened(root)
    assert source.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert "no pixels of class 2" in source.remarks[-1]
    wording(source.remarks[-1])


def test_a_value_that_the_training_masks_do_not_show_is_named(root, wording):
    both(root, 0, 128)
    mask(root / "val" / "masks" / "0.png", 0, 64, 128, size=(48, 48))
    message = refusal(root)
    assert message.startswith(f"{root}/val/masks/0.png: ")
    wording(message)
    assert advised_values(message) == [(0, 64, 128)]
    assert len(opened(root, mask_values=(0, 64, 128)).class_names) == 3


# Values that do not


def test_gaps_and_255_ask_whether_it_is_ignored_and_both_answers_work(root, wording):
    both(root, 0, 128, 255)
    message = refusal(root)
    wording(message)
    assert advised_values(message) == [(0, 128, 255), (0, 128)]
    as_class, ignored = (opened(root, mask_values=values) for values in advised_values(message))
    assert set(class_pixels(as_class.train)) == {0, 1, 2}
    assert set(class_pixels(ignored.train)) == {0, 1, IGNORE}


@pytest.mark.parametrize(("values", "ignored"), [((0, 255), 0), ((3, 255), 255), ((0, 7), 7)])
def test_one_class_beside_the_ignored_value_is_refused_and_the_advice_works(values, ignored, root, wording):
    both(root, *values)
    message = refusal(root, ignore_index=ignored)
    assert message.startswith(f"--data {root}: ")
    wording(message)
    assert advised_values(message) == [values]
    source = opened(root, ignore_index=ignored, mask_values=values)
    assert set(class_pixels(source.train)) == {0, 1}


def test_masks_of_one_value_are_refused_and_another_value_helps(root, wording):
    both(root, 0)
    wording(refusal(root))
    mask(root / "train" / "masks" / "0.png", 0, 1, size=(48, 48))
    assert len(opened(root).class_names) == 2


@pytest.mark.parametrize("values", [(0, 255), (0, 128), (10, 100, 240)])
def test_smoothed_borders_are_an_error_and_the_advice_works(values, root, wording):
    both(root, *values, smooth=True)
    message = refusal(root)
    wording(message)
    assert advised_values(message)[0] == values
    source = opened(root, mask_values=values)
    assert source.class_names == tuple(f"class {i} (value {value})" for i, value in enumerate(values))
    assert set(class_pixels(source.train)) == set(range(len(values)))
    wording(source.remarks[0])
    sharp = disk_mask(0, values)
    read = source.train.annotations.read(0)  # type: ignore[union-attr]
    assert (np.array(values)[read] == sharp).mean() > 0.97


def test_few_blends_can_be_classes_if_listed(root):
    both(root, 0, 200)
    pixels = disk_mask(0, (0, 200))
    pixels[0, 5] = 90
    Image.fromarray(pixels).save(root / "train" / "masks" / "0.png")
    nearest, listed = advised_values(refusal(root))
    assert (nearest, listed) == ((0, 200), (0, 90, 200))
    assert set(class_pixels(opened(root, mask_values=nearest).train)) == {0, 1}
    assert set(class_pixels(opened(root, mask_values=listed).train)) == {0, 1, 2}


def test_jpeg_masks_are_an_error_and_the_advice_works(root, wording):
    both(root, 0, 255)
    for phase in ("train", "val"):
        for path in list((root / phase / "masks").iterdir()):
            with Image.open(path) as image:
                image.save(path.with_suffix(".jpg"), quality=75)
            path.unlink()
    message = refusal(root)
    wording(message)
    assert advised_values(message)[0] == (0, 255)
    source = opened(root, mask_values=(0, 255))
    assert set(class_pixels(source.train)) == {0, 1}
    assert (source.train.annotations.read(0) * 255 == disk_mask(0, (0, 255))).mean() > 0.97  # type: ignore


def test_a_listed_third_value_is_never_taken_as_the_nearest(root):
    both(root, 0, 1, 255)
    message = refusal(root, mask_values=(0, 255))
    assert "value 1, " in message
    assert set(class_pixels(opened(root, mask_values=(0, 1, 255)).train)) == {0, 1, 2}


def test_more_than_32_values_of_which_few_are_common_are_an_error_and_a_list_helps(root, wording):
    for phase in ("train", "val"):
        for i in range(4):
            picture(root / phase / "images" / f"{i}.jpg", (256, 256))
            pixels = disk_mask(0, (0,)).repeat(6, 0).repeat(6, 1)[:256, :256]
            for value in range(1, 40):
                y, x = divmod(value * 7, 60)
                pixels[4 * y : 4 * y + 3, 4 * x : 4 * x + 3] = value
            (root / phase / "masks").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / phase / "masks" / f"{i}.png")
    message = refusal(root)
    assert "40 values, but few are common" in message
    assert "from 0 to 39 in classes.txt" in message
    wording(message)
    (root / "classes.txt").write_text("\n".join(f"c{i}" for i in range(40)))
    source = opened(root)
    assert len(source.class_names) == 40
    wording(source.remarks[-1])


def test_many_common_classes_are_read(root):
    for phase in ("train", "val"):
        picture(root / phase / "images" / "a.jpg", (64, 64))
        pixels = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1)
        (root / phase / "masks").mkdir()
        Image.fromarray(pixels).save(root / phase / "masks" / "a.png")
    assert len(opened(root).class_names) == 64


def test_gray_photos_in_the_place_of_masks_are_refused(root, wording):
    rng = np.random.default_rng(0)
    for phase in ("train", "val"):
        picture(root / phase / "images" / "a.jpg", (64, 64))
        (root / phase / "masks").mkdir()
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(root / phase / "masks" / "a.png")
    wording(refusal(root))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_masks_of_0_and_1_beside_others_of_0_and_255_are_refused_and_the_advices_work(mode, root, wording):
    both(root, 0, 1)
    for phase in ("train", "val"):
        Image.fromarray(disk_mask(0, (0, 255))).convert(mode).save(root / phase / "masks" / "2.png")
    message = refusal(root)
    wording(message)
    assert advised_values(message) == [(0, 1)]
    assert set(class_pixels(opened(root, mask_values=(0, 1)).train, 2)) == {0, IGNORE}
    both(root, 0, 1)
    assert set(class_pixels(opened(root).train, 2)) == {0, 1}


# Names and listed values


@pytest.mark.parametrize("values", [(0, 255), (0, 128), (0, 100, 255), (10, 20, 30)])
def test_as_many_names_as_values_settle_their_meaning(values, root, wording):
    both(root, *values)
    names = ("background", "cat", "dog")[: len(values)]
    (root / "classes.txt").write_text("\n".join(names))
    source = opened(root)
    assert source.class_names == names
    assert set(class_pixels(source.train)) == set(range(len(values)))
    wording(source.remarks[0])


def test_names_without_255_leave_it_ignored(root):
    both(root, 0, 100, 255)
    (root / "classes.txt").write_text("background\ncat\n")
    assert set(class_pixels(opened(root).train)) == {0, 1, IGNORE}


def test_a_number_beyond_the_names_is_not_another_class(root):
    both(root, 0, 1, 7)
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert "class 7, but there are 3 (0 to 2)" in refusal(root)
    assert set(class_pixels(opened(root, mask_values=(0, 1, 7)).train)) == {0, 1, 2}


def test_a_single_name_is_refused_and_the_background_helps(root, wording):
    both(root, 0, 255)
    (root / "classes.txt").write_text("polyp\n")
    wording(refusal(root))
    (root / "classes.txt").write_text("background\npolyp\n")
    assert opened(root).class_names == ("background", "polyp")


def test_smoothed_borders_with_names_are_told_too(root):
    both(root, 0, 255, smooth=True)
    (root / "classes.txt").write_text("background\ncat\n")
    message = refusal(root)
    assert advised_values(message)[0] == (0, 255)
    assert opened(root, mask_values=(0, 255)).class_names == ("background", "cat")


def test_listed_values_are_classes_in_the_listed_order(root):
    both(root, 0, 128)
    source = opened(root, mask_values=(128, 0))
    assert source.class_names == ("class 0 (value 128)", "class 1 (value 0)")
    assert first_values(source.train, 0, 1) == [1]


def test_a_value_that_is_not_listed_is_named_and_the_advice_works(root, wording):
    both(root, 0, 1, 2)
    message = refusal(root, mask_values=(0, 1))
    wording(message)
    assert advised_values(message)[0] == (0, 1, 2)
    assert len(opened(root, mask_values=(0, 1, 2)).class_names) == 3
    assert set(class_pixels(opened(root, mask_values=(0, 1), ignore_index=2).train)) == {0, 1, IGNORE}


def test_a_name_for_each_listed_value(root, wording):
    both(root, 0, 128)
    (root / "classes.txt").write_text("a\nb\nc\n")
    message = refusal(root, mask_values=(0, 128))
    wording(message)
    (root / "classes.txt").write_text("a\nb\n")
    assert opened(root, mask_values=(0, 128)).class_names == ("a", "b")


def test_named_sets_have_their_own_values(wording):
    wording(refusal("demo", mask_values=(0, 1)))
    wording(refusal("voc2012", mask_colors=("000000", "ff0000")))


def test_shares_of_many_classes_are_cut_short(root, wording):
    for phase in ("train", "val"):
        pair(root, f"{phase}/images", f"{phase}/masks", "a", *range(12))
        pair(root, f"{phase}/images", f"{phase}/masks", "b", *range(12, 20))
    wording(opened(root).remarks[-1])
