"""Decode large JPEGs at a half, quarter or eighth of their size, in the inverse DCT.

A photo of 12 megapixels is shrunk to a few hundred pixels a side. Decoding it at a reduced scale skips most
of the inverse DCT, the color conversion and the resize; what remains is the entropy decoding.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fastcnn.data.decode import TRANSPOSED, decode, stored_region, turned_upright

FACTORS = (8, 4, 2)
"""Reductions of the JPEG decoder, largest first."""
PIXELS_LEFT = 2
"""Minimum number of decoded pixels per side for each pixel of the result: the DCT is another low-pass filter
than the resize."""


def reduction(region: tuple[int, int], shape: tuple[int, int]) -> int:
    """Return the factor by which a JPEG may be reduced in decoding: 8, 4, 2, or 1.

    Args:
        region: height and width of the decoded region at full size.
        shape: height and width to which it is resized.
    """
    least = min(side // (PIXELS_LEFT * wanted) for side, wanted in zip(region, shape))
    return next((factor for factor in FACTORS if factor <= least), 1)


def is_jpeg(data: np.ndarray | bytes) -> bool:
    """Return whether encoded bytes begin as a JPEG."""
    return bytes(data[:3]) == b"\xff\xd8\xff"


def decode_reduced(
    data: np.ndarray,
    channels: int,
    size: tuple[int, int],
    region: tuple[int, int, int, int],
    shape: tuple[int, int],
    *,
    orientation: int,
) -> np.ndarray:
    """Decode a JPEG at a reduced scale and resize a region of it, with antialiasing.

    Args:
        data, channels, size, orientation: see `fastcnn.data.decode.decode`.
        region: top, left, height and width, upright, in pixels of the full size.
        shape: height and width of the result; `reduction` must allow more than 1.

    Returns:
        Pixels, uint8 [*shape, channels]; the whole region at full size if the reduced decoding fails.

    Raises:
        DecodeError: undecodable, or of another size.
    """
    mode = "L" if channels == 1 else "RGB"
    turned = orientation >= TRANSPOSED
    stored = size if turned else size[::-1]  # width and height
    factor = reduction(region[2:], shape)
    try:
        image = Image.open(io.BytesIO(data.tobytes()), formats=("JPEG",))
        if image.size != stored:
            raise ValueError("changed since its header was read")
        image.draft(mode, (stored[0] // factor, stored[1] // factor))
        image.decodermaxblock = len(data)  # one block: the decoder repeats a row that a block cuts
        image.load()
    except Exception:  # full decoding succeeds or names the reason
        return decode(data, channels, size, region, orientation=orientation)
    top, left, height, width = (side / factor for side in stored_region(region, stored, orientation))
    x, y = int(left), int(top)
    # Cut as full decoding does, outwards to whole pixels; the rest of the way is the resize's.
    part = image.crop((x, y, int(np.ceil(left + width)), int(np.ceil(top + height))))
    part = part if part.mode == mode else part.convert(mode)
    part = part.resize(
        shape if turned else shape[::-1],
        Image.Resampling.BILINEAR,
        box=(left - x, top - y, left - x + width, top - y + height),
    )
    pixels = np.asarray(turned_upright(part, orientation))
    return pixels if pixels.ndim == 3 else pixels[..., None]
