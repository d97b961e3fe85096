"""Masks of every kind lie on the pixels that they mark, in every loader, also for photos stored rotated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.dataset import Source
from fastcnn.data.targets import IGNORE
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks
from small_masks import opened

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
BACKENDS = [pytest.param("dali", marks=needs_dali), "torch", "cached"]
SIZE = 96
COUNT = 4
KINDS = ["values", "colors", "coco", "coco as stored", "labelme"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


def rectangle(number: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the white object in an upright image of 48 x 96."""
    return 4 + 2 * number, 10 + 9 * number, 30 + 3 * number, 40 + 10 * number


def photo(path: Path, number: int) -> np.ndarray:
    """Write a photo that is stored rotated; return its object, bool [96, 48], upright."""
    left, top, right, bottom = rectangle(number)
    inside = np.zeros((96, 48), dtype=bool)
    inside[top:bottom, left:right] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(inside.astype(np.uint8) * 255).transpose(Image.Transpose.ROTATE_90)
    stored.convert("RGB").save(path, exif=exif, quality=95)
    return inside


def made(root: Path, kind: str) -> None:
    for phase in ("train", "val"):
        images, annotations = [], []
        for i in range(COUNT):
            folder = root / phase / ("images" if kind in ("values", "colors") else "")
            inside = photo(folder / f"{i}.jpg", i)
            left, top, right, bottom = rectangle(i)
            corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
            if kind in ("values", "colors"):
                (root / phase / "masks").mkdir(exist_ok=True)
                object_color = 255 if kind == "values" else np.array([200, 0, 0])
                pixels = inside * 255 if kind == "values" else inside[..., None] * object_color
                Image.fromarray(pixels.astype(np.uint8)).save(root / phase / "masks" / f"{i}.png")
            elif kind == "labelme":
                shapes = [{"label": "object", "points": corners, "shape_type": "polygon"}]
                content = {"imagePath": f"{i}.jpg", "imageHeight": 96, "imageWidth": 48, "shapes": shapes}
                (folder / f"{i}.json").write_text(json.dumps(content))
            else:
                width, height = 48, 96
                if kind == "coco as stored":  # rotated by 90 degrees: x, y = y, 48 - x
                    corners, width, height = [[y, 48 - x] for x, y in corners], 96, 48
                images.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
                annotations.append(
                    {"id": i, "image_id": i, "category_id": 1, "segmentation": [np.ravel(corners).tolist()]}
                )
        if images:
            (root / "annotations").mkdir(exist_ok=True)
            content = {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 1, "name": "object"}],
            }
            (root / "annotations" / f"instances_{phase}.json").write_text(json.dumps(content))


def samples(source: Source, backend: str, *, train: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield gray values and classes, [SIZE, SIZE] each, of every sample of an epoch."""
    transform = Transform(size=SIZE, crop_mode="border", scale=(0.5, 1.0))
    settings = LoaderSettings(data_backend=backend, batch_size=2, workers=2)  # type: ignore[arg-type]
    loaders = build_loaders(source, transform, settings, ranks=Ranks(), device=torch.device("cpu"), seed=0)
    try:
        for batch in loaders[0 if train else 1]:
            yield from zip(batch.images[:, 0].numpy(), batch.targets.numpy())
    finally:
        for loader in loaders:
            loader.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_cover_the_object_of_rotated_photos(kind, backend, tmp_path):
    made(tmp_path / "data", kind)
    colors = ("000000", "c80000") if kind == "colors" else None
    source = opened(tmp_path / "data", mask_colors=colors)
    assert len(source.class_names) == 2
    seen = 0
    for train in (False, True):
        for gray, classes in samples(source, backend, train=train):
            white, marked, known = gray > 127, classes == 1, classes != IGNORE
            union = ((white | marked) & known).sum()
            assert union > 0
            assert (white & marked).sum() / union > 0.9
            seen += 1
    assert seen == 2 * COUNT
