"""Mixup and CutMix of whole batches on the device, within the training graph.

Image i is mixed with image -1 - i of its batch. Mixup, CutMix and no mixing are all encoded in one 7-element
tensor, so one graph covers the three without a host synchronization. Draws are a pure function of (seed,
step, rank, batch within the step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcnn.config import AugmentationSettings

_STREAM = 1
"""Separates these draws from those of (seed, epoch), as NumPy pads seeds with zeros."""


@dataclass(frozen=True)
class Mixing:
    """Settings of mixing, named as the flags."""

    mixup: float = 0.0
    """Alpha of Mixup's Beta(alpha, alpha); 0 disables it."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 disables it. With both, each batch gets one of them with equal probability."""
    prob: float = 1.0
    """Probability that a batch is mixed."""
    off_epoch: int = 0
    """Epoch, counted from 1, after which mixing is disabled; 0: never."""

    @staticmethod
    def of(settings: AugmentationSettings) -> Mixing | None:
        """Return the mixing of a run's settings; None if they disable it."""
        if settings.mixup == settings.cutmix == 0:
            return None
        return Mixing(settings.mixup, settings.cutmix, settings.mixup_prob, settings.mixup_off_epoch)

    def goes_on(self, epoch: int) -> bool:
        """Return whether an epoch, counted from 0, is mixed."""
        return self.off_epoch == 0 or epoch < self.off_epoch


def plain() -> np.ndarray:
    """Return the parameters of a batch without mixing, as `mix_of`."""
    return np.array([0, 0, 0, 0, 1, 1, 1], dtype=np.float32)


def mix_of(settings: Mixing, *, seed: int, step: int, rank: int, part: int, size: int) -> np.ndarray:
    """Draw the mixing parameters of a batch.

    Mixup (Zhang et al. 2018, equation 1): weighted sum of all pixels with weight lam. CutMix (Yun et al.
    2019, section 3.1 and algorithm A1): the partner's pixels in a box that covers the fraction 1 - lam around
    a uniform center, clipped at the border.

    Args:
        step: update, counted from 0.
        part: batch within the update.
        size: side of the images in pixels.

    Returns:
        float32 [7]: top, bottom, left, right of the box; weight of an image's own pixels inside and outside
        of it; mean of these weights over all pixels, the weight of its own target.
    """
    rng = np.random.default_rng((seed, step, rank, part, _STREAM))
    mixes, cuts = rng.random(2)
    if mixes >= settings.prob:
        return plain()
    if settings.cutmix > 0 and (settings.mixup == 0 or cuts < 0.5):
        share = rng.beta(settings.cutmix, settings.cutmix)
        half = int(size * math.sqrt(1 - share)) // 2
        row, column = rng.integers(size, size=2).tolist()
        top, bottom, left, right = (
            min(max(side, 0), size) for side in (row - half, row + half, column - half, column + half)
        )
        weight = 1 - (bottom - top) * (right - left) / size**2
        return np.array([top, bottom, left, right, 0, 1, weight], dtype=np.float32)
    share = rng.beta(settings.mixup, settings.mixup)
    return np.array([0, 0, 0, 0, share, share, share], dtype=np.float32)


def mixed(pixels: Tensor, mix: Tensor) -> Tensor:
    """Mix each image of [N, C, H, W] with its partner at the other end of the batch.

    Args:
        mix: parameters of `mix_of`, [7].
    """
    top, bottom, left, right, inner, outer, _ = mix.unbind()
    rows, columns = (torch.arange(side, device=mix.device) for side in pixels.shape[-2:])
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    weight = torch.where(inside, inner, outer)
    return weight * pixels + (1 - weight) * pixels.flip(0)


def weighed(own: Tensor, other: Tensor, mix: Tensor) -> Tensor:
    """Return the weighted sum of a quantity for each image's target and for its partner's."""
    return mix[-1] * own + (1 - mix[-1]) * other
