"""`fastcnn predict`: its files for machines, its images, and the accuracy in class folders."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastcnn
from checkpoints import NETWORKS, write_checkpoint
from fastcnn.cli.main import main
from odd_images import turned


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {task: write_checkpoint(folder / f"{task}.pt", task) for task in NETWORKS}


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images in the working folder, of different sizes; one is stored turned, one in a sub-folder."""
    monkeypatch.chdir(tmp_path)
    Path("images/more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a": (60, 40), "more/c": (33, 70)}.items():
        noise = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(f"images/{name}.png")
    wide = Image.fromarray(rng.integers(0, 256, (30, 80, 3), dtype=np.uint8))
    Path("images/b.jpg").write_bytes(turned(wide, 6))
    return tmp_path / "images"


SIZES = {"a.png": (60, 40), "b.jpg": (80, 30), "more/c.png": (33, 70)}
"""Width and height, upright."""


def predict(*words: object) -> int:
    return main(["predict", *map(str, words), "--workers", "1", "--device", "cpu"])


def failure(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert predict(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("task", NETWORKS)
def test_csv_and_json_lines_hold_the_same(checkpoints, capsys, task):
    flags = ("--no-pictures", "--csv", "out.csv", "--jsonl", "out.jsonl")
    assert predict(checkpoints[task], "images", *flags) == 0
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == list(SIZES)
    assert err == "wrote out.csv\nwrote out.jsonl\n"
    assert not Path("predictions").exists()
    lines = lines_of("out.jsonl")
    assert {line["image"]: (line["width"], line["height"]) for line in lines} == SIZES
    rows = list(csv.DictReader(io.StringIO(Path("out.csv").read_text())))
    flat = [(line["image"], rank, p) for line in lines for rank, p in enumerate(line["predictions"], 1)]
    assert len(rows) == len(flat) > 0
    for row, (image, rank, prediction) in zip(rows, flat):
        assert (row["image"], int(row["rank"])) == (image, rank)
        assert (int(row["class"]), row["name"]) == (prediction["class"], prediction["name"])
        for key in ("score", "share", "pixels"):
            assert (key in row) == (key in prediction)
            assert key not in row or float(row[key]) == prediction[key]
        if task == "detection":
            box = [float(row[side]) for side in ("left", "top", "right", "bottom")]
            assert box == prediction["box"]
            width, height = SIZES[image]
            assert 0 <= box[0] <= box[2] <= width
            assert 0 <= box[1] <= box[3] <= height


@pytest.mark.parametrize("flag", ["--csv", "--jsonl"])
def test_a_dash_leaves_standard_output_to_the_machine(checkpoints, capsys, flag):
    assert predict(checkpoints["classification"], "images", flag, "-", "--no-pictures", "--top-k", 1) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    if flag == "--csv":
        assert lines.pop(0) == "image,width,height,rank,class,name,score"
    assert len(lines) == 3
    assert err == ""


def test_coco_json_is_read_by_pycocotools(checkpoints, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    assert predict(checkpoints["detection"], "images", "--no-pictures", "--coco", "d.json", "--top-k", 3) == 0
    found = coco.COCO("d.json")
    assert {i["file_name"]: (i["width"], i["height"]) for i in found.imgs.values()} == SIZES
    annotations = json.loads(Path("d.json").read_text())["annotations"]
    assert 3 <= len(annotations) <= 9
    assert len(found.loadRes(annotations).anns) == len(annotations)
    assert found.cats[1]["name"] == sorted(c["name"] for c in found.cats.values())[0] == "blue_cross"

    assert predict(checkpoints["segmentation"], "images", "--coco", "s.json", "--label-pngs", "labels") == 0
    found = coco.COCO("s.json")
    for number, image in found.imgs.items():
        with Image.open(Path("labels", image["file_name"]).with_suffix(".png")) as png:
            assert png.mode == "P"
            assert png.size == (image["width"], image["height"])
            mask = np.asarray(png)
        for annotation in found.loadAnns(found.getAnnIds(imgIds=[number])):
            decoded = found.annToMask(annotation).astype(bool)
            assert np.array_equal(decoded, mask == annotation["category_id"] - 1)
            assert annotation["area"] == decoded.sum()
            rows, columns = np.nonzero(decoded)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
    with fastcnn.Predictor(checkpoints["segmentation"]) as predictor:
        assert np.array_equal(predictor("images/more/c.png").mask, mask)


def test_images_are_files_folders_patterns_and_standard_input(checkpoints, capsys, monkeypatch, images):
    checkpoint = checkpoints["classification"]

    def names(*words: object) -> list[str]:
        assert predict(checkpoint, *words, "--no-pictures") == 0
        return [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]

    assert names("images/a.png", "images/b.jpg") == ["a.png", "b.jpg"]
    assert names("images/*.png") == ["a.png"]
    assert names("images/**/*.png") == ["a.png", "more/c.png"]
    assert names("images/b.jpg", "images/more") == ["b.jpg", "more/c.png"]
    assert names("images/a.png", images / "a.png") == ["a.png"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("images/b.jpg").read_bytes())))
    assert names("-") == ["stdin"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert "nothing arrives on stdin" in failure(capsys, checkpoint, "-")
    assert "images/*.gif: no file matches" in failure(capsys, checkpoint, "images/*.gif")
    assert "others beside it" in failure(capsys, checkpoint, "-", "images")


def test_top_k_and_threshold(checkpoints, capsys):
    assert predict(checkpoints["classification"], "images/a.png", "--no-pictures", "--top-k", 2) == 0
    assert capsys.readouterr().out.count("%") == 2
    assert predict(checkpoints["classification"], "images/a.png", "--no-pictures", "--threshold", "99%") == 0
    assert capsys.readouterr().out == "a.png: nothing\n"
    counts = []
    for threshold in (0.02, 0.6):
        flags = ("--no-pictures", "--jsonl", "out.jsonl", "--threshold", threshold)
        assert predict(checkpoints["detection"], "images/a.png", *flags) == 0
        scores = [p["score"] for p in lines_of("out.jsonl")[0]["predictions"]]
        assert all(score >= threshold for score in scores)
        counts.append(len(scores))
    assert counts[0] > counts[1]


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("classification", ["--coco", "x.json"], "--coco: for boxes and masks"),
        ("classification", ["--label-pngs", "x"], "--label-pngs: for segmentation"),
        ("detection", ["--label-pngs", "x"], "--label-pngs: for segmentation"),
        ("detection", ["--coco", "-"], "--coco -: it is written at the end"),
        ("segmentation", ["--top-k", "2"], "--top-k: each pixel has one class"),
        ("detection", ["--csv", "-", "--jsonl", "-"], "--csv - --jsonl -: only one of them"),
        ("detection", ["--csv", "nowhere/x.csv"], "--csv: cannot write"),
    ],
)
def test_an_output_that_does_not_fit_is_one_line(checkpoints, capsys, task, flags, message):
    assert message in failure(capsys, checkpoints[task], "images", "--no-pictures", *flags)


def test_labels_replace_no_other_file(checkpoints, capsys):
    shutil.copy("images/a.png", "images/a.bmp")
    error = failure(capsys, checkpoints["segmentation"], "images", "--label-pngs", "labels", "--no-pictures")
    assert "a.bmp and a.png would get one file" in error
    error = failure(capsys, checkpoints["segmentation"], "images/a.png", "--label-pngs", "images")
    assert "images/a.png exists already" in error


def test_class_folders_get_their_accuracy_and_a_picture(checkpoints, demo, capsys):
    assert predict(checkpoints["classification"], demo / "val", "--jsonl", "out.jsonl") == 0
    out, err = capsys.readouterr()
    lines = lines_of("out.jsonl")
    assert [line["truth"] for line in lines] == [Path(line["image"]).parent.name for line in lines]
    correct = sum(line["truth"] == line["predictions"][0]["name"] for line in lines)
    assert out.splitlines()[-1] == f"accuracy {100 * correct / 50:.2f}% of 50 images"
    assert err == "wrote out.jsonl\nwrote predictions\n"
    with Image.open("predictions/grid.png") as picture:
        assert picture.width > 8 * 224
        assert picture.height > 6 * 224

    shutil.copytree(demo / "val" / "red_circle", "some/red_circle")
    shutil.copytree(demo / "val" / "red_circle", "some/thing")
    assert predict(checkpoints["classification"], "some", "--no-pictures") == 0
    out, err = capsys.readouterr()
    assert "accuracy" not in out
    assert (
        err == "warning: no accuracy, since not all folders are classes: thing is no class of the network\n"
    )
