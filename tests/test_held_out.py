"""Held-out images: evaluated once, after the training, with the best weights, and never used to choose."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastcnn
import worker_fits
from fastcnn.engine import evaluate as evaluate_module
from fastcnn.engine import loop
from ranks import run_ranks
from runs import QUICK, QUICK_SETTINGS, interrupt_after, records

FOLDER = Path("runs/lenet5-data")
SHORT = (*QUICK, "--data", "data", "--epochs", "3", "--lr", "0.05")
SETTINGS: dict[str, Any] = {"arch": "lenet5", **QUICK_SETTINGS, "epochs": 3, "lr": 0.05}


def draw(folder: Path, count: int, seed: int) -> None:
    """Bright and dark noise: two classes that a few steps tell apart."""
    rng = np.random.default_rng(seed)
    for name, low in (("bright", 100), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(low, low + 156, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / ".cache"))
    for seed, (part, count) in enumerate((("train", 24), ("val", 9), ("test", 7))):
        draw(tmp_path / "data" / part, count, seed)
    return tmp_path / "data"


def held_out(folder: Path = FOLDER) -> list[dict[str, Any]]:
    return records(folder, "test")


def test_held_out_images_are_evaluated_once_after_the_training(train, data, capsys, wording):
    assert train(*SHORT) == 0
    (record,) = held_out()
    assert record["metrics"]["samples"] == 14
    assert record["step"] == 9
    assert all(epoch["val"]["samples"] == 18 for epoch in records(FOLDER, "epoch"))
    lines = capsys.readouterr().out.splitlines()
    places = [i for i, line in enumerate(lines) if line.startswith("test acc1 ")]
    assert places == [len(lines) - 2]
    acc1 = record["metrics"]["acc1"]
    assert re.search(rf"^test acc1 {acc1:.2f}% of 14 images \(weights of epoch \d\)$", lines[places[0]])
    (classes,) = [
        line for line in lines if line.startswith("2 classes (bright, dark): 24 training images each")
    ]
    wording(classes)
    assert classes.endswith("48 images for training, 18 for validation, 14 held out for the test")


def test_the_command_with_a_test_share_holds_images_out(train, data, capsys):
    shutil.rmtree(data / "val")
    shutil.rmtree(data / "test")
    flags = ("--val-split", "0.25", "--test-split", "0.25", "--split-seed", "5", "--group-by", r"/\d")
    assert train(*SHORT, *flags) == 0
    (record,) = held_out()
    assert 6 <= record["metrics"]["samples"] <= 18
    out = capsys.readouterr().out
    assert "--group-by: " in out
    assert "\ntest acc1 " in out


def test_held_out_images_do_not_choose_the_epoch(train, data):
    """Other test images, with swapped classes, lead to the same run."""
    assert train(*SHORT) == 0
    first = records(FOLDER, "epoch")
    best = torch.load(FOLDER / "best.pt", weights_only=True)
    (data / "test" / "bright").rename(data / "test" / "other")
    (data / "test" / "dark").rename(data / "test" / "bright")
    (data / "test" / "other").rename(data / "test" / "dark")
    (tested,) = held_out()
    FOLDER.rename("runs/first")
    assert train(*SHORT) == 0
    again = torch.load(FOLDER / "best.pt", weights_only=True)
    for before, after in zip(first, records(FOLDER, "epoch")):
        assert before["val"] == after["val"]
    assert best["best"] == again["best"]
    assert all(torch.equal(best["weights"][name], again["weights"][name]) for name in best["weights"])
    assert held_out()[0]["metrics"]["acc1"] == pytest.approx(100 - tested["metrics"]["acc1"])


@pytest.mark.parametrize(
    "flags",
    [(), ("--model-ema", "--model-ema-decay", "0.5"), ("--average-last", "2"), ("--tta", "flip")],
    ids=["plain", "ema", "average", "tta"],
)
def test_the_weights_are_those_of_the_best_epoch(train, data, capsys, monkeypatch, flags):
    """The test of the run is that of `--test-only` with its best.pt, though later epochs were worse."""
    real = loop.evaluate
    scores = iter((90.0, 10.0, 10.0, 10.0))

    def worse_later(*args: Any, **kwargs: Any) -> dict[str, float]:
        return {**real(*args, **kwargs), "acc1": next(scores)}

    monkeypatch.setattr(loop, "evaluate", worse_later)
    assert train(*SHORT, *flags) == 0
    (record,) = held_out()
    assert "weights of epoch 1" in capsys.readouterr().out
    assert train(*SHORT, *flags, "--test-only", "--resume", f"{FOLDER}/best.pt") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2].startswith(f"{FOLDER}/best.pt: val loss ")
    assert out[-1].startswith(f"{FOLDER}/best.pt: test loss ")
    loss = re.search(r"loss +([\d.]+)", out[-1])
    assert loss is not None
    assert float(loss[1]) == pytest.approx(record["metrics"]["loss"], abs=2e-3)


def test_an_interrupted_run_tests_nothing_and_the_resumed_one_once(train, data, capsys):
    interrupt_after(6, lambda: train(*SHORT))
    assert held_out() == []
    assert train(*SHORT, "--resume") == 0
    (record,) = held_out()
    assert record["step"] == 9
    assert train(*SHORT, "--resume") == 0  # complete already
    assert [again["metrics"] for again in held_out()] == [record["metrics"]]


def test_a_run_stopped_by_a_signal_tests_nothing(train, data, capsys, monkeypatch):
    from fastcnn.runtime.signals import StopRequest

    monkeypatch.setattr(StopRequest, "__bool__", lambda self: True)
    assert train(*SHORT) != 0
    assert held_out() == []
    assert "\ntest acc1" not in capsys.readouterr().out


def test_a_longer_run_has_the_test_of_its_own_end(train, data):
    assert train(*SHORT) == 0
    assert train(*SHORT, "--epochs", "4", "--resume") == 0
    assert [record["step"] for record in held_out()] == [12]


def test_a_run_that_resumes_with_another_split_is_warned(train, data, capsys):
    shutil.rmtree(data / "val")
    flags = (*SHORT, "--val-split", "0.25")
    assert train(*flags) == 0
    assert train(*flags, "--epochs", "4", "--resume") == 0
    assert "other training images" not in capsys.readouterr().out
    assert train(*flags, "--epochs", "5", "--split-seed", "7", "--resume") == 0
    assert "warning: other training images than before, 36 (" in capsys.readouterr().out


def test_the_result_has_the_test_metrics(data, monkeypatch, one_core):
    monkeypatch.chdir(data.parent)
    result = fastcnn.fit(**SETTINGS, data="data", data_backend="torch")
    assert result.test["samples"] == 14
    assert result.test["acc1"] == held_out()[0]["metrics"]["acc1"]
    shutil.rmtree(data / "test")
    assert fastcnn.fit(**SETTINGS, data="data", data_backend="torch", output_dir="runs/no-test").test == {}


@pytest.mark.parametrize("backend", ["dali", "cached"])
def test_every_loader_evaluates_held_out_images(whole_train, data, backend):
    assert whole_train(*SHORT, "--data-backend", backend) == 0
    (record,) = held_out()
    assert record["metrics"]["samples"] == 14


def test_undecodable_test_images_are_skipped_and_listed(train, data, capsys):
    path = data / "test" / "dark" / "0.png"
    path.write_bytes(path.read_bytes()[:2000] + bytes(200) + path.read_bytes()[2200:])
    assert train(*SHORT, "--max-bad-fraction", "0.1") == 0
    (record,) = held_out()
    assert (record["metrics"]["samples"], record["metrics"]["bad"]) == (13, 1)
    assert str(path.relative_to(data.parent)) in (FOLDER / "bad-files.txt").read_text()


def test_too_many_unreadable_test_images_stop_before_the_training(train, data, capsys, wording):
    for path in (data / "test" / "dark").iterdir():
        path.write_bytes(b"")
    assert train(*SHORT) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastcnn: error")]
    assert "7 of 14 test images" in line
    wording(line)
    assert not (FOLDER / "metrics.jsonl").exists()


@pytest.mark.slow
def test_two_ranks_evaluate_every_held_out_image_once(data, tmp_path):
    flags = [*SHORT, "--data-backend", "torch", "--batch-size", "8", "--device", "cpu"]
    (first, out, err), (second, _, _) = run_ranks(worker_fits.command, str(tmp_path), *flags)
    assert (first, second) == (0, 0), err
    (record,) = held_out(tmp_path / FOLDER)
    assert record["metrics"]["samples"] == 14
    alone = evaluate_alone(tmp_path)
    assert record["metrics"]["acc1"] == pytest.approx(alone["acc1"])
    assert record["metrics"]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert len([line for line in out.splitlines() if line.startswith("test acc1")]) == 1


def evaluate_alone(root: Path) -> dict[str, float]:
    """The test metrics of best.pt in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        settings = {**SETTINGS, "data": "data", "data_backend": "torch", "test_only": True}
        return fastcnn.fit(**settings, resume=str(FOLDER / "best.pt")).test


def test_a_run_without_held_out_images_evaluates_validation_images_alone(train, data, monkeypatch):
    shutil.rmtree(data / "test")
    counts = []
    real = evaluate_module.evaluate

    def counted(*args: Any, **kwargs: Any) -> dict[str, float]:
        counts.append(args[2].num_samples)
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluate_module, "evaluate", counted)
    assert train(*SHORT) == 0
    assert counts == []
    assert held_out() == []
    assert all(json.loads(line)["kind"] != "test" for line in (FOLDER / "metrics.jsonl").open())
