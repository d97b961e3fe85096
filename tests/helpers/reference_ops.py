"""Reference implementations of the augmentation operations: Pillow and torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

BILINEAR = InterpolationMode.BILINEAR


def shear(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    degrees = [math.degrees(math.atan(part)) for part in (x, y)]
    return F.affine(image, 0, [0, 0], 1, degrees, BILINEAR, center=[0, 0])


FILL = (10, 20, 30)


def picture(size: int, channels: int, seed: int = 0) -> np.ndarray:
    """Return smooth shapes with some noise, uint8 [size, size, channels]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    noisy = (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    return noisy[..., :channels]


REFERENCES: dict[str, Any] = {
    "identity": lambda image, v: image,
    "rotate": lambda image, v: F.rotate(image, v, BILINEAR),
    "shear_x": lambda image, v: shear(image, v, 0),
    "shear_y": lambda image, v: shear(image, 0, v),
    "translate_x": lambda image, v: F.affine(image, 0, [v, 0], 1, [0, 0]),
    "translate_y": lambda image, v: F.affine(image, 0, [0, v], 1, [0, 0]),
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "sharpness": F.adjust_sharpness,
    "posterize": lambda image, v: F.posterize(image, int(v)),
    "solarize": F.solarize,
    "autocontrast": lambda image, v: F.autocontrast(image),
    "equalize": lambda image, v: F.equalize(image),
    "invert": lambda image, v: F.invert(image),
}
VALUES = {
    "rotate": (-25.0, 7.0),
    **dict.fromkeys(("shear_x", "shear_y"), (-0.3, 0.9)),
    **dict.fromkeys(("translate_x", "translate_y"), (-5.0, 3.0)),
    **dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), (0.1, 0.9, 1.9)),
    "posterize": (2.0, 8.0),
    "solarize": (0.0, 100.0, 255.0),
}
