"""Mixup and CutMix on whole batches on the device, in the training graph: each image with the one at the
other end of its batch.

Both are one tensor of seven numbers, and so is not to mix: one graph does all, and the host waits for
nothing. What is drawn is a pure function of (seed, step, rank, batch within the step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STREAM = 1
"""Sets what is drawn here apart from what is drawn of (seed, epoch): NumPy fills seeds up with zeros."""


@dataclass(frozen=True)
class Mixing:
    """Settings, as of the flags of the same names."""

    mixup: float = 0.0
    """Alpha of its Beta(alpha, alpha); 0 is off."""
    cutmix: float = 0.0
    """The same. With both, a batch gets either, one as probable as the other."""
    prob: float = 1.0
    """Of a batch to be mixed."""
    off_epoch: int = 0
    """Epoch, counted from 1, after which nothing is mixed; 0: never."""

    def goes_on(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is mixed."""
        return self.off_epoch == 0 or epoch < self.off_epoch


def plain() -> np.ndarray:
    """Of a batch that is not mixed."""
    return np.array([0, 0, 0, 0, 1, 1, 1], dtype=np.float32)


def mix_of(settings: Mixing, seed: int, step: int, rank: int, part: int, size: int) -> np.ndarray:
    """How a batch is mixed.

    Mixup (Zhang et al. 2018, equation 1): all pixels by lam. CutMix (Yun et al. 2019, section 3.1 and
    algorithm A1): the other image's pixels in a box of the area share 1 - lam around a uniform centre, cut
    off at the border.

    Args:
        step: update, counted from 0.
        part: which of its batches.
        size: pixels a side.

    Returns:
        [7] float32: top, bottom, left, right of a box; weight of an image's own pixels inside and outside;
        their mean over all pixels, which is the weight of its own target.
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
    """Images [N, C, H, W], each with the one at the other end of the batch.

    Args:
        mix: [7], as `mix_of` has it.
    """
    top, bottom, left, right, inner, outer, _ = mix.unbind()
    rows, columns = (torch.arange(side, device=mix.device) for side in pixels.shape[-2:])
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    weight = torch.where(inside, inner, outer)
    return weight * pixels + (1 - weight) * pixels.flip(0)


def weighed(own: Tensor, other: Tensor, mix: Tensor) -> Tensor:
    """What holds for each image's target, and for that of its partner, by their weights."""
    return mix[-1] * own + (1 - mix[-1]) * other
