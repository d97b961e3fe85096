"""What becomes of a sample's pixels in training: which operations, how strong, as pure functions of (seed,
epoch, sample).

A backend applies `Step` after `Step` to each sample after its crop and flip. What each operation means is
said here once; `fastcnn.data.torch_ops`, `dali_ops` and `batched_ops` do it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Uniforms = Callable[[int], np.ndarray]
"""So many random numbers from 0 to 1 for each sample, float64 [N, count]; each call takes further ones."""

OPERATIONS: dict[str, str] = {
    "identity": "nothing",
    "rotate": "degrees counterclockwise around the centre",
    "shear_x": "pixels to the left for each row below the first one",
    "shear_y": "pixels upwards for each column right of the first one",
    "translate_x": "pixels to the right",
    "translate_y": "pixels downwards",
    "brightness": "factor of all values",
    "contrast": "factor of the distance to the mean of the grey image",
    "saturation": "factor of the distance to the grey image",
    "hue": "turns, -0.5 to 0.5, around the grey axis in YIQ: linear, as in DALI",
    "sharpness": "factor of the distance to the image smoothed by 1 1 1, 1 5 1, 1 1 1; its border stays",
    "posterize": "highest bits that stay",
    "solarize": "value from which on values are inverted",
    "solarize_add": "added to values below 128",
    "autocontrast": "each channel stretched to 0 to 255",
    "equalize": "each channel's histogram equalized, as Pillow does",
    "invert": "255 minus the values",
    "lighting": "added to red, green, blue (to grey: the mean of the three)",
    "erase": "top, left, height, width in pixels, filled with `Augment.fill`",
}
"""What the values of each operation mean, which there are at most four of. Images are uint8; results are
rounded, and clipped to 0 to 255. Grey is 0.299 R + 0.587 G + 0.114 B. Geometric ones interpolate bilinearly
over black."""


@dataclass(frozen=True)
class Augment:
    """Settings, as of the flags of the same names."""

    aa: str = "none"
    color_jitter: tuple[float, ...] | None = None
    grayscale_prob: float = 0.0
    lighting: float = 0.0
    lighting_components: tuple[tuple[float, float, float], ...] = ()
    """[3][3]: the principal components of colour, each times the square root of its variance, in values from
    0 to 255."""
    rotate: float = 0.0
    reprob: float = 0.0
    cutout: int = 0
    fill: tuple[int, ...] = (124, 116, 104)
    """Mean colour, uint8."""


@dataclass(frozen=True)
class Step:
    """One operation for each of N samples."""

    kinds: tuple[str, ...]
    """Operations that may occur here: the same in all batches of a run, in the same order."""
    code: np.ndarray
    """[N] int32: which of them."""
    values: np.ndarray
    """[N, 4] float32: as `OPERATIONS` says, the rest 0."""

    def take(self, chosen: np.ndarray) -> Step:
        """Of the samples at `chosen`."""
        return Step(self.kinds, self.code[chosen], self.values[chosen])
