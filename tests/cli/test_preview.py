"""`fastcnn preview`: a picture of training images as the loader makes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.cli.main import main
from fastcnn.cli.preview import EPOCHS, ROWS, caption, preview
from fastcnn.config.parse import parse
from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources import demo
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.transforms.augment import Augment
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks
from fastcnn.viz.pictures import FONT_SIZE, GAP, class_color
from networks import each
from odd_images import RECTANGLE, iou, red_box, scene, turned

SIDE, ENLARGED = 32, 224
BASE = ("--arch", "lenet5", "--workers", "1", "--device", "cpu", "--img-size", str(SIDE))


def cells(path: Path, rows: int = ROWS) -> np.ndarray:
    """The samples in a picture, uint8 [rows, 1 + EPOCHS, SIDE, SIDE, 3]."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    top = 2 * (FONT_SIZE + 10)
    high = (len(pixels) - top) // rows
    assert pixels.shape[1] == GAP + (1 + EPOCHS) * (ENLARGED + GAP)
    found = [
        [
            pixels[top + row * high :, GAP + column * (ENLARGED + GAP) :][:ENLARGED, :ENLARGED]
            for column in range(1 + EPOCHS)
        ]
        for row in range(rows)
    ]
    return np.array(found)[:, :, ::7, ::7]


def draw(tmp_path: Path, *flags: Any, rows: int = ROWS) -> np.ndarray:
    preview(parse([*BASE, *map(str, flags)]), tmp_path / "preview.png")
    return cells(tmp_path / "preview.png", rows)


def chosen(photos: Path) -> list[int]:
    return np.linspace(0, len(read_folder(photos, DataSettings(), 0).train) - 1, ROWS).astype(int).tolist()


def test_the_command_writes_a_picture_and_says_so(photos, tmp_path, monkeypatch, capsys, wording):
    monkeypatch.chdir(tmp_path)
    assert main(["preview", *BASE, "--data", str(photos), "--rotate", "9"]) == 0
    wording(capsys.readouterr().out)
    assert cells(tmp_path / "preview.png").shape == (ROWS, 1 + EPOCHS, SIDE, SIDE, 3)
    assert main(["preview", *BASE, "--data", str(photos), "--output", "more/other.jpg"]) == 0
    assert (tmp_path / "more" / "other.jpg").exists()


def test_help_lists_the_picture_among_the_flags(capsys):
    with pytest.raises(SystemExit) as end:
        main(["preview", "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fastcnn preview [-h] [--output FILE]")
    assert re.search(r"^  --output FILE +the picture \(preview.png\)$", out, re.M)
    assert "--color-jitter" in out


@pytest.mark.parametrize(
    "flags", [("--batch-size", "max"), ("--amp-dtype", "fp16"), ("--sync-bn",), ("--cuda-graph",)]
)
def test_what_training_alone_needs_a_gpu_for_needs_none(
    photos, tmp_path, monkeypatch, capsys, flags, wording
):
    monkeypatch.chdir(tmp_path)
    assert main(["preview", *BASE, "--data", str(photos), *flags]) == 0
    wording(capsys.readouterr().out)


@pytest.mark.parametrize("backend", ["torch", "cached", *(["dali"] if has_dali() else [])])
def test_without_any_augmentation_each_epoch_shows_what_validation_shows(photos, tmp_path, backend):
    plain = ("--train-crop", "pad", "--crop-padding", "0", "--hflip", "0")
    found = draw(tmp_path, "--data", photos, *plain, "--data-backend", backend)
    assert (found == found[:, :1]).all()
    source = read_folder(photos, DataSettings(), 0)
    assert source.train.files is not None
    for row, index in zip(found, chosen(photos)):
        width, height = Image.open(source.train.files.paths[index]).size
        small = Image.open(source.train.files.paths[index]).convert("RGB")
        scale = SIDE / min(width, height)
        small = small.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        x, y = (small.width - SIDE) // 2, (small.height - SIDE) // 2
        expected = np.asarray(small.crop((x, y, x + SIDE, y + SIDE))).astype(int)
        assert np.abs(row[0].astype(int) - expected).mean() < 12  # no other image comes near


def test_samples_are_those_of_the_loader(photos, tmp_path):
    jitter = ("--color-jitter", "0.4", "--aa", "ra", "--seed", "3")
    found = draw(tmp_path, "--data", photos, "--train-crop", "random-resized", *jitter)
    source = read_folder(photos, DataSettings(), 0)
    some = source.train.take(np.array(chosen(photos)))
    some.labels[:] = np.arange(ROWS)
    transform = Transform(
        size=SIDE, augment=Augment(aa="ra", color_jitter=(0.4,)), train_crop="random-resized", hflip=0.5
    )
    numbered = type(source)(name="numbered", train=some, val=some, class_names=tuple(map(str, range(ROWS))))
    cpu = torch.device("cpu")
    settings = LoaderSettings(data_backend="torch", batch_size=ROWS, workers=1)
    train, val = build_loaders(numbered, transform, settings, ranks=Ranks(), device=cpu, seed=3)
    try:
        (batch,) = val
        assert np.array_equal(found[:, 0], batch.images.permute(0, 2, 3, 1))
        for epoch in range(EPOCHS):
            train.set_epoch(epoch)
            (batch,) = train
            for image, index in zip(batch.images, batch.targets.tolist()):
                assert np.array_equal(found[index, 1 + epoch], image.permute(1, 2, 0))
    finally:
        train.close()
        val.close()


def test_mixed_images_are_sums_of_two(photos, tmp_path):
    plain = ("--data", photos, "--train-crop", "pad", "--crop-padding", "0", "--hflip", "0")
    alone, mixed = draw(tmp_path, *plain)[:, 0].astype(float), draw(tmp_path, *plain, "--mixup", "2")
    for row in range(ROWS):
        for image in mixed[row, 1:].astype(float):
            errors = [
                np.abs(share * alone[row] + (1 - share) * other - image).max()
                for other in np.delete(alone, row, axis=0)
                for share in [_share(image, alone[row], other)]
            ]
            assert min(errors) < 1.5


def _share(image: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    difference = (one - other).ravel()
    return float(difference @ (image - other).ravel() / (difference @ difference))


def test_fewer_images_than_rows_make_fewer_rows(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "few" / split / name).mkdir(parents=True)
            Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "few" / split / name / "0.png")
    assert len(draw(tmp_path, "--data", tmp_path / "few", rows=2)) == 2


@pytest.mark.parametrize("arch", each(["unet/lenet5", "yolo/lenet5"], ["yolo/lenet5"]))
def test_masks_and_boxes_are_drawn_in_every_epoch(annotated, tmp_path, arch):
    preview(parse([*BASE, "--data", str(annotated), "--arch", arch]), tmp_path / "drawn.png")
    pixels = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB")).astype(int)
    shades = np.array([class_color(number) for number in range(len(demo.CLASS_NAMES) + 1)])
    top, wide = 2 * (FONT_SIZE + 10), (pixels.shape[1] - GAP) // (1 + EPOCHS)
    high = (len(pixels) - top) // ROWS
    for row in range(ROWS):
        shown = []
        for column in range(1 + EPOCHS):
            cell = pixels[top + row * high :, GAP + column * wide :][:high, :wide].reshape(-1, 1, 3)
            shown.append(set(np.flatnonzero((cell == shades).all(axis=2).sum(axis=0) > 50).tolist()))
        assert len(set.union(*shown)) == 1  # there is one shape in each image, and its class stays
        assert sum(map(bool, shown)) >= EPOCHS  # a crop may leave too little of it


def test_the_caption_names_what_was_told_and_the_crop_and_the_flip(wording):
    told = parse(["--data", "photos", "--aa", "ra", "--color-jitter", "0.4", "0.4", "0.2", "--cutout", "8"])
    config = parse(["--train-crop", "pad", "--hflip", "0.5", "--img-size", "32", "--data", "photos"])
    config = type(config)(**{**vars(told), "train_crop": "pad", "hflip": 0.5, "img_size": 32})
    message = caption(config, told)
    assert "--train-crop" in message
    wording(message)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--data", "nowhere"), "--data nowhere: "),
        (("--data", "synthetic"), "synthetic"),
        (("--data", "PHOTOS", "--aa", "rb"), "--aa rb: "),
        (("--data", "PHOTOS", "--outptu", "x.png"), "--outptu: "),
        (("--data", "PHOTOS", "--output", "x.nothing"), "--output x.nothing: "),
        (("--data", "PHOTOS", "--output"), "expected one argument"),
    ],
    ids=["no data", "synthetic", "policy", "flag", "extension", "no file"],
)
def test_mistakes_are_one_line(photos, tmp_path, monkeypatch, capsys, flags, named, wording):
    monkeypatch.chdir(tmp_path)
    assert main(["preview", *BASE, *(str(photos) if f == "PHOTOS" else f for f in flags)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    if flags[-1] != "--output":  # else the words are argparse's
        wording(error.replace("unknown file extension: .nothing", "..."))  # Pillow's words


def test_images_of_which_none_can_be_decoded_are_named(tmp_path, wording):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "bad" / split / name).mkdir(parents=True)
            (tmp_path / "bad" / split / name / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        draw(tmp_path, "--data", tmp_path / "bad")
    wording(caught.value)


def test_boxes_are_drawn_on_the_object_of_a_turned_photo(tmp_path, monkeypatch):
    root = tmp_path / "data"
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for orientation in range(1, 9):
            (root / "images" / part / f"{orientation}.jpg").write_bytes(
                turned(scene(), orientation, quality=95, subsampling=0)
            )
            left, top, right, bottom = (v / side for v, side in zip(RECTANGLE, (48, 96, 48, 96)))
            row = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
            (root / "labels" / part / f"{orientation}.txt").write_text(f"0 {' '.join(map(str, row))}\n")
    (root / "data.yaml").write_text("names: [red]\n")
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def with_boxes(image: np.ndarray, boxes: np.ndarray, *names: Any, **options: Any) -> Image.Image:
        drawn.append((image, boxes))
        return Image.fromarray(image).resize((ENLARGED, ENLARGED))

    monkeypatch.setattr("fastcnn.tasks.detection.task.with_boxes", with_boxes)
    flags = ("--arch", "yolo/lenet5", "--strides", "4", "--img-size", "96", "--scale", "0.9", "1")
    preview(parse([*BASE, *flags, "--data", str(root)]), tmp_path / "preview.png")
    assert len(drawn) == 8 * (1 + EPOCHS)
    for image, boxes in drawn:
        for box in boxes[boxes[:, 0] >= 0]:
            assert iou(box[1:5], red_box(image)) > 0.85
