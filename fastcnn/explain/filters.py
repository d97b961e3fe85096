"""The filters of a network's first convolution, which are the only ones that can be seen as colors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from fastcnn.errors import UserError
from fastcnn.explain.colors import mosaic, tile
from fastcnn.explain.opened import opened
from fastcnn.inference.trained import Trained

SHOWN = 64
"""Maximum number of filters in a picture."""
SIDE = 64
"""Side of a filter in the picture, in pixels."""


@dataclass(frozen=True)
class Filters:
    """The weights of a convolution."""

    layer: str
    weights: np.ndarray
    """float32 [filters, channels, h, w]."""

    def picture(self) -> Image.Image:
        """Return the filters, each scaled by itself: gray is 0. Other than 3 channels are averaged."""
        weights = self.weights[:SHOWN]
        if weights.shape[1] != 3:
            weights = weights.mean(axis=1, keepdims=True).repeat(3, axis=1)
        largest = abs(weights).max(axis=(1, 2, 3), keepdims=True).clip(min=1e-12)
        pixels = (127.5 * (1 + weights / largest)).round().astype(np.uint8).transpose(0, 2, 3, 1)
        count, total = len(weights), len(self.weights)
        return mosaic(
            [tile(filter_, SIDE) for filter_ in pixels], f"{self.layer}: {count} of {total} filters"
        )


def first_filters(network: Trained | str | Path) -> Filters:
    """Return the filters of the first convolution of a checkpoint's network.

    Raises:
        UserError: no such checkpoint, or a network without convolutions.
    """
    trained = opened(network)
    for name, module in trained.network.named_modules():
        if isinstance(module, nn.Conv2d):
            return Filters(name, module.weight.detach().float().cpu().numpy())
    raise UserError(f"{trained.path}: its network has no convolution, so no filters")
