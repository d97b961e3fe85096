"""Progressive resizing: training starts with small images and ends with those of `--img-size`.

    python -m fastcnn.train --arch resnet50 --data photos --progressive 160 192 224

Torch-free. The size is constant within an epoch, as in FFCV's recipes (Leclerc et al. 2023).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from fastcnn.config.settings import Config
from fastcnn.errors import UserError


def size_at(sizes: Sequence[int], milestones: Sequence[float], epoch: int) -> int:
    """Return the size of the training images, in pixels per side, in an epoch counted from 0.

    Args:
        sizes: in order of training.
        milestones: epochs after which the next size starts, at the next whole epoch; one fewer than sizes.
    """
    return sizes[bisect_right(milestones, epoch)]


def milestones_of(config: Config, epochs: float) -> tuple[float, ...]:
    """Return the milestones: the given ones, or evenly spaced ones by default."""
    if config.progressive_milestones is not None:
        return config.progressive_milestones
    count = len(config.progressive or ())
    return tuple(epochs * i / count for i in range(1, count))


def sizes_left(config: Config, epochs: float, epoch: float) -> list[int]:
    """Return the distinct sizes, ascending, from an epoch (counted from 0) to the end of the run."""
    if config.progressive is None:
        return [int(config.img_size)]
    milestones = milestones_of(config, epochs)
    coming = range(int(epoch), math.ceil(epochs))
    return sorted({size_at(config.progressive, milestones, each) for each in coming})


def never_reached(config: Config, epochs: float) -> str:
    """Return a warning if a run ends before its last size starts; else "".

    A warning, not an error of `check_progressive`: recipes are often tried with fewer epochs.
    """
    sizes = config.progressive
    if sizes is None or sizes_left(config, epochs, 0)[-1] == sizes[-1]:
        return ""
    advice = ", or lower --progressive-milestones" if config.progressive_milestones is not None else ""
    return f"warning: --epochs {epochs:g} ends before images of {sizes[-1]} px begin; raise it{advice}"


def check_progressive(config: Config) -> None:
    """Raise UserError if sizes, milestones and `--img-size` contradict each other."""
    sizes, milestones = config.progressive, config.progressive_milestones
    if sizes is None:
        return
    given = "--progressive " + " ".join(map(str, sizes))
    if config.img_size not in ("auto", sizes[-1]):
        raise UserError(f"--img-size {config.img_size}: {given} ends with {sizes[-1]}; omit --img-size")
    if milestones is not None and len(milestones) != len(sizes) - 1:
        raise UserError(
            f"--progressive-milestones: {len(milestones)} of them for {len(sizes)} sizes; "
            f"use {len(sizes) - 1}"
        )
