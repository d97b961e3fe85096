"""Decode images with Pillow, to the same pixels as DALI.

EXIF orientation is ignored and alpha is dropped, as in torchvision.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""Formats decoded by every backend, with Pillow's names. MPO is a JPEG followed by a second one."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit: a file of a few bytes can declare billions of pixels."""

_DECODERS = tuple(name for name in FORMATS if name != "MPO")  # Pillow opens MPO as JPEG


class DecodeError(ValueError):
    """Undecodable bytes, or an unexpected image; the message is the reason."""


def decode(
    data: np.ndarray,
    channels: int,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Decode bytes, uint8 [length], to pixels, uint8 [H, W, channels].

    Args:
        channels: 3 (RGB) or 1 (gray).
        size: expected height and width.
        region: top, left, height and width of the region to return; None: the whole image.

    Raises:
        DecodeError: undecodable, or of another size.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        image: Image.Image = Image.open(io.BytesIO(data.tobytes()), formats=_DECODERS)
        if size is not None and image.size != (size[1], size[0]):
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
        top, left, height, width = region
        image = image.crop((left, top, left + width, top + height))
    if image.mode.startswith("I"):  # 16-bit gray: Pillow would clip at 255
        wide = np.asarray(image).astype(np.uint32).clip(max=65_535)
        image = Image.fromarray(((wide * 255 + 32_767) // 65_535).astype(np.uint8))
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]
