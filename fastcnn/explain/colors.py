"""Arrays as colors, and tiles of one size for pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fastcnn.viz.pictures import grid


def colored(values: np.ndarray, name: str) -> np.ndarray:
    """Return values [H, W] from 0 to 1 in a color map of matplotlib, uint8 [H, W, 3]."""
    from matplotlib import colormaps

    return colormaps[name](values.clip(0, 1), bytes=True)[..., :3]


def diverging(values: np.ndarray) -> np.ndarray:
    """Return values [H, W] from -1 to 1 in blue, white and red, uint8 [H, W, 3]."""
    return colored((values + 1) / 2, "bwr")


def stretched(values: np.ndarray) -> np.ndarray:
    """Return values scaled so that they range from 0 to 1; constant ones become 0."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def tile(pixels: np.ndarray, side: int) -> Image.Image:
    """Return pixels uint8 [H, W, 3] as a picture with a longest side of `side`: repeated, or shrunk."""
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    if longest > side:
        picture.thumbnail((side, side))
        return picture
    factor = side // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def mosaic(tiles: Sequence[Image.Image], caption: str, columns: int = 8) -> Image.Image:
    """Arrange tiles in rows, with a caption above."""
    columns = min(columns, len(tiles))
    blank = Image.new("RGB", tiles[0].size, "white")
    cells = [*tiles, *[blank] * (-len(tiles) % columns)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return grid(rows, [""] * columns, caption)
