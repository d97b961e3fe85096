"""True classes of images in class folders: accuracy, and a picture of truths beside predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastcnn.inference.find_images import NamedImage
from fastcnn.inference.predictor import Outcome, Predictor
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.gallery import rgb
from fastcnn.viz.pictures import enlarged, grid, printable, with_caption

COLUMNS, ROWS = 8, 6
"""Images in the picture at most, evenly spaced over all."""
SIDE = 224
"""Side in pixels to which larger images are shrunk in the picture."""
RIGHT, WRONG = (46, 139, 87), (205, 51, 51)


class Truths:
    """The true class of each image, from the name of its folder.

    Args:
        classes: class number of each image.
    """

    def __init__(self, classes: Sequence[int], class_names: Sequence[str]) -> None:
        self.classes = classes
        self.class_names = class_names
        places = np.linspace(0, len(classes) - 1, min(len(classes), COLUMNS * ROWS))
        self.chosen = set(places.astype(int).tolist())
        self.cells: list[Image.Image] = []
        self.count = self.correct = 0

    def add(self, number: int, outcome: Outcome) -> str:
        """Count an image, draw it if it is one of the chosen, and return the name of its class."""
        assert outcome.raw is not None
        truth, predicted = self.classes[number], int(outcome.raw.argmax())
        self.count += 1
        self.correct += truth == predicted
        if number in self.chosen:
            self.cells.append(self._cell(outcome, truth, predicted))
        return self.class_names[truth]

    def summary(self) -> str:
        return f"accuracy {100 * self.correct / max(self.count, 1):.2f}% of {self.count:,} images"

    def picture(self) -> Image.Image:
        """Return the chosen images in a grid: below each its truth, then its prediction, green or red."""
        blank = Image.new("RGB", self.cells[0].size, "white")
        columns = min(COLUMNS, len(self.cells))
        padded = [*self.cells, *[blank] * (-len(self.cells) % columns)]
        rows = [padded[i : i + columns] for i in range(0, len(padded), columns)]
        return grid(rows, [""] * columns, f"truth, prediction: {self.summary()}")

    def _cell(self, outcome: Outcome, truth: int, predicted: int) -> Image.Image:
        assert outcome.pixels is not None
        assert outcome.raw is not None
        image = Image.fromarray(rgb(torch.from_numpy(outcome.pixels).permute(2, 0, 1)))
        image.thumbnail((SIDE, SIDE))
        label = f"{self.class_names[predicted]} {100 * outcome.raw[predicted]:.1f}%"
        color = RIGHT if truth == predicted else WRONG
        return with_caption(
            with_caption(enlarged(image), [(self.class_names[truth], None)]), [(label, color)]
        )


def truths_of(images: Sequence[NamedImage], predictor: Predictor) -> Truths | None:
    """Return the true classes of a folder's images; None if it does not consist of folders of classes."""
    if not isinstance(predictor.task, Classification):
        return None
    numbers = {name: i for i, name in enumerate(predictor.class_names)}
    folders = [printable(Path(image.name).parts[0]) if "/" in _posix(image) else "" for image in images]
    unknown = [folder for folder in folders if folder not in numbers]
    if not unknown:
        return Truths([numbers[folder] for folder in folders], predictor.class_names)
    if len(unknown) < len(folders):
        name = f"{unknown[0]} is no class of the network" if unknown[0] else "some images are in none"
        print(f"warning: no accuracy, since not all folders are classes: {name}", file=sys.stderr)
    return None


def _posix(image: NamedImage) -> str:
    return Path(image.name).as_posix()
