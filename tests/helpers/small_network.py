"""A user's network for images of any size: `--arch small_network:small`."""

from __future__ import annotations

from torch import nn


def small(num_classes: int, in_chans: int = 3) -> nn.Module:
    """Network with state that a warmup could change: batch norm statistics and dropout's random numbers."""
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, num_classes),
    )
