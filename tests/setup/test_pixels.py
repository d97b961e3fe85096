"""Levels, mean and deviation of a run: given, measured, of the checkpoint or of the data set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcnn.cli.main import main
from fastcnn.config import Config
from fastcnn.data.sources.dataset import IMAGENET_MEAN, IMAGENET_STD, Source, Split
from fastcnn.setup.pixels import resolve_levels, resolve_normalization
from odd_images import npy, png16

rng = np.random.default_rng(0)
FLAGS = ("--arch", "lenet5", "--img-size", "32", "--epochs", "1", "--batch-size", "4", "--workers", "1")
PLAIN = ("--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off", "--output-dir", "run")


def source_of(channels: int = 3, value: int = 51) -> Source:
    images = np.full((4, 8, 8, channels), value, dtype=np.uint8)
    images[:2] += 102
    split = Split(np.zeros(4, dtype=np.int64), images=images)
    source = Source(name="gray", train=split, val=split, class_names=("a", "b"), channels=3)
    return source.with_channels(channels) if channels == 1 else source


def normalized(config: Config, source: Source, checkpoint: dict[str, Any] | None = None) -> Any:
    config, reasons, source = resolve_normalization(config, source, checkpoint)
    return (config.mean, config.std), reasons, (source.mean, source.std)


def test_mean_and_deviation_are_the_data_sets_own_unless_told_otherwise():
    kept, reasons, used = normalized(Config(), source_of())
    assert (kept, reasons, used) == (("auto", "auto"), {}, (IMAGENET_MEAN, IMAGENET_STD))
    _, reasons, used = normalized(Config(mean=(0.1, 0.2, 0.3)), source_of())
    assert (reasons, used) == ({}, ((0.1, 0.2, 0.3), IMAGENET_STD))
    *_, used = normalized(Config(mean=(0.5,), std=(0.25,)), source_of())
    assert used == ((0.5,) * 3, (0.25,) * 3)  # one number for all


def test_data_measures_them(wording):
    kept, reasons, used = normalized(Config(mean="data"), source_of())
    assert kept == ((0.4,) * 3, "auto")
    assert used == ((0.4,) * 3, IMAGENET_STD)
    assert set(reasons) == {"mean"}
    wording(reasons["mean"])
    *_, used = normalized(Config(std="data"), source_of())
    assert used == (IMAGENET_MEAN, (0.2,) * 3)


def test_a_checkpoint_keeps_its_own_unless_others_are_told():
    saved = {"mean": [0.1] * 3, "std": [0.2] * 3}
    assert normalized(Config(), source_of(), saved)[2] == ((0.1,) * 3, (0.2,) * 3)
    assert normalized(Config(mean=(0.7,)), source_of(), saved)[2] == ((0.7,) * 3, (0.2,) * 3)
    assert normalized(Config(mean="data"), source_of(), saved)[2] == ((0.4,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(("channels", "mean"), [(3, (0.5, 0.5)), (1, (0.5, 0.5, 0.5))])
def test_another_number_of_values_than_channels_is_refused(channels, mean, wording):
    with pytest.raises(ValueError) as caught:
        normalized(Config(mean=mean), source_of(channels))
    wording(caught.value)


def test_there_must_be_images_to_measure(wording):
    split = Split(np.zeros(4, dtype=np.int64))
    source = Source(name="synthetic", train=split, val=split, class_names=("a", "b"))
    with pytest.raises(ValueError) as caught:
        normalized(Config(std="data"), source)
    wording(caught.value)


def test_levels_have_no_effect_on_images_of_8_bits(wording):
    for config in (Config(), Config(levels=(0, 65_535))):
        assert resolve_levels(config, source_of())[:2] == (config, {})
        assert resolve_levels(config, source_of())[2].remarks == ()
    wording(resolve_levels(Config(levels=(0, 9)), source_of())[2].remarks[0])


# Whole runs


def folder_of(root: Path, image: Callable[[int], bytes], suffix: str) -> Path:
    for part, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                (root / part / name / f"{i}{suffix}").write_bytes(image(label))
    return root


def twelve_bits(label: int) -> bytes:
    return png16(rng.integers(0, 4096 - 2000 * label, (32, 32, 1)).astype(np.uint16))


def bands(label: int) -> bytes:
    return npy(rng.integers(0, 4000 - 2000 * label, (32, 32, 5)).astype(np.uint16))


def test_a_run_on_12_bits_says_its_levels_saves_and_resumes_them(train, tmp_path, capsys):
    data = folder_of(tmp_path / "data", twelve_bits, ".png")
    assert train(*FLAGS, *PLAIN, "--data", data) == 0
    assert "--levels         0 4095          16-bit images with values up to 4,0" in capsys.readouterr().out
    assert torch.load("run/last.pt", weights_only=True)["config"]["levels"] == [0, 4095]
    for path in data.rglob("train/*/*.png"):
        path.write_bytes(png16(np.full((32, 32, 1), 60_000, dtype=np.uint16)))
    assert train("--resume", "run/last.pt", "--data", data, "--epochs", "2") == 0
    assert torch.load("run/last.pt", weights_only=True)["config"]["levels"] == [0, 4095]
    assert train("--resume", "run/last.pt", "--data", data, "--epochs", "3", "--levels", "-5", "60000") == 0
    assert torch.load("run/last.pt", weights_only=True)["config"]["levels"] == [-5, 60_000]


def test_a_run_on_five_channels_measures_them_predicts_and_previews(train, tmp_path, capsys):
    data = folder_of(tmp_path / "data", bands, ".npy")
    assert train(*FLAGS, *PLAIN, "--data", data) == 0
    out = capsys.readouterr().out
    assert "measured on 16 training images" in out
    content = torch.load("run/last.pt", weights_only=True)
    assert content["in_chans"] == len(content["mean"]) == len(content["std"]) == 5
    assert content["config"]["mean"] == content["mean"] != content["config"]["std"]
    assert 0.3 < content["mean"][0] < 0.5
    assert main(["predict", "run/best.pt", str(data / "val")]) == 0
    assert capsys.readouterr().out.count("%") >= 8
    assert len(list(Path("predictions").rglob("*.png"))) == 8 + 1  # and the grid
    assert main(["preview", *FLAGS, "--data", str(data)]) == 0
    assert Path("preview.png").is_file()


def test_an_image_of_other_channels_is_named_in_prediction(train, tmp_path, capsys, wording):
    data = folder_of(tmp_path / "data", bands, ".npy")
    assert train(*FLAGS, *PLAIN, "--data", data) == 0
    (tmp_path / "given").mkdir()
    shutil.copy(data / "val" / "cat" / "0.npy", tmp_path / "given" / "a.npy")
    (tmp_path / "given" / "b.png").write_bytes(twelve_bits(0))
    (tmp_path / "given" / "c.npy").write_bytes(npy(np.zeros((32, 32, 4), dtype=np.uint16)))
    capsys.readouterr()
    assert main(["predict", "run/best.pt", "given"]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines()] == ["a.npy"]
    wording(err)
