"""Read boxes of COCO's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastcnn.data.sources.boxes.rows import BoxSet, LabeledImages, Rows
from fastcnn.data.sources.coco import Coco, find_coco, locate, read_coco_files
from fastcnn.data.sources.label_files import BadLabels
from fastcnn.data.sources.layout import Phase


def read_coco_set(root: Path, file: Path | None, bad: BadLabels) -> BoxSet | None:
    """Read a set of COCO files; None if there is none.

    Args:
        file: the only file; None: those in `root`.
    """
    files: dict[Phase, Path] = {"train": file} if file is not None else find_coco(root)
    if not files:
        return None
    read = read_coco_files(files)
    categories = read["train"].categories
    classes = {key: i for i, key in enumerate(categories)}
    parts = {phase: _labeled(root, coco, phase, classes, bad) for phase, coco in read.items()}
    return BoxSet(parts=parts, class_names=tuple(categories.values()))


def _labeled(root: Path, coco: Coco, phase: Phase, classes: dict[Any, int], bad: BadLabels) -> LabeledImages:
    located = locate(root, coco, phase)
    for (key, name), path in zip(coco.images.items(), located.paths):
        if path is None:
            bad.add(f"{coco.path}, image {key}", f"{name} is not in {located.looked[0]}")
    keys = [key for key, path in zip(coco.images, located.paths) if path is not None]
    index: dict[Any, int | None] = {**dict.fromkeys(coco.images), **{key: i for i, key in enumerate(keys)}}
    rows = coco_rows(coco, index, classes, bad)
    if located.guessed:
        rows.remarks.append(
            f"images found in {located.looked[0]} by the last part of their names: {located.guessed:,}"
        )
    return LabeledImages(
        key=str(coco.path.resolve()),
        images=[path for path in located.paths if path is not None],
        rows=rows,
        looked=str(coco.path),
        stated=np.array([coco.sizes[key] for key in keys], dtype=np.int64).reshape(-1, 2),
        place=lambda image: f"{coco.path}, image {keys[image]}",
    )


def coco_rows(coco: Coco, index: dict[Any, int | None], classes: dict[Any, int], bad: BadLabels) -> Rows:
    """Return the boxes of a COCO file.

    Args:
        index: image numbers by image id; None for a skipped image.
        classes: class numbers by category id.
        bad: collects the annotations of no image.
    """

    def where(image: int, number: int) -> str:
        annotation = coco.annotations[number]
        known = isinstance(annotation, dict) and "id" in annotation
        return f"{coco.path}, annotation {annotation['id'] if known else f'at place {number}'}"

    rows = Rows(where)
    for number, annotation in enumerate(coco.annotations):
        try:
            image, category = annotation["image_id"], annotation["category_id"]
            if image not in index:
                bad.add(where(0, number), f"image {image}, which is not listed")
                continue
            place = index[image]
            if place is None:
                continue
            if category not in classes:
                rows.add_broken(place, number, f"category {category}, which is none of the {len(classes)}")
                continue
            left, top, width, height = map(float, annotation["bbox"])
            crowd = bool(annotation.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, OverflowError):
            bad.add(where(0, number), "not image_id, category_id and a bbox of four numbers")
            continue
        rows.values.append((place, number, classes[category], left, top, left + width, top + height, crowd))
    return rows
