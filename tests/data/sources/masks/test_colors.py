"""Masks of colors: by a palette in a file or a flag, and advice where there is none."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcnn.data.targets import IGNORE
from small_masks import class_pixels, first_values, opened, picture, refusal
from small_sources import names

BLACK, RED, WHITE = (0, 0, 0), (200, 10, 30), (255, 255, 255)
PALETTE = ("000000", "c80a1e")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


def colored(path: Path, *colors: tuple[int, ...], mode: str = "RGB") -> None:
    """A mask of 8 x 8 that begins with these colors and goes on with the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array([*colors, *[colors[-1]] * (64 - len(colors))], dtype=np.uint8)
    Image.fromarray(pixels.reshape(8, 8, -1)).convert(mode).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images with masks of black and red."""
    root = tmp_path / "data"
    for phase in ("train", "val"):
        for i in range(3):
            picture(root / phase / "images" / f"{i}.jpg", (8, 8))
            colored(root / phase / "masks" / f"{i}.png", BLACK, RED)
    return root


def test_colors_without_a_palette_are_listed_and_both_advices_work(root, wording):
    message = refusal(root)
    assert message.startswith(f"--data {root}: ")
    wording(message)
    flag = re.search(r"--mask-colors ((?:[0-9a-f]{6} )+)", message)
    assert flag
    told = opened(root, mask_colors=tuple(flag[1].split()))
    assert told.class_names == ("class 0 (c80a1e)", "class 1 (000000)")
    assert class_pixels(told.train) == {0: 63, 1: 1}
    assert f"`NAME R G B` in {root / 'classes.txt'}" in message
    (root / "classes.txt").write_text("road 0 0 0\ncar 200 10 30\n")
    listed = opened(root)
    assert listed.class_names == ("road", "car")
    assert class_pixels(listed.train) == {0: 1, 1: 63}
    wording(listed.remarks[-1])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:0,0,0::\ncar:200,10,30::\n"),
        ("class_dict.csv", "name,r,g,b\nroad,0,0,0\ncar,200,10,30\n"),
        ("label_colors.txt", "0 0 0\troad\n200 10 30\tcar\n"),
        ("train/classes.txt", "road,#000000\ncar,#c80a1e\n"),
    ],
)
def test_palettes_of_labeling_tools_are_found(name, text, root):
    (root / name).write_text(text)
    if name.startswith("train/"):
        for phase in ("train", "val"):
            for kind in ("images", "masks"):
                for path in (root / phase / kind).iterdir():
                    path.rename(root / phase / (path.name if kind == "images" else f"{path.stem}_mask.png"))
                (root / phase / kind).rmdir()
    source = opened(root)
    assert source.class_names == ("road", "car")
    assert class_pixels(source.train) == {0: 1, 1: 63}


def test_a_flag_wins_over_a_file_and_takes_its_names(root, wording):
    (root / "classes.txt").write_text("car\nroad\n")
    source = opened(root, mask_colors=("#C80A1E", "000000"))
    assert source.class_names == ("car", "road")
    assert class_pixels(source.train) == {0: 63, 1: 1}
    message = refusal(root, mask_colors=("c80a1e", "000000", "ffffff"))
    wording(message)
    (root / "classes.txt").write_text("car\nroad\nsky\n")
    source = opened(root, mask_colors=("c80a1e", "000000", "ffffff"))
    assert "no pixels of sky" in source.remarks[-1]


def test_an_ignored_class_of_a_palette(root):
    source = opened(root, mask_colors=PALETTE, ignore_index=0)
    assert class_pixels(source.train) == {1: 63, IGNORE: 1}


def test_a_color_outside_the_palette_is_named_with_its_place_and_the_advice_works(root, wording):
    colored(root / "val" / "masks" / "1.png", BLACK, RED, RED, WHITE)
    message = refusal(root, mask_colors=PALETTE)
    assert message.startswith(f"{root}/val/masks/1.png: color ffffff at x 3, y 0 ")
    wording(message)
    assert names(opened(root, skip=True, mask_colors=PALETTE).val) == ["0", "2"]
    assert class_pixels(opened(root, mask_colors=(*PALETTE, "ffffff")).val, 1)[2] == 61


def test_class_numbers_beside_a_palette_are_refused_and_the_advice_works(root, wording):
    (root / "classes.txt").write_text("road 0 0 0\ncar 200 10 30\n")
    for phase in ("train", "val"):
        for path in (root / phase / "masks").iterdir():
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
    message = refusal(root)
    assert "write --mask-values 0 1 " in message
    wording(message)
    source = opened(root, mask_values=(0, 1))
    assert source.class_names == ("road", "car")
    assert class_pixels(source.train) == {0: 56, 1: 8}


def test_photos_and_smoothed_colors_are_refused(root, wording):
    rng = np.random.default_rng(0)
    for phase in ("train", "val"):
        for path in (root / phase / "masks").iterdir():
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    wording(refusal(root))


def test_colors_in_jpeg_are_refused_and_png_helps(root, wording):
    path = root / "train" / "masks" / "0.png"
    with Image.open(path) as image:
        image.save(path.with_suffix(".jpg"), quality=60)
    path.unlink()
    message = refusal(root, mask_colors=PALETTE)
    assert message.startswith(f"{root}/train/masks/0.jpg: ")
    wording(re.sub(r"color [0-9a-f]+ at x \d, y \d", "color ... at ...", message))
    colored(path, BLACK, RED)
    assert len(opened(root, mask_colors=PALETTE).train) == 3


# Kinds of files


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_kinds_of_colored_files(mode, root):
    path = root / "train" / "masks" / "0.png"
    if mode == "CMYK":
        path.unlink()
        path = path.with_suffix(".tif")
    if mode == "P":
        image = Image.fromarray(np.eye(8, dtype=np.uint8), "P")
        image.putdata([0] + [1] * 63)
        image.putpalette([*BLACK, *RED])
        image.save(path)
    else:
        colored(path, BLACK, RED, mode=mode)
    if mode == "CMYK":
        assert "an image of mode CMYK" in refusal(root, mask_colors=PALETTE)
    else:
        assert class_pixels(opened(root, mask_colors=PALETTE).train) == {0: 1, 1: 63}


def test_equal_channels_are_a_gray_mask(root):
    for phase in ("train", "val"):
        for i, path in enumerate(sorted((root / phase / "masks").iterdir())):
            colored(path, (0, 0, 0), (1, 1, 1), (2, 2, 2), mode=("RGB", "RGBA", "LA")[i])
    source = opened(root)
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert [first_values(source.train, i, 3) for i in range(3)] == [[0, 1, 2]] * 3


def test_palette_images_keep_their_numbers_without_a_palette(root):
    for phase in ("train", "val"):
        for path in (root / phase / "masks").iterdir():
            image = Image.fromarray(np.eye(8, dtype=np.uint8), "P")
            image.putpalette([*RED, *BLACK])
            image.info["transparency"] = 0
            image.save(path)
    assert class_pixels(opened(root).train) == {0: 56, 1: 8}
    (root / "classes.txt").write_text("road 0 0 0\ncar 200 10 30\n")
    assert class_pixels(opened(root).train) == {0: 8, 1: 56}


def test_a_color_both_opaque_and_transparent_is_refused_and_the_advice_works(root, wording):
    path = root / "train" / "masks" / "0.png"
    colored(path, (*BLACK, 0), (*BLACK, 255), (*RED, 255), mode="RGBA")
    message = refusal(root, mask_colors=PALETTE)
    wording(message)
    with Image.open(path) as image:
        image.convert("RGB").save(path)
    assert class_pixels(opened(root, mask_colors=PALETTE).train) == {0: 2, 1: 62}


@pytest.mark.parametrize("top", [2, 255, 256, 65_535])
def test_sixteen_bit_masks_hold_values_up_to_255(top, root, wording):
    for phase in ("train", "val"):
        for path in (root / phase / "masks").iterdir():
            Image.fromarray((np.eye(8) * top).astype(np.uint16)).save(path)
    if top < 256:
        assert class_pixels(opened(root, mask_values=(0, top)).train) == {0: 56, 1: 8}
        return
    message = refusal(root)
    wording(message)
    for phase in ("train", "val"):
        for path in (root / phase / "masks").iterdir():
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
    assert class_pixels(opened(root).train) == {0: 56, 1: 8}


def test_float_masks_of_whole_numbers_are_read(root):
    for phase in ("train", "val"):
        for path in list((root / phase / "masks").iterdir()):
            Image.fromarray(np.eye(8, dtype=np.float32)).save(path.with_suffix(".tif"))
            path.unlink()
    assert class_pixels(opened(root).train) == {0: 56, 1: 8}
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(root / "val" / "masks" / "0.tif")
    assert "value 0.5; " in refusal(root)
