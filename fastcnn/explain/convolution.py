"""A single convolution of an image, with a known kernel or one of the user."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from fastcnn.data.decode import DecodeError, decode
from fastcnn.data.reading import read_file
from fastcnn.data.sources.headers import in_memory
from fastcnn.errors import BadImageError, UserError
from fastcnn.explain.colors import diverging, tile
from fastcnn.viz.pictures import grid, readable_on

KERNELS: dict[str, tuple[tuple[float, ...], ...]] = {
    "edge": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "blur": ((1 / 9,) * 3,) * 3,
    "emboss": ((-2, -1, 0), (-1, 1, 1), (0, 1, 2)),
}
MAX_SIDE = 64
"""Maximum rows and columns of a kernel."""
MAX_BYTES = 1_000_000
"""Maximum size of a kernel's file."""
CELL, NUMBERED = 56, 8
"""Side of a kernel's cell in the picture, and the most rows and columns with numbers in them."""
SHOWN = 448
"""Side in pixels to which larger images are shrunk in the picture."""


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """An image and its convolution."""

    image: np.ndarray
    """uint8 [H, W, 3]."""
    kernel: np.ndarray
    """float32 [h, w]."""
    response: np.ndarray
    """float32 [H, W, 3], for pixels from 0 to 255."""

    @property
    def shown(self) -> np.ndarray:
        """The response as pixels, uint8 [H, W, 3]: magnitudes if the kernel sums to 0, else clipped."""
        balanced = abs(float(self.kernel.sum())) < 1e-4
        values = abs(self.response) if balanced else self.response
        return values.clip(0, 255).round().astype(np.uint8)

    def picture(self) -> Image.Image:
        """Return image, kernel and response side by side."""
        cells = [tile(self.image, SHOWN), _drawn(self.kernel), tile(self.shown, SHOWN)]
        rows, columns = self.kernel.shape
        return grid([cells], ["image", f"kernel, {rows} x {columns}", "response"], "")


def convolve(image: Any, kernel: Any) -> Convolution:
    """Convolve each channel of an image, as a layer of a network does: without mirroring the kernel.

    Args:
        image: a path, encoded bytes, an image of Pillow or an array uint8 [H, W, 3].
        kernel: edge, sharpen, blur, emboss, a path, or rows of numbers; see `read_kernel`.

    Raises:
        UserError: no such kernel; BadImageError: an undecodable image.
    """
    pixels = _pixels(image)
    weights = read_kernel(kernel) if isinstance(kernel, str | Path) else _checked(kernel, "kernel")
    height, width = weights.shape
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[:, None].float()
    around = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
    response = F.conv2d(F.pad(planes, around, mode="replicate"), torch.from_numpy(weights)[None, None])
    return Convolution(image=pixels, kernel=weights, response=response[:, 0].permute(1, 2, 0).numpy())


def read_kernel(name: str | Path) -> np.ndarray:
    """Return a kernel by its name, or of a file of rows of numbers, float32 [h, w].

    Numbers are separated by spaces, commas or tabs.

    Raises:
        UserError: no such name and file, or a file of other content.
    """
    if str(name) in KERNELS:
        return np.array(KERNELS[str(name)], dtype=np.float32)
    try:
        text = read_file(Path(name), 0, MAX_BYTES).decode()
        rows = [[float(word) for word in line.replace(",", " ").split()] for line in text.splitlines()]
    except OSError as error:
        known = ", ".join(KERNELS)
        raise UserError(f"--kernel {name}: {error.strerror}; use {known}, or a file of numbers") from error
    except ValueError as error:
        raise UserError(f"--kernel {name}: not rows of numbers: {error}; write such as 0 -1 0") from error
    return _checked([row for row in rows if row], f"--kernel {name}")


def _drawn(kernel: np.ndarray) -> Image.Image:
    """Draw a kernel, red above 0 and blue below; with its numbers if it is small."""
    rows, columns = kernel.shape
    pixels = diverging(kernel / max(float(abs(kernel).max()), 1e-12))
    picture = tile(pixels, min(SHOWN, CELL * max(rows, columns)))
    if max(rows, columns) <= NUMBERED:
        drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
        for y, x in np.ndindex(rows, columns):
            red, green, blue = pixels[y, x].tolist()
            place = ((x + 0.5) * CELL, (y + 0.5) * CELL)
            color = readable_on((red, green, blue))
            drawing.text(place, f"{kernel[y, x]:.3g}", font=font, fill=color, anchor="mm")
    return picture


def _checked(rows: Any, what: str) -> np.ndarray:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or not 0 < len(rows) <= MAX_SIDE or not 0 < max(lengths) <= MAX_SIDE:
        raise UserError(f"{what}: use 1 to {MAX_SIDE} rows of equally many numbers, at most {MAX_SIDE}")
    kernel = np.asarray(rows, dtype=np.float32)
    if not math.isfinite(float(kernel.sum())):
        raise UserError(f"{what}: a number is infinite or none; use finite numbers")
    return kernel


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        return image
    try:
        data = image if isinstance(image, bytes) else read_file(image)
        files = in_memory("image", data)
        if files.problems:
            raise DecodeError(files.problems[0])
        orientation = 1 if files.orientations is None else int(files.orientations[0])
        return decode(np.frombuffer(data, dtype=np.uint8), 3, orientation=orientation)
    except (OSError, DecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadImageError(f"{_named(image)}: cannot be decoded: {reason}; leave it out") from error


def _named(image: Any) -> str:
    return "stdin" if isinstance(image, bytes) else str(image)
