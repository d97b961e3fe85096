"""An encoded image to pixels: the same ones as DALI's, where there is no DALI.

EXIF orientation is ignored and alpha is dropped, as torchvision does.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from fastcnn.data.manifest import FORMATS


class DecodeError(ValueError):
    """Bytes that are not an image; the message says why."""


def decode(data: np.ndarray, channels: int) -> np.ndarray:
    """Encoded bytes, uint8 [length], to pixels, uint8 [H, W, channels].

    Args:
        channels: 3 (RGB) or 1 (grey).

    Raises:
        DecodeError: it cannot be decoded.
    """
    try:
        if (
            data[:2].tobytes() == b"\xff\xd8"
        ):  # JPEG, whose decoder in torchvision is Pillow's, without the GIL
            mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
            return decode_image(torch.from_numpy(data), mode).permute(1, 2, 0).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data.tobytes()), formats=FORMATS) as image:
                return _to_uint8(image, "L" if channels == 1 else "RGB")
    except Exception as error:  # foreign bytes lead a decoder anywhere
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error


def _to_uint8(image: Image.Image, mode: str) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip 16-bit grey at 255
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32_767) // 65_535).astype(np.uint8))
    pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]
