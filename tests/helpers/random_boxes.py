"""Detection targets for tests of losses, in images of 48 x 72 pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def random_targets(seed: int, count: int, least: int, most: int, classes: int, crowds: float) -> Tensor:
    """Return random targets [count, most, 6] of images with different numbers of boxes.

    The first image has none, the others have `least` to `most`. A fraction `crowds` of the boxes are crowds.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    targets = torch.zeros(count, most, 6)
    targets[..., 0] = -1
    for rows in targets[1:]:
        used = int(torch.randint(least, most + 1, (), generator=generator))
        corner, sides = torch.rand(2, used, 2, generator=generator)
        corner = corner * torch.tensor([60.0, 40])
        end = torch.minimum(corner + 3 + 35 * sides, torch.tensor([72.0, 48]))
        label = torch.randint(0, classes, (used, 1), generator=generator)
        crowd = torch.rand(used, 1, generator=generator) < crowds
        rows[:used] = torch.cat([label, corner, end, crowd], 1)
    return targets
