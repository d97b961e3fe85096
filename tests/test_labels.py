"""Training from tables by the command: several labels an image, imbalanced classes, held-out images."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcnn.cli.main import main
from fastcnn.engine import checkpoint
from labeled_images import COLORS, write_csv, write_imbalanced, write_tagged
from runs import QUICK, interrupt_after, records

FAST = (*QUICK, "--data-backend", "torch", "--lr", "0.05", "--img-size", "32")

Train = Callable[..., int]


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    return write_tagged(tmp_path / "tagged", 192)


@pytest.fixture
def imbalanced(tmp_path: Path) -> Path:
    return write_imbalanced(tmp_path / "imbalanced", (80, 12, 4))


MULTI = ("--labels", "tags.csv", "--val-split", "0.25", "--epochs", "8")


@pytest.mark.slow
def test_several_labels_an_image_are_trained_validated_and_predicted(train: Train, tagged, capsys):
    flags = (*FAST, "--data", tagged, *MULTI, "--mixup", "0.2", "--model-ema", "--model-ema-decay", "0.8")
    assert train(*flags, "--label-smoothing", "0.05", "--output-dir", "run") == 0
    said = capsys.readouterr().out
    assert "column colors holds several labels an image, separated by ;" in said
    assert "--cls-loss" in said
    content = checkpoint.load(Path("run/best.pt"))
    assert content["multi_label"]
    assert content["class_names"] == ["blue", "green", "red"]
    assert content["best"]["map"] > 90
    assert {"map", "f1", "loss"} <= set(records(Path("run"), "epoch")[-1]["val"])

    assert train("--resume", "run/best.pt", "--test-only", *FAST[:2], "--tta", "flip") == 0
    assert "map" in capsys.readouterr().out
    assert main(["predict", "run/best.pt", str(tagged / "images"), "--threshold", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 192
    assert all(line.count("%") == 3 for line in lines)
    assert main(["predict", "run/best.pt", str(tagged / "images"), "--output-dir", "again"]) == 0
    found = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    truth = dict(csv.reader((tagged / "tags.csv").open()))
    same = [
        set(truth[name[:3]].split(";")) - {""} == {word for word in text.split() if word in COLORS}
        for name, text in found.items()
    ]
    assert np.mean(same) > 0.8


def test_the_loss_of_several_labels_can_be_focal_and_weighted(train: Train, tagged, capsys):
    flags = (*FAST, "--data", tagged, *MULTI[:4], "--epochs", "1", "--class-weights", "balanced")
    assert train(*flags, "--cls-loss", "focal", "--num-classes", "5", "--output-dir", "run") == 0
    assert "class weights: " in capsys.readouterr().out
    assert main(["predict", "run/best.pt", str(tagged / "images" / "000.png"), "--threshold", "0"]) == 0
    assert "class 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--sampler", "balanced"), "--sampler balanced"),
        (("--cls-loss", "ce"), "--cls-loss ce"),
        (("--class-weights", "1", "2"), "--class-weights"),
    ],
)
def test_settings_that_do_not_fit_several_labels_are_one_line(
    train: Train, tagged, capsys, wording, flags, named
):
    assert train(*FAST, "--data", tagged, *MULTI, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastcnn: error: {named}")
    assert error.count("\n") == 1
    wording(error)


def test_a_run_of_several_labels_does_not_resume_with_one(train: Train, tagged, capsys, wording):
    flags = (*FAST, "--data", tagged, "--labels", "tags.csv", "--val-split", "0.25", "--epochs", "1")
    assert train(*flags, "--output-dir", "run") == 0
    table = tagged / "tags.csv"
    rows = list(csv.reader(table.open()))
    colors = list(COLORS)
    write_csv(table, [[name, tags if i == 0 else colors[i % 3]] for i, (name, tags) in enumerate(rows)])
    capsys.readouterr()
    assert train("--resume", "run/last.pt", "--epochs", "2", *FAST[:2]) == 2
    error = capsys.readouterr().err
    assert "several labels" in error
    wording(error.replace(str(tagged), "DATA"))


BALANCED = ("--sampler", "balanced", "--epochs", "4")


def test_a_balanced_epoch_shows_each_class_equally_often(train: Train, imbalanced):
    from fastcnn.data.loaders.torch_loader import TorchLoader

    seen: list[list[int]] = []

    def count(self: TorchLoader) -> Any:
        for batch in iterate(self):
            if self.sampler.train:
                seen.append(batch.targets.tolist())
            yield batch

    iterate = TorchLoader.__iter__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchLoader, "__iter__", count)
        assert train(*FAST, "--data", imbalanced, "--sampler", "balanced", "--epochs", "1") == 0
    assert np.bincount(np.concatenate(seen)).tolist() == [32, 32, 32]


@pytest.mark.parametrize("backend", ["torch", "cached"])
def test_a_balanced_run_killed_within_an_epoch_ends_in_the_same_bits(train: Train, imbalanced, backend):
    flags = (*FAST, "--data", imbalanced, *BALANCED, "--data-backend", backend, "--deterministic")
    assert train(*flags, "--output-dir", "whole") == 0
    interrupt_after(9, lambda: train(*flags, "--output-dir", "parts", "--checkpoint-steps", "9"))  # of 24
    assert train("--resume", "parts/last.pt") == 0
    whole, parts = (torch.load(Path(name) / "last.pt") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
    assert whole["best"] == parts["best"]


def test_another_sampler_within_an_epoch_is_refused(train: Train, imbalanced, capsys, wording):
    flags = (*FAST, "--data", imbalanced, "--epochs", "4", "--checkpoint-steps", "9")
    interrupt_after(9, lambda: train(*flags, "--output-dir", "run"))
    capsys.readouterr()
    assert train("--resume", "run/last.pt", "--sampler", "balanced", *FAST[:2]) == 2
    error = capsys.readouterr().err
    assert "--sampler shuffle, now balanced" in error
    wording(error)


def test_balanced_draws_and_weights_together_are_a_warning(train: Train, imbalanced, capsys):
    flags = (*FAST, "--data", imbalanced, "--sampler", "balanced", "--epochs", "1")
    assert train(*flags, "--class-weights", "effective") == 0
    said = capsys.readouterr().out
    assert "class weights: " in said
    assert "warning: --sampler balanced and --class-weights effective correct the imbalance twice" in said


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "bce", "focal"])
def test_every_loss_learns_the_rare_classes_with_weights(train: Train, imbalanced, loss, capsys):
    flags = (*FAST, "--data", imbalanced, "--class-weights", "balanced", "--cls-loss", loss)
    assert (
        train(*flags, "--epochs", "8", "--lr", "0.2" if loss == "bce" else "0.05", "--output-dir", "run") == 0
    )
    assert checkpoint.load(Path("run/best.pt"))["best"]["acc1"] > 60
    assert main(["predict", "run/best.pt", str(imbalanced / "val" / "blue0.png")]) == 0
    capsys.readouterr()
    assert main(["predict", "run/best.pt", str(imbalanced / "val"), "--threshold", "0.3"]) == 0
    out = capsys.readouterr().out.partition("accuracy")[0]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", out)]
    assert shares
    assert min(shares) >= 30


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--arch", "unet", "--labels", "a.csv"), "--labels"),
        (("--arch", "yolo", "--label-column", "a"), "--label-column"),
        (("--arch", "unet", "--sampler", "balanced"), "--sampler"),
        (("--arch", "unet", "--class-weights", "balanced"), "--class-weights"),
        (("--sampler", "balanced", "--aug-repeats", "2"), "--sampler"),
        (("--labels", "a.csv", "--data", "cifar10"), "--labels"),
        (("--labels", "missing.csv"), "--labels"),
        (("--split-column", "set"), "--split-column"),
    ],
    ids=lambda flags: flags if isinstance(flags, str) else "",
)
def test_settings_that_do_not_fit_are_one_line(train: Train, demo, capsys, wording, flags, named):
    assert train("--data", demo, *QUICK, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastcnn: error: {named}")
    assert error.count("\n") == 1
    wording(error.replace(str(demo), "DATA"))
