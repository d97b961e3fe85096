"""Decode images with Pillow, to the same pixels as DALI.

Alpha is dropped, as in torchvision. Images are turned upright by their EXIF orientation, if one is given.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""Formats decoded by every backend, with Pillow's names. MPO is a JPEG followed by a second one."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit: a file of a few bytes can declare billions of pixels."""

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

_DECODERS = tuple(name for name in FORMATS if name != "MPO")  # Pillow opens MPO as JPEG


class DecodeError(ValueError):
    """Undecodable bytes, or an unexpected image; the message is the reason."""


def decode(
    data: np.ndarray,
    channels: int,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
    *,
    orientation: int = 1,
) -> np.ndarray:
    """Decode bytes, uint8 [length], to pixels, uint8 [H, W, channels].

    Args:
        channels: 3 (RGB) or 1 (gray).
        size: expected height and width, upright.
        region: top, left, height and width of the region to return, upright; None: the whole image.
        orientation: EXIF orientation by which the image is turned upright; 1: as stored.

    Raises:
        DecodeError: undecodable, or of another size.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        image: Image.Image = Image.open(io.BytesIO(data.tobytes()), formats=_DECODERS)
        turned = orientation >= TRANSPOSED
        if size is not None and image.size != (size if turned else size[::-1]):
            raise DecodeError("changed since its header was read")
        if mode == "L":
            image.draft("L", image.size)  # a JPEG's luma channel, as in DALI
        image.load()
        image.info.pop("transparency", None)  # alpha is dropped; a palette's makes Pillow warn
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError("not an image") from error
    except Exception as error:  # a decoder may raise anything on corrupt bytes
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error
    if region is not None:
        top, left, height, width = stored_region(region, image.size, orientation)
        image = image.crop((left, top, left + width, top + height))
    if image.mode.startswith("I"):  # 16-bit gray: Pillow would clip at 255
        wide = np.asarray(image).astype(np.uint32).clip(max=65_535)
        image = Image.fromarray(((wide * 255 + 32_767) // 65_535).astype(np.uint8))
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.asarray(image.transpose(_TURNS[orientation]) if orientation in _TURNS else image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


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
