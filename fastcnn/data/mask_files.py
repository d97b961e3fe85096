"""Mask files: their stored values, or the places of their colors in a palette."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from fastcnn.data.decode import DecodeError, orientation_of
from fastcnn.data.reading import read_file
from fastcnn.errors import ReadError

MAX_COLORS = 255
"""Colors of a palette at most; value 255 marks the others."""
UNKNOWN_COLOR = 255
COLOR_PROBLEM = "a mask of colors; list the color of each class with --mask-colors"
"""Reason for a mask of colors without a palette."""


class StoredMasks(Protocol):
    """N masks of values from 0 to 255."""

    def read(self, index: int) -> np.ndarray:
        """Return the values of a mask, uint8 [H, W]; DecodeError if it is unreadable."""

    def take(self, indices: np.ndarray) -> StoredMasks:
        """Return the masks of the images at `indices`, in that order."""


@dataclass(frozen=True)
class Palette:
    """Colors of the values 0, 1, ... of a mask."""

    colors: tuple[int, ...]
    """Colors as 0xRRGGBB, different ones, at most `MAX_COLORS`."""
    origin: str
    """The file or flag that lists them, for messages."""

    @cached_property
    def table(self) -> np.ndarray:
        """Value of each color, uint8 [2 ** 24]; `UNKNOWN_COLOR` for colors outside the palette."""
        table = np.full(1 << 24, UNKNOWN_COLOR, dtype=np.uint8)
        table[list(self.colors)] = np.arange(len(self.colors))
        return table


@dataclass(frozen=True, kw_only=True)
class MaskFiles:
    """Masks in image files."""

    paths: tuple[str, ...]
    palette: Palette | None = None
    """Colors of the values; None: gray values, or indices of palette images."""
    upright: bool = True
    """Turn masks by an EXIF orientation of their own, as images are."""

    def read(self, index: int) -> np.ndarray:
        return read_mask(self.paths[index], self.palette, upright=self.upright)

    def take(self, indices: np.ndarray) -> MaskFiles:
        paths = tuple(self.paths[i] for i in indices.tolist())
        return MaskFiles(paths=paths, palette=self.palette, upright=self.upright)


@dataclass(frozen=True)
class MaskArrays:
    """Masks in memory."""

    arrays: Sequence[np.ndarray]
    """N masks, uint8 [H, W] each."""

    def read(self, index: int) -> np.ndarray:
        return self.arrays[index]

    def take(self, indices: np.ndarray) -> MaskArrays:
        return MaskArrays([self.arrays[i] for i in indices.tolist()])


def read_mask(path: str, palette: Palette | None = None, *, upright: bool = True) -> np.ndarray:
    """Read the values of a mask, uint8 [H, W].

    Without a palette these are gray values, or the indices of a palette image. With one they are the places
    of the colors in it.

    Raises:
        DecodeError: missing, not an image, values above 255, colors outside the palette, or colors without a
            palette (`COLOR_PROBLEM`).
    """
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            turned = ImageOps.exif_transpose(image) if upright and orientation_of(image) > 1 else image
            turned.info.pop("transparency", None)  # of a palette or a single color; both are values here
            return _values(turned) if palette is None else _places(turned, palette, image.format)
    except (DecodeError, MemoryError, ReadError):
        raise
    except Exception as error:  # a decoder may raise anything on corrupt bytes
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(reason) from error


def _values(image: Image.Image) -> np.ndarray:
    if image.mode == "P":
        return np.asarray(image, dtype=np.uint8)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        pixels = np.asarray(image)
        with np.errstate(invalid="ignore"):
            values = pixels.astype(np.uint8)
        if (values != pixels).any():
            strange = pixels[values != pixels][0]
            raise DecodeError(f"value {strange:g}; save it as an 8-bit PNG with values from 0 to 255")
        return values
    colors = _colors(image)
    gray = colors & 0xFF
    if (colors != gray * 0x010101).any():
        raise DecodeError(COLOR_PROBLEM)
    return gray.astype(np.uint8)


def _places(image: Image.Image, palette: Palette, format: str | None) -> np.ndarray:
    gray = image.mode in ("L", "F") or image.mode.startswith("I")
    codes = _values(image).astype(np.uint32) * 0x010101 if gray else _colors(image)
    places = palette.table[codes]
    strange = np.argwhere(places == UNKNOWN_COLOR)
    if len(strange):
        y, x = strange[0].tolist()
        advice = "add it there"
        if gray:
            advice += ", or write --mask-values 0 1 ... if masks hold class numbers, not colors"
        if format in ("JPEG", "MPO"):
            advice = "JPEG changes colors: export masks as PNG"
        raise DecodeError(
            f"color {codes[y, x]:06x} at x {x}, y {y} is none of the {len(palette.colors)} colors of "
            f"{palette.origin}; {advice}"
        )
    return places


def _colors(image: Image.Image) -> np.ndarray:
    """Return the colors of an image as 0xRRGGBB, uint32 [H, W], without alpha."""
    if image.mode not in ("1", "P", "RGB", "RGBA", "LA"):
        raise DecodeError(
            f"an image of mode {image.mode}; a mask is a PNG of class numbers, palette, 8-bit gray or RGB"
        )
    codes = np.asarray(image.convert("RGBA")).view(">u4")[..., 0]
    colors = (codes >> 8).astype(np.uint32)
    if image.mode in ("RGBA", "LA"):
        clear = codes & 0xFF == 0
        both = np.intersect1d(colors[clear], colors[~clear])
        if len(both):
            raise DecodeError(
                f"color {both[0]:06x} is opaque at some pixels and transparent at others; "
                "save the mask without transparency"
            )
    return colors


def colors_of(path: str) -> dict[int, int]:
    """Return the number of pixels of each color, 0xRRGGBB, of a mask of colors; none if it is unreadable."""
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            colors, counts = np.unique(_colors(image), return_counts=True)
    except (MemoryError, ReadError):
        raise
    except Exception:  # reported when the mask is read
        return {}
    return dict(zip(colors.tolist(), counts.tolist()))
