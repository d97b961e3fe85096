"""Boxes of photos that are stored rotated lie on their objects in the batches of every loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.targets import NO_BOX
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks
from small_boxes import opened, text

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
STORED = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.fixture
def rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos of 48 x 96 pixels with a red object, labeled upright in YOLO's texts."""
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    image = Image.new("RGB", (48, 96), "blue")
    image.paste("red", (4, 60, 30, 84))
    for phase in ("train", "val"):
        for orientation, turn in STORED.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = tmp_path / phase / "images" / f"{orientation}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = image if turn is None else image.transpose(turn)
            stored.save(path, quality=95, subsampling=0, exif=exif)
            text(tmp_path / phase / "labels" / f"{orientation}.txt", f"0 {17 / 48} 0.75 {26 / 48} 0.25")
    text(tmp_path / "classes.txt", "red")
    return tmp_path


@pytest.mark.parametrize("backend", [pytest.param("dali", marks=needs_dali), "torch", "cached"])
@pytest.mark.parametrize("crop_mode", ["border", "center"])
def test_boxes_lie_on_objects_in_training_and_validation(rotated, backend, crop_mode):
    transform = Transform(size=64, train_crop="random-resized", scale=(0.5, 1.0), crop_mode=crop_mode)
    settings = LoaderSettings(data_backend=backend, batch_size=4, workers=1)
    loaders = build_loaders(
        opened(rotated), transform, settings, ranks=Ranks(), device=torch.device("cpu"), seed=0
    )
    seen = 0
    for loader in loaders:
        for batch in loader:
            for image, targets in zip(batch.images.int().numpy(), batch.targets.numpy()):
                red = (image[0] > 128) & (image[2] < 128)
                for _, left, top, right, bottom, _ in targets[targets[:, 0] != NO_BOX]:
                    rows, columns = np.nonzero(red)
                    found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                    np.testing.assert_allclose(found, (left, top, right, bottom), atol=1.5)
                    seen += 1
        loader.close()
    assert seen >= 6
