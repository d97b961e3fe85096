"""Outputs of `fastcnn predict` for machines: CSV, JSON Lines, COCO JSON and label PNGs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from PIL import Image

from fastcnn import files
from fastcnn.inference.results import Classified, Detected, Prediction, Segmented
from fastcnn.viz.pictures import class_color

STDOUT = "-"
GRAY = (128, 128, 128)


class Output(Protocol):
    """One output of all images."""

    def add(self, prediction: Prediction, truth: str | None) -> None:
        """Add an image; `truth` is its true class, None if that is unknown."""


def rows_of(prediction: Prediction) -> list[dict[str, Any]]:
    """Return one row for each class, box or region of an image, in plain types."""
    if isinstance(prediction, Classified):
        return [{"class": i, "name": name, "score": round(score, 6)} for i, name, score in prediction.labels]
    if isinstance(prediction, Detected):
        return [
            {"class": i, "name": name, "score": round(score, 6), "box": [round(side, 3) for side in box]}
            for i, name, score, *box in prediction.boxes
        ]
    assert isinstance(prediction, Segmented)
    return [
        {"class": i, "name": name, "pixels": pixels, "share": round(share, 6)}
        for i, name, pixels, share in prediction.regions
    ]


class JsonLines:
    """A line for each image."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def add(self, prediction: Prediction, truth: str | None) -> None:
        line = {"image": prediction.image, "width": prediction.width, "height": prediction.height}
        known = {} if truth is None else {"truth": truth}
        print(json.dumps({**line, **known, "predictions": rows_of(prediction)}), file=self.stream)


class Csv:
    """A row for each class, box or region, below a line of column names; none for an image without any."""

    def __init__(self, stream: TextIO) -> None:
        self.writer = csv.writer(stream, lineterminator="\n")
        self.begun = False

    def add(self, prediction: Prediction, truth: str | None) -> None:
        head = {"image": prediction.image, "width": prediction.width, "height": prediction.height}
        if not self.begun:
            self.begun = True
            self.writer.writerow(
                [*head, *([] if truth is None else ["truth"]), "rank", *_columns(prediction)]
            )
        for rank, row in enumerate(rows_of(prediction), 1):
            box = row.pop("box", [])
            known = [] if truth is None else [truth]
            self.writer.writerow([*head.values(), *known, rank, *row.values(), *box])


def _columns(prediction: Prediction) -> list[str]:
    if isinstance(prediction, Segmented):
        return ["class", "name", "pixels", "share"]
    corners = ["left", "top", "right", "bottom"] if isinstance(prediction, Detected) else []
    return ["class", "name", "score", *corners]


class Coco:
    """COCO JSON of boxes or masks. Image and category ids count from 1."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, prediction: Prediction, truth: str | None) -> None:
        size = {"width": prediction.width, "height": prediction.height}
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": prediction.image, **size})
        found = _coco_boxes(prediction) if isinstance(prediction, Detected) else _coco_masks(prediction)
        for annotation in found:
            identity = {"id": len(self.annotations) + 1, "image_id": number}
            self.annotations.append({**identity, **annotation})

    def text(self) -> str:
        content = {"images": self.images, "categories": self.categories, "annotations": self.annotations}
        return json.dumps(content)


def _coco_boxes(prediction: Detected) -> Iterator[dict[str, Any]]:
    for row in rows_of(prediction):
        left, top, right, bottom = row["box"]
        width, height = round(right - left, 3), round(bottom - top, 3)
        bbox = {"bbox": [left, top, width, height], "area": round(width * height, 3), "iscrowd": 0}
        yield {"category_id": row["class"] + 1, "score": row["score"], **bbox, "segmentation": []}


def _coco_masks(prediction: Prediction) -> Iterator[dict[str, Any]]:
    assert isinstance(prediction, Segmented)
    for region in prediction.regions:
        inside = prediction.mask == region.class_id
        (top, bottom), (left, right) = (_ends(inside.any(axis=axis)) for axis in (1, 0))
        runs = {"size": list(inside.shape), "counts": run_lengths(inside)}
        bbox = {"bbox": [left, top, right - left, bottom - top], "area": region.pixels}
        yield {"category_id": region.class_id + 1, **bbox, "iscrowd": 1, "segmentation": runs}


def _ends(occupied: np.ndarray) -> tuple[int, int]:
    """Return the first True, and the place after the last."""
    places = np.flatnonzero(occupied)
    return int(places[0]), int(places[-1]) + 1


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's run-length encoding of a mask, bool [H, W]: column by column, from False on."""
    values = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(values[1:] != values[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


class LabelPngs:
    """A palette PNG of class numbers for each image, in its original size.

    Args:
        folder: a file there has the name of the image, with the suffix .png.
    """

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self.folder = folder
        colors = [class_color(number) for number in range(len(class_names))]
        self.palette = [level for color in [*colors, *[GRAY] * 256][:256] for level in color]

    def path(self, name: str) -> Path:
        return (self.folder / name).with_suffix(".png")

    def add(self, prediction: Prediction, truth: str | None) -> None:
        assert isinstance(prediction, Segmented)
        picture = Image.fromarray(prediction.mask)
        picture.putpalette(self.palette)
        path = self.path(prediction.image)
        with files.of_flag("--label-pngs"):
            files.make_folder(path.parent, "the folder")
            files.save_picture(picture, path, "the labels")


@contextmanager
def text_file(path: Path, flag: str) -> Iterator[TextIO]:
    """Open a text file that gets its name at the end; - is standard output."""
    if str(path) == STDOUT:
        yield sys.stdout
        return
    with files.of_flag(flag), files.writing(files.expand_user(path, flag), "the predictions") as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="\n")
        try:
            yield text
            text.flush()
        finally:
            text.detach()
