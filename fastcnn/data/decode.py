"""Decode images with Pillow, to the same pixels as DALI.

Alpha is dropped, as in torchvision. Images are turned upright by their EXIF orientation, if one is given. A
TIFF's orientation is not EXIF: Pillow always applies it. Of an animation the first frame is taken.
"""

from __future__ import annotations

import importlib.util
import io
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastcnn.data.arrays import (
    FULL,
    Levels,
    array_kind,
    deep_color,
    is_deep_color,
    is_wide,
    mapped,
    read_array,
    to_bytes,
)

SHARED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""Formats decoded by DALI too, with Pillow's names. MPO is a JPEG followed by a second one."""
OTHER_FORMATS = ("GIF", "JPEG2000", "AVIF", "HEIF")
"""Formats decoded by Pillow alone; HEIF by its plugin pillow-heif, AVIF from Pillow 11.3 on."""

TRANSPOSED = 5
"""EXIF orientations from here on exchange height and width."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How Pillow turns an image of each EXIF orientation upright."""


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that can be decoded here, with Pillow's names to open them."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    # Pillow opens MPO as JPEG.
    return tuple(name for name in SHARED_FORMATS + OTHER_FORMATS if name in Image.OPEN and name != "MPO")


class DecodeError(ValueError):
    """Undecodable bytes, or an unexpected image; the message is the reason."""


def decode(
    data: np.ndarray,
    channels: int,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
    *,
    orientation: int = 1,
    levels: Levels | None = None,
) -> np.ndarray:
    """Decode bytes, uint8 [length], to pixels, uint8 [H, W, channels].

    Args:
        channels: 3 (RGB), 1 (gray), or the number of an array's channels.
        size: expected height and width, upright.
        region: top, left, height and width of the region to return, upright; None: the whole image.
        orientation: EXIF orientation by which the image is turned upright; 1: as stored.
        levels: levels of an image of more than 8 bits; None: its own.

    Raises:
        DecodeError: undecodable, or of another size or number of channels.
        MemoryError: too little memory, an error of the machine.
    """
    mode = "L" if channels == 1 else "RGB"
    encoded = data.tobytes()
    try:
        kind = array_kind(encoded)
        if kind is not None:
            values = read_array(encoded, kind, window=levels is None)
            return fitted(mapped(values, levels), channels, size, region)
        if channels not in (1, 3):
            raise DecodeError(f"an image of gray or color, not of {channels} channels")
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=formats())
        turned = orientation >= TRANSPOSED
        if image.format != "TIFF":
            _check_size(image, size[::-1] if turned and size is not None else size)
        if mode == "L":
            image.draft("L", image.size)  # a JPEG's luma channel, as in DALI
        if levels not in (None, FULL) and is_deep_color(image):
            image = Image.fromarray(to_bytes(deep_color(encoded, formats()), levels))
        image.load()
        if image.format == "TIFF":  # which load() has turned
            _check_size(image, size)
        image.info.pop("transparency", None)  # alpha is dropped; a palette's makes Pillow warn
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DecodeError("not an image") from error
    except Exception as error:  # a decoder may raise anything on corrupt bytes
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error
    if region is not None:
        top, left, height, width = stored_region(region, image.size, orientation)
        image = image.crop((left, top, left + width, top + height))
    return pixels_of(image, channels, orientation, levels)


def pixels_of(
    image: Image.Image, channels: int, orientation: int = 1, levels: Levels | None = None
) -> np.ndarray:
    """Convert a loaded image of Pillow to pixels, uint8 [H, W, channels]; see `decode`.

    Args:
        channels: 3 (RGB) or 1 (gray).
    """
    if is_wide(image):  # Pillow would clip at 255
        image = Image.fromarray(to_bytes(np.asarray(image), levels or FULL))
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.asarray(turned_upright(image, orientation))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image, or a part of it, turned by its EXIF orientation."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def value_range(data: np.ndarray) -> tuple[float, float, bool, bool]:
    """Return the smallest and largest value of an encoded image of more than 8 bits.

    Returns:
        Both, whether values are whole numbers, and whether the file has a window of its own.

    Raises:
        DecodeError: undecodable.
    """
    encoded = data.tobytes()
    window = False
    try:
        kind = array_kind(encoded)
        if kind is not None:
            pixels, _, _, window = read_array(encoded, kind, window=False)
        else:
            with Image.open(io.BytesIO(encoded), formats=formats()) as image:
                pixels = deep_color(encoded, formats()) if is_deep_color(image) else np.asarray(image)
        finite = pixels[np.isfinite(pixels)]
        whole = pixels.dtype.kind != "f" or bool((finite == np.rint(finite)).all() and abs(finite).max() > 1)
        return float(finite.min()), float(finite.max()), whole, window
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on corrupt bytes
        raise DecodeError(str(error)) from error


def _check_size(image: Image.Image, size: tuple[int, int] | None) -> None:
    """Raise DecodeError if an image does not have the expected height and width."""
    if size is not None and image.size != size[::-1]:
        raise DecodeError("changed since its header was read")


def fitted(
    pixels: np.ndarray,
    channels: int,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Return an array, uint8 [H, W, C], or a region of it, with other channels if it is gray or color.

    Raises:
        DecodeError: of another size, or neither gray nor color and of other channels.
    """
    if size is not None and pixels.shape[:2] != size:
        raise DecodeError("changed since its header was read")
    top, left, height, width = region or (0, 0, *pixels.shape[:2])
    pixels = pixels[top : top + height, left : left + width]
    bands = pixels.shape[2]
    if bands == channels:
        return np.ascontiguousarray(pixels)
    if bands == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if bands == 3 and channels == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    raise DecodeError(f"an image of {bands} channels, not of {channels}")


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 without a valid one."""
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode all of it in search of one
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # malformed EXIF does not make an image unreadable
        return 1
    return value if value in _TURNS else 1


def stored_region(
    region: tuple[int, int, int, int], stored: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Return the stored pixels of an upright region.

    Args:
        region: top, left, height and width in the upright image.
        stored: width and height as stored.
    """
    top, left, height, width = region
    if orientation >= TRANSPOSED:
        top, left, height, width = left, top, width, height
    columns, rows = stored
    if orientation in (2, 3, 7, 8):  # stored from right to left
        left = columns - left - width
    if orientation in (3, 4, 6, 7):  # stored from bottom to top
        top = rows - top - height
    return top, left, height, width
