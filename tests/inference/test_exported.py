"""Exported files of unknown origin: described without running them, or refused with one line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from fastcnn.errors import UserError
from fastcnn.inference.description import KEY, Description, parse_description
from fastcnn.inference.exported import open_exported, read_archive

GOOD = Description(
    fastcnn="1.0",
    arch="lenet5",
    task="classification",
    multi_label=False,
    activation="softmax",
    class_names=("cat", "dog"),
    channels=3,
    size=32,
    resize=36,
    crop_pct=0.875,
    crop_mode="center",
    dct_scaling=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    exif="upright",
    levels=(0.0, 4095.0),
)


def test_a_description_is_read_as_it_was_written():
    assert parse_description(GOOD.to_json()) == GOOD


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": "32"}, "size has the wrong type"),
        ({"size": 10**9}, "a number out of range"),
        ({"class_names": [1, 2]}, "class_names has the wrong type"),
        ({"class_names": []}, "a task that is not its network's"),
        ({"task": "detection"}, "a task that is not its network's"),
        ({"std": [0.2, 0.2, 0.0]}, "a wrong mean, std or crop_pct"),
        ({"mean": [0.5]}, "a wrong mean, std or crop_pct"),
        ({"crop_mode": "left"}, "crop_mode has the wrong type"),
        ({"format": 2}, "is not of format 1"),
        ({"mean": [float("nan")] * 3}, "a number out of range"),
    ],
)
def test_an_impossible_description_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        parse_description(json.dumps({**json.loads(GOOD.to_json()), **changes}))


def test_a_description_without_a_key_is_refused():
    content = json.loads(GOOD.to_json())
    del content["exif"]
    with pytest.raises(ValueError, match="its metadata lacks exif"):
        parse_description(json.dumps(content))
    with pytest.raises(ValueError, match="its metadata is no JSON"):
        parse_description("{" * 100_000)


def test_class_names_are_made_printable():
    content = {**json.loads(GOOD.to_json()), "class_names": ["cat\x1b[31m", "dog"]}
    assert parse_description(json.dumps(content)).class_names == ("cat?[31m", "dog")


def test_pt2_is_not_loaded_without_trust(tmp_path: Path, monkeypatch):
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"archive/extra/{KEY}", GOOD.to_json())
    assert read_archive(file) == (GOOD, False)
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("loaded"))
    with pytest.raises(UserError, match="it contains code .*; add --trust-code if you trust it, or use ONNX"):
        open_exported(file, "fastcnn predict")


def test_foreign_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="No such file or directory; use the path of an exported file"):
        open_exported(tmp_path / "none.onnx", "fastcnn predict")
    (tmp_path / "text.onnx").write_text("none")
    with pytest.raises(UserError, match="or a damaged one: ONNX Runtime cannot read it"):
        open_exported(tmp_path / "text.onnx", "fastcnn predict")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("model/data.pkl", b"")
    with pytest.raises(UserError, match="it has no metadata of fastcnn"):
        open_exported(tmp_path / "other.pt2", "fastcnn predict", trust_code=True)
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr(f"archive/extra/{KEY}", GOOD.to_json())
    with pytest.raises(UserError, match="or a damaged one: torch.export.load: "):
        open_exported(tmp_path / "empty.pt2", "fastcnn predict", trust_code=True)
