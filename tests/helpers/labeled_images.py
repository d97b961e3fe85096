"""Images whose labels are in tables: several labels an image, and imbalanced classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {"red": (230, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 230)}


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_tagged(root: Path, count: int) -> Path:
    """Draw images with none to three colors each, and write their table, tags.csv."""
    rng = np.random.default_rng(0)
    rows = [["image_id", "colors"]]
    for i in range(count):
        colors = [color for color in COLORS if rng.random() < 0.5]
        _draw(root / "images" / f"{i:03}.png", colors, rng)
        rows.append([f"{i:03}", ";".join(colors)])
    write_csv(root / "tags.csv", rows)
    return root


def write_imbalanced(root: Path, counts: Sequence[int]) -> Path:
    """Draw so many red, green and blue images for training and 6 of each for validation, with metadata."""
    rng = np.random.default_rng(1)
    for phase, numbers in (("train", counts), ("val", (6, 6, 6))):
        rows = [["file_name", "label"]]
        for color, count in zip(COLORS, numbers):
            for i in range(count):
                _draw(root / phase / f"{color}{i}.png", [color], rng)
                rows.append([f"{color}{i}.png", color])
        write_csv(root / phase / "metadata.csv", rows)
    return root


def _draw(path: Path, colors: Sequence[str], rng: np.random.Generator) -> None:
    """Draw noise with a rectangle of each color."""
    pixels = rng.integers(90, 150, (32, 32, 3), dtype=np.uint8)
    for i, color in enumerate(colors):
        y = rng.integers(0, 6)
        pixels[y : y + 20, 11 * i : 11 * i + 10] = COLORS[color]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
