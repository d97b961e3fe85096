"""Progressive resizing: training begins with small images, and ends with those of `--img-size`.

    python -m fastcnn.train --arch resnet50 --data photos --progressive 160 192 224

Torch-free. The size is that of a whole epoch, as in FFCV's recipes (Leclerc et al. 2023).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from fastcnn.config.settings import Config
from fastcnn.errors import UserError


def size_at(sizes: Sequence[int], milestones: Sequence[float], epoch: int) -> int:
    """Pixels a side of the training images in an epoch, counted from 0.

    Args:
        sizes: one after the other.
        milestones: epochs after which the next one begins, at the next whole epoch: one less than sizes.
    """
    return sizes[bisect_right(milestones, epoch)]


def milestones_of(config: Config, epochs: float) -> tuple[float, ...]:
    """Return the given milestones; by default evenly spaced ones."""
    if config.progressive_milestones is not None:
        return config.progressive_milestones
    count = len(config.progressive or ())
    return tuple(epochs * i / count for i in range(1, count))


def sizes_left(config: Config, epochs: float, epoch: float) -> list[int]:
    """Sizes from an epoch on, counted from 0, until the run ends."""
    if config.progressive is None:
        return [int(config.img_size)]
    milestones = milestones_of(config, epochs)
    coming = range(int(epoch), math.ceil(epochs))
    return sorted({size_at(config.progressive, milestones, each) for each in coming})


def never_reached(config: Config, epochs: float) -> str:
    """A warning if a run ends before its last size begins; else "".

    It is none of `check_progressive`'s: a recipe is tried with fewer epochs than it asks for.
    """
    sizes = config.progressive
    if sizes is None or sizes_left(config, epochs, 0)[-1] == sizes[-1]:
        return ""
    earlier = " or earlier --progressive-milestones" if config.progressive_milestones is not None else ""
    return f"warning: --epochs {epochs:g} ends before images of {sizes[-1]} px begin; use more{earlier}"


def check_progressive(config: Config) -> None:
    """UserError if the sizes, their milestones and `--img-size` do not fit one another."""
    sizes, milestones = config.progressive, config.progressive_milestones
    if sizes is None:
        return
    written = "--progressive " + " ".join(map(str, sizes))
    if config.img_size not in ("auto", sizes[-1]):
        raise UserError(f"--img-size {config.img_size}: {written} ends with {sizes[-1]}; omit --img-size")
    if milestones is not None and len(milestones) != len(sizes) - 1:
        raise UserError(
            f"--progressive-milestones: {len(milestones)} of them for {len(sizes)} sizes; "
            f"use {len(sizes) - 1}"
        )
