"""Small sets of images with boxes in the formats of label tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.boxes.source import box_source
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.targets import Boxes
from small_sources import message_of


def picture(path: Path, size: tuple[int, int] = (200, 100)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, format="JPEG")


def opened(root: object, val_split: float | None = None, skip: bool = False, **others: Any) -> Source:
    settings = DataSettings(
        data=str(root), val_split=val_split, bad_labels="skip" if skip else "stop", **others
    )
    return box_source(settings, seed=0)


def refusal(root: object, val_split: float | None = None, skip: bool = False, **others: Any) -> str:
    return message_of(lambda: opened(root, val_split, skip, **others))


def boxes(split: Split) -> list[list[list[float]]]:
    """Of each image, rounded to a thousandth of a pixel."""
    assert isinstance(split.annotations, Boxes)
    assert split.annotations.values.dtype == np.float32
    return [split.annotations.of(i).astype(np.float64).round(3).tolist() for i in range(len(split))]


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
ANNOTATIONS = [
    {"id": 11, "image_id": 7, "category_id": 90, "bbox": [10, 20, 30.5, 40], "iscrowd": 0},
    {"id": 12, "image_id": 5, "category_id": 3, "bbox": [0, 0, 200, 100], "segmentation": [[1, 2]]},
    {"id": 13, "image_id": 7, "category_id": 3, "bbox": [-0.5, 90, 20, 10.7], "iscrowd": 1},
]


def coco(path: Path, files: Sequence[str], annotations: Sequence[Any] = (), **others: Any) -> None:
    """Images 5, 6, 7, ... with these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 5 + i, "file_name": name} for i, name in enumerate(files)]
    content = {"images": images, "annotations": list(annotations), "categories": CATEGORIES, **others}
    path.write_text(json.dumps(content))


def voc(root: Path, name: str, *objects: tuple[str, int, Sequence[object]]) -> Path:
    """An image with objects: class, difficult, xmin, ymin, xmax, ymax."""
    picture(root / "JPEGImages" / f"{name}.jpg")
    items = "".join(
        f"<object><name>{kind}</name><difficult>{difficult}</difficult><part><name>head</name></part><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
        + "</bndbox></object>\n"
        for kind, difficult, box in objects
    )
    path = root / "Annotations" / f"{name}.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"<annotation><filename>{name}.jpg</filename>\n{items}</annotation>")
    return path
