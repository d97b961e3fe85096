"""`fastcnn predict`: a line and a picture for each image, of each task."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastcnn
from fastcnn.cli.main import main
from fastcnn.data.sources.demo import VERSION
from fastcnn.models import build
from networks import each
from odd_images import RECTANGLE, iou, png16, red_box, scene, turned

ARCHS = {
    "classification": ("--arch", "lenet5"),
    "segmentation": ("--arch", "unet/lenet5"),
    "detection": ("--arch", "yolo/lenet5", "--img-size", "32", "--strides", "4"),
    "detection in a grid": ("--arch", "yolov1/lenet5"),
}


@pytest.fixture
def demo_cache(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small demo set in place of the whole one."""
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(demo, tmp_path / "cache" / f"shapes-v{VERSION}")
    return tmp_path


@pytest.fixture(scope="module")
def trained(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LeNet-5 for the demo's classes, which has learned nothing."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"arch": "lenet5", "data": str(demo), "epochs": 1, "data_backend": "torch", "workers": 1}
    plain = {"amp_dtype": "fp32", "channels_last": "on", "compile": "off", "lr": 0.0}
    fastcnn.fit(**settings, **plain, output_dir=str(folder / "run"))
    return folder / "run" / "best.pt"


@pytest.fixture
def images(demo: Path, tmp_path: Path) -> Path:
    """Three of the demo's, one of them in a sub-folder, and a wide one."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    found = sorted((demo / "val").glob("*/0000.jpg"))[:3]
    for name, path in zip(("a.jpg", "b.jpg", "more/c.jpg"), found):
        shutil.copy(path, folder / name)
    Image.effect_noise((90, 40), 50).convert("RGB").save(folder / "wide.png")
    return folder


@pytest.mark.parametrize("task", each(ARCHS, ["detection"]))
def test_every_image_gets_a_line_and_a_picture(train, demo_cache, images, capsys, task):
    flags = (*ARCHS[task], "--epochs", "1", "--amp-dtype", "fp32", "--workers", "1", "--output-dir", "run")
    assert train(*flags) == 0
    capsys.readouterr()
    assert main(["predict", "run/best.pt", str(images), "--batch-size", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["a.jpg", "b.jpg", "wide.png", "more/c.jpg"]
    assert all(line.partition(": ")[2] for line in lines)
    for name in ("a.jpg", "b.jpg", "wide.png", "more/c.jpg"):
        with Image.open(f"predictions/{name}.png") as picture:
            assert min(picture.size) >= 64
    if task.startswith(("segmentation", "detection")):  # with borders: all of the image, in the middle
        pixels = np.asarray(Image.open("predictions/wide.png.png").convert("L"))
        assert pixels[pixels.shape[1] // 2, pixels.shape[1] // 2] > 0


def test_one_image_can_be_named_and_bad_ones_are_told_and_counted(
    trained, images, capsys, monkeypatch, wording
):
    monkeypatch.chdir(images.parent)
    assert main(["predict", str(trained), str(images / "a.jpg"), "--output-dir", "one"]) == 0
    assert capsys.readouterr().out.startswith("a.jpg: ")
    assert [path.name for path in Path("one").iterdir()] == ["a.jpg.png"]

    Image.effect_noise((40, 40), 50).save(images / "b.png")
    content = bytearray((images / "b.png").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20] = bytes(20)  # seen only in decoding
    (images / "b.png").write_bytes(content)
    (images / "empty.jpg").touch()
    assert main(["predict", str(trained), str(images)]) == 1
    said = capsys.readouterr()
    wording.line(said.err, "empty.jpg: ")
    assert "b.png: " in said.err
    assert [line.partition(": ")[0] for line in said.out.splitlines()] == [
        *("a.jpg", "b.jpg", "wide.png", "more/c.jpg")
    ]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_is_escaped_and_the_rest_is_predicted(trained, images, monkeypatch):
    """In its own process: a terminal refuses what no encoding holds, pytest's streams may not."""
    os.rename(images / "a.jpg", os.fsencode(images) + b"/\xe9a.jpg")
    shutil.copy(images / "b.jpg", os.fsencode(images) + b"/\xff.jpg")
    (images / os.fsdecode(b"\xe9bad.png")).write_bytes(b"none")
    command = [sys.executable, "-m", "fastcnn.cli.main", "predict", str(trained), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=images.parent, check=False)
    names = [line.partition(": ")[0] for line in done.stdout.splitlines()]
    assert names == ["b.jpg", "wide.png", "\\udce9a.jpg", "\\udcff.jpg", "more/c.jpg"]
    assert done.stderr.splitlines()[-2].startswith(f"warning: undecodable image: {images}/\\udce9bad.png: ")
    assert done.returncode == 1
    pictures = sorted(os.listdir(os.fsencode(images.parent / "predictions")))
    assert pictures == [b"b.jpg.png", b"more", b"wide.png.png", b"\xe9a.jpg.png", b"\xff.jpg.png"]


def test_no_call_overwrites_the_pictures_of_another(trained, images, capsys, monkeypatch, wording):
    monkeypatch.chdir(images.parent)
    for folder in ("predictions", "predictions-2"):
        assert main(["predict", str(trained), str(images / "a.jpg")]) == 0
        assert capsys.readouterr().err == f"wrote {folder}\n"
        Path(folder, "a.jpg.png").write_bytes(b"mine")
    assert main(["predict", str(trained), str(images / "b.jpg"), "--output-dir", "predictions"]) == 0
    capsys.readouterr()
    assert main(["predict", str(trained), str(images), "--output-dir", "predictions"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--output-dir predictions: " in err
    wording(err)
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["a.jpg.png", "b.jpg.png"]
    assert {path.read_bytes() for path in Path().glob("predictions*/a.jpg.png")} == {b"mine"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.pt", "images"], "fastcnn predict missing.pt: "),
        (["best.pt", "missing"], "missing: "),
        (["best.pt", "empty"], "empty: "),
        (["best.pt", "bad"], "bad: "),
        (["best.pt", "images", "--output-dir", "file"], "--output-dir: cannot write the folder file: "),
        (["best.pt"], "the following arguments are required: images"),
    ],
    ids=["no checkpoint", "no images", "empty folder", "bad images", "a file for a folder", "one word"],
)
def test_a_mistake_gives_one_line_and_status_2(
    trained, images, capsys, monkeypatch, arguments, named, wording
):
    monkeypatch.chdir(images.parent)
    shutil.copy(trained, "best.pt")
    for name in ("empty", "bad"):
        Path(name).mkdir()
    Path("bad/x.jpg").write_bytes(b"text")
    Path("file").touch()
    assert main(["predict", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastcnn: error: {named}")
    assert error.count("\n") == 1
    wording(error)


def as_trained_with(checkpoint: Path, path: Path, **settings: object) -> Path:
    """The checkpoint as if its run had had these settings."""
    content = torch.load(checkpoint, weights_only=True)
    content["config"] = {**content["config"], **settings}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("exif", ["upright", "ignore"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_turned_as_in_training(trained, tmp_path, monkeypatch, kind, exif):
    monkeypatch.chdir(tmp_path)
    checkpoint = as_trained_with(trained, tmp_path / "best.pt", exif=exif, crop_mode="border")
    Path("images").mkdir()
    for orientation in range(10):
        Path(f"images/{orientation}.jpg").write_bytes(turned(scene(), orientation, kind))
    assert main(["predict", str(checkpoint), "images"]) == 0
    for orientation in range(10):
        with Image.open(f"predictions/{orientation}.jpg.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        pixels = pixels[: pixels.shape[1]]  # without the caption
        stored = Image.open(io.BytesIO(turned(scene(), orientation, "PNG"))) if exif == "ignore" else scene()
        side = max(stored.size)
        left, top = ((side - length) / 2 for length in stored.size)
        box = np.array(red_box(np.asarray(stored))) + (left, top, left, top)
        assert iou(np.array(red_box(pixels)) / len(pixels) * side, box) > 0.85
    assert red_box(np.asarray(scene())) == RECTANGLE


def test_values_are_scaled_as_in_training(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("images/a.png").write_bytes(png16(np.full((32, 32, 1), 2048, dtype=np.uint16)))
    for levels, expected in (([0, 4095], 128), ([1024, 2048], 255), ("auto", 8)):
        checkpoint = as_trained_with(trained, tmp_path / "best.pt", levels=levels)
        folder = f"of {levels}"
        assert main(["predict", str(checkpoint), "images", "--output-dir", folder]) == 0
        with Image.open(Path(folder, "a.png.png")) as picture:
            assert picture.convert("L").getpixel((9, 9)) == expected


def test_images_of_a_size_that_no_memory_holds_are_refused(trained, images, capsys, monkeypatch):
    """Layers count too: those of a U-Net keep the sides, with many channels."""
    arch = "unet_small"
    monkeypatch.chdir(images.parent)
    content = torch.load(trained, weights_only=True)
    network = build(arch, 10)
    content.update(arch=arch, model=network.state_dict(), weights=network.state_dict(), ranks=[])
    content["config"].update(arch=arch, img_size=8192, val_img_size=8192)
    content.update(img_size=8192, val_img_size=8192, average={"epochs": 0, "weights": {}})
    torch.save(content, "large.pt")
    monkeypatch.setattr("fastcnn.cli.predict.free_memory", lambda: 5 * 3 * 8192**2 + 1000)
    assert main(["predict", "large.pt", str(images / "a.jpg")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "1 images of 3 x 8192 x 8192, the checkpoint's size, take at least" in error
