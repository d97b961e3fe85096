"""`fastcnn export`: files that compute what PyTorch computes, with their description inside."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.cli.main import main
from fastcnn.errors import UserError
from fastcnn.exporter import check, formats, run
from fastcnn.exporter.comparison import Comparison
from fastcnn.inference.description import KEY
from fastcnn.inference.exported import open_exported
from fastcnn.inference.trained import open_trained

CPU = torch.device("cpu")
PLAIN = {"amp_dtype": "fp32", "channels_last": "on", "compile": "off", "data_backend": "torch", "workers": 1}


@pytest.fixture(scope="module")
def trained(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LeNet-5 for the demo's classes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    fastcnn.fit(arch="lenet5", data=str(demo), epochs=1, output_dir=str(folder), **PLAIN)
    return folder / "best.pt"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(trained, tmp_path / "best.pt"))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, one_core: None) -> None:
    """Time few calls."""
    monkeypatch.setattr(check, "ROUNDS", (2, 2))
    monkeypatch.setattr(check, "BATCHES", (1, 2))


def test_onnx_is_described_compared_and_timed(checkpoint, capsys):
    assert main(["export", str(checkpoint), "--images", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("on 7 validation images: largest difference ")
    assert lines[1].endswith("(limit 1e-04), 100.00% equal predictions")
    assert [line.split()[0] for line in lines[3:5]] == ["eager", "onnx"]

    file = checkpoint.with_suffix(".onnx")
    figures = json.loads(Path(f"{file}.json").read_text())
    assert figures["bytes"] == file.stat().st_size
    assert 0 < figures["difference"] < 1e-5
    assert figures["agreement"] == 1
    assert [set(side["seconds"]) for side in figures["sides"]] == [{"1", "2"}, {"1", "2"}]
    assert figures["sides"][0]["score"] == figures["sides"][1]["score"]

    import onnxruntime

    session = onnxruntime.InferenceSession(file)  # as a user without fastcnn
    description = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    source = open_trained(checkpoint, "test")
    assert tuple(description["class_names"]) == source.class_names
    assert (description["size"], description["resize"]) == (source.size, source.transform.resize)
    assert description["mean"] == list(source.mean)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, source.size, source.size), dtype=np.uint8)
    (logits,) = session.run(None, {"images": images})
    with torch.inference_mode():
        expected = source.normalized(CPU)(torch.from_numpy(images))
    assert np.abs(logits - expected.numpy()).max() < 1e-5


def test_an_exported_file_has_the_interface_of_its_checkpoint(checkpoint):
    result = fastcnn.export(checkpoint, "pt2", images=5)
    assert fastcnn.export(checkpoint, "safetensors", images=5).difference == 0
    assert result.difference < 1e-5
    assert result.file == checkpoint.with_suffix(".pt2")
    source, file = open_trained(checkpoint, "test"), open_exported(result.file, "test", trust_code=True)
    for name in ("size", "channels", "class_names", "multi_label", "exif", "levels"):
        assert getattr(file, name) == getattr(source, name)
    assert file.transform.resize == source.transform.resize
    images = torch.randint(0, 256, (4, 3, file.size, file.size), dtype=torch.uint8)
    with torch.inference_mode():
        expected = source.build_task().predict(source.normalized(CPU)(images))
    np.testing.assert_allclose(file.build_task().predict(file(images)), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"takes uint8 images \[N, 3, "):
        file(images.float())


def test_int8_is_smaller_and_its_loss_is_measured(checkpoint, capsys):
    flags = ("--int8", "--images", "10", "--calibration-images", "20")
    assert main(["export", str(checkpoint), *flags]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:6]] == [
        "eager",
        "onnx",
        "int8",
    ]
    file = checkpoint.with_suffix(".int8.onnx")
    assert file.stat().st_size < checkpoint.stat().st_size / 2
    assert open_exported(file, "test").description.precision == "int8"
    assert not checkpoint.with_suffix(".onnx").exists()


def test_a_difference_leaves_no_file(checkpoint, monkeypatch, capsys):
    class Wrong(formats.Deployed):
        def forward(self, images):
            return tuple(output * 1.001 for output in super().forward(images))

    monkeypatch.setattr(formats, "Deployed", Wrong)
    assert main(["export", str(checkpoint), "--format", "pt2", "--images", "5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastcnn: error: --format pt2: its outputs differ from PyTorch's by 1.0e-03")
    assert [path.name for path in checkpoint.parent.iterdir()] == ["best.pt"]


def test_data_that_is_gone_is_named_with_the_remedy(checkpoint, demo, tmp_path, capsys):
    content = torch.load(checkpoint)
    content["config"]["data"] = str(tmp_path / "gone")
    torch.save(content, checkpoint)
    assert main(["export", str(checkpoint)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "the data of its training, for the check, cannot be opened" in error
    assert "cannot be opened; add --data with such images (" in error
    assert main(["export", str(checkpoint), "--data", str(demo), "--format", "pt2", "--images", "4"]) == 0


def test_a_missing_package_is_asked_for_by_its_extra(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(checkpoint), "--images", "4"]) == 2
    assert 'needs packages: pip install "fastcnn[export]"' in capsys.readouterr().err


def test_int8_is_for_onnx(checkpoint):
    with pytest.raises(UserError, match="--int8: for --format onnx, and this is pt2; omit one of them"):
        fastcnn.export(checkpoint, "pt2", int8=True)
    with pytest.raises(UserError, match="format='tflite': use onnx, pt2, aoti, safetensors"):
        fastcnn.export(checkpoint, "tflite")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_masks_and_boxes(train, annotated, task, capsys):
    arch = {
        "segmentation": ("--arch", "unet/lenet5"),
        "detection": ("--arch", "yolo/lenet5", "--strides", "4"),
    }[task]
    flags = ("--epochs", "1", "--img-size", "32", "--amp-dtype", "fp32", "--workers", "1")
    assert train(*arch, *flags, "--data", str(annotated), "--output-dir", "run") == 0
    capsys.readouterr()
    if task == "detection":
        find_many_boxes(Path("run/best.pt"))
    assert main(["export", "run/best.pt", "--images", "9"]) == 0
    assert "100.00% equal predictions" in capsys.readouterr().out
    source, file = open_trained(Path("run/best.pt"), "test"), open_exported(Path("run/best.onnx"), "test")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = source.build_task().predict(source.normalized(CPU)(images))
    found = file.build_task().predict(file(images))
    assert [rows.shape for rows in found] == [rows.shape for rows in expected]
    for rows, others in zip(found, expected):
        np.testing.assert_allclose(rows, others, atol=1e-3)
    if task == "detection":
        assert min(map(len, found)) > 5


def find_many_boxes(path: Path) -> None:
    """Give a detector's last layer large weights, so that many boxes overlap."""
    content = torch.load(path)
    torch.manual_seed(0)
    for states in (content["weights"], content["model"]):
        for name, value in states.items():
            if name.startswith("predictors"):
                nn.init.normal_(value, 0, 0.3)
    torch.save(content, path)


def test_boxes_that_change_places_agree():
    rows = np.array([[0, 1, 1, 9, 9, 0.5], [1, 2, 2, 8, 8, 0.4]], dtype=np.float32)
    comparison = Comparison(multi_label=False)
    comparison.add_boxes(rows, rows[::-1], 32)
    assert (comparison.agreement, comparison.difference) == (1, 0)
    comparison.add_boxes(rows, rows[:1], 32)
    assert comparison.agreement == 0.75
    moved = rows.copy()
    moved[0, 1] += 0.032
    comparison.add_boxes(rows, moved, 32)
    assert comparison.difference == pytest.approx(1e-3, rel=1e-3)


def test_a_nan_is_a_difference():
    comparison = Comparison(multi_label=False)
    comparison.add_logits(torch.ones(2, 3), torch.full((2, 3), torch.nan))
    with pytest.raises(UserError, match="differ from PyTorch's by nan"):
        run._limit(comparison, run.Options())
