"""An encoded image to pixels by Pillow: the same ones as DALI's, where there is no DALI.

EXIF orientation is ignored and alpha is dropped, as torchvision does.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""What every backend decodes, named as Pillow names it; MPO is a phone's JPEG with a second one behind it."""
MAX_PIXELS = 178_956_970
"""Where Pillow refuses too: a file of a few bytes can declare billions of pixels."""


_DECODERS = tuple(name for name in FORMATS if name != "MPO")  # which Pillow opens as a JPEG


class DecodeError(ValueError):
    """Bytes that are not the image they should be; the message says why."""


def decode(
    data: np.ndarray,
    channels: int,
    size: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Encoded bytes, uint8 [length], to pixels, uint8 [H, W, channels].

    Args:
        channels: 3 (RGB) or 1 (grey).
        size: height and width that the image has.
        region: top, left, height and width of the part that is wanted, instead of all.

    Raises:
        DecodeError: it cannot be decoded, or has another size.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        image: Image.Image = Image.open(io.BytesIO(data.tobytes()), formats=_DECODERS)
        if size is not None and image.size != (size[1], size[0]):
            raise DecodeError("changed since its header was read")
        if mode == "L":
            image.draft("L", image.size)  # a JPEG's own luma, as DALI takes it
        image.load()
        image.info.pop("transparency", None)  # dropped anyway, and a palette's makes Pillow warn
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError("not an image") from error
    except Exception as error:  # foreign bytes lead a decoder anywhere
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error
    if region is not None:
        top, left, height, width = region
        image = image.crop((left, top, left + width, top + height))
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        wide = np.asarray(image).astype(np.uint32).clip(max=65_535)
        image = Image.fromarray(((wide * 255 + 32_767) // 65_535).astype(np.uint8))
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]
