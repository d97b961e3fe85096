"""Channels, levels and normalization that are found in the images."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources import headers, pixels
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.open import open_data
from fastcnn.data.sources.pixels import has_wide, measure_levels, measure_normalization, with_levels
from odd_images import dicom, npy, png16, tiff
from small_sources import message_of

rng = np.random.default_rng(0)


def folder_of(root: Path, images: dict[str, bytes]) -> Path:
    """A folder of two classes with the same images in both, for training and validation."""
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for file, content in images.items():
                (root / part / name / file).write_bytes(content)
    return root


def opened(root: Path) -> Source:
    return open_data(DataSettings(data=str(root)), task="classification", seed=0)


def values(low: float, high: float, kind: str, channels: int = 1) -> np.ndarray:
    """An image with both of these values."""
    pixels = rng.uniform(low, high, (12, 16, channels))
    pixels[0, 0], pixels[1, 1] = low, high
    return pixels.astype(kind)


LEVELS: dict[str, tuple[bytes, tuple[float, float] | None]] = {
    "8 bits in 16": (png16(values(0, 200, "uint16")), (0, 255)),
    "10 bits": (png16(values(0, 1023, "uint16")), (0, 1023)),
    "12 bits": (png16(values(0, 3000, "uint16")), (0, 4095)),
    "12 bits in color": (png16(values(0, 4095, "uint16", 3)), (0, 4095)),
    "14 bits": (tiff(values(0, 9000, "uint16")[..., 0]), (0, 16383)),
    "16 bits": (png16(values(0, 65535, "uint16")), (0, 65535)),
    "more than 16 bits": (npy(values(0, 100_000, "int32")), (0, 100_000)),
    "signed": (npy(values(-1024, 3071, "int16")), (-1024, 3071)),
    "floats of shares": (npy(values(0.1, 0.8, "float32")), (0, 1)),
    "floats": (tiff(values(-3.5, 8.5, "float32")[..., 0]), (-3.5, 8.5)),
    "whole floats": (npy(values(0, 200, "float32").round()), (0, 255)),
    "nothing but zeros": (png16(values(0, 0, "uint16")), (0, 255)),
    "one negative value": (npy(values(-5, -5, "int16")), (-5, -4)),
    "DICOM in Hounsfield units": (
        dicom(values(0, 4000, "uint16")[..., 0], RescaleIntercept=-1024, RescaleSlope=1),
        (-1024, 2976),
    ),
    "DICOM with windows": (dicom(values(0, 4000, "uint16")[..., 0], WindowCenter=9, WindowWidth=9), None),
}


@pytest.mark.parametrize(("content", "levels"), LEVELS.values(), ids=LEVELS)
def test_levels_are_those_that_the_values_need(tmp_path, content, levels, wording):
    low = content if levels is None else png16(values(0, 1, "uint16"))  # the largest of the data counts
    images = {"a.png": low, "b.npy": content} if levels and levels[0] == 0 else {"b.npy": content}
    source = opened(folder_of(tmp_path / "data", images))
    assert has_wide(source)
    found, why = measure_levels(source.train)
    assert found == levels
    if levels is not None:
        wording(why)


def test_images_of_8_bits_have_no_levels(demo):
    assert not has_wide(opened(demo))


def test_a_file_that_is_damaged_does_not_count(tmp_path):
    good, bad = png16(values(0, 3000, "uint16")), png16(values(0, 60_000, "uint16"))
    damaged = bad[:60] + bytes(30) + bad[90:]
    source = opened(folder_of(tmp_path / "data", {"a.png": good, "b.png": damaged}))
    assert measure_levels(source.train)[0] == (0, 4095)


def test_levels_are_given_to_all_splits(tmp_path):
    source = opened(folder_of(tmp_path / "data", {"a.png": png16(values(0, 3000, "uint16"))}))
    source = with_levels(dataclasses.replace(source, test=source.val), (0, 4095))
    assert source.test is not None
    for split in (source.train, source.val, source.test, source.train.take(np.array([0]))):
        assert split.files is not None
        assert split.files.levels == (0, 4095)


def test_a_large_data_set_is_measured_on_a_sample(tmp_path, monkeypatch):
    images = {f"{i}.png": png16(values(0, 3000, "uint16")) for i in range(20)}
    source = opened(folder_of(tmp_path / "data", images))
    read: list[int] = []
    real = headers.Files.read

    def counted(files: headers.Files, index: int) -> np.ndarray:
        read.append(index)
        return real(files, index)

    monkeypatch.setattr(headers.Files, "read", counted)
    monkeypatch.setattr(pixels, "SAMPLE", 10)
    monkeypatch.setattr(pixels, "SMALLEST_SAMPLE", 5)
    assert measure_levels(source.train)[0] == (0, 4095)
    assert sorted(read) == np.linspace(0, 39, 10).astype(int).tolist()  # of both classes
    read.clear()
    monkeypatch.setattr(pixels, "SAMPLE_PIXELS", 12 * 16 * 6)
    assert measure_normalization(source.train, 1)[2] == len(read) == 6


# Channels


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8])
def test_the_channels_are_those_of_the_images(tmp_path, bands):
    source = opened(folder_of(tmp_path / "data", {"a.npy": npy(values(0, 200, "uint8", bands))}))
    assert source.channels == (3 if bands == 1 else bands)
    assert len(source.mean) == len(source.std) == source.channels


def test_images_of_different_numbers_of_channels_are_named(tmp_path, wording):
    images = {"a.npy": npy(values(0, 200, "uint8", 4)), "b.npy": npy(values(0, 200, "uint8", 5))}
    wording(message_of(lambda: opened(folder_of(tmp_path / "data", images))))


def test_an_array_among_photos_is_named(tmp_path, photos, wording):
    root = shutil.copytree(photos, tmp_path / "data")
    (root / "train" / "cat" / "z.npy").write_bytes(npy(values(0, 200, "uint8", 4)))
    wording(message_of(lambda: opened(root)))


def test_gray_and_color_go_together(tmp_path):
    images = {"a.npy": npy(values(0, 200, "uint8")), "b.npy": npy(values(0, 200, "uint8", 3))}
    assert opened(folder_of(tmp_path / "data", images)).channels == 3


def test_a_missing_package_is_named_before_anything_else(tmp_path, monkeypatch, wording):
    load = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "pydicom":
            raise ImportError(name)
        return load(name, package)

    root = folder_of(tmp_path / "data", {"a.dcm": dicom(values(0, 4000, "uint16")[..., 0])})
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", without)
        wording(message_of(lambda: opened(root)))
    assert opened(root).train.problems == {}  # it was installed since


# Normalization


def test_mean_and_deviation_are_those_of_the_pixels():
    images = [rng.integers(0, 256, (20, 30, 5)).astype(np.uint8) for _ in range(7)]
    split = Split(np.zeros(7, dtype=np.int64), images=images)
    mean, std, count = measure_normalization(split, 5)
    values = np.concatenate([image.reshape(-1, 5) for image in images]) / 255
    assert count == 7
    assert np.allclose(mean, values.mean(axis=0), atol=1e-4)
    assert np.allclose(std, values.std(axis=0), atol=1e-4)


def test_a_constant_channel_has_a_deviation():
    images = np.full((3, 8, 8, 1), 255, dtype=np.uint8)
    mean, std, _ = measure_normalization(Split(np.zeros(3, dtype=np.int64), images=images), 1)
    assert mean == (1.0,)
    assert std[0] > 0


def test_nothing_is_measured_where_nothing_can_be_decoded(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    files = headers.scan("data", [str(tmp_path / "a.png")])
    (tmp_path / "a.png").write_bytes(b"damaged")
    split = Split(np.zeros(1, dtype=np.int64), files)
    assert measure_normalization(split, 3) == ((), (), 0)
    assert (
        measure_levels(Split(np.zeros(1, dtype=np.int64), dataclasses.replace(files, bits=files.bits * 2)))[0]
        is None
    )
