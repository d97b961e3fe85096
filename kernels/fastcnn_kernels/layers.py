"""Layers of published networks at 224 pixels, for precompiling, audits and benchmarks.

They are AlexNet's local response normalization as in the paper (Krizhevsky et al. 2012, section 3.5: 227
pixels, after the ReLU of the first two layers), GoogLeNet's (Szegedy et al. 2015, figure 3), and the
depthwise convolutions of torchvision's networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution, padded such that stride 1 keeps the size."""

    kernel: int
    stride: int
    channels: int
    size: int
    """Height and width of the input."""
    count: int = field(default=1, kw_only=True)
    """Number of such layers in the network."""


@dataclass(frozen=True)
class Norm:
    """A local response normalization."""

    window: int
    channels: int
    size: int
    count: int = field(default=1, kw_only=True)


NETWORKS: dict[str, tuple[Depthwise | Norm, ...]] = {
    "alexnet": (Norm(5, 96, 55), Norm(5, 256, 27)),
    "googlenet": (Norm(5, 64, 56), Norm(5, 192, 56)),
    "mobilenet_v2": (
        Depthwise(3, 1, 32, 112),
        Depthwise(3, 2, 96, 112),
        Depthwise(3, 1, 144, 56),
        Depthwise(3, 2, 144, 56),
        Depthwise(3, 1, 192, 28, count=2),
        Depthwise(3, 2, 192, 28),
        Depthwise(3, 1, 384, 14, count=4),
        Depthwise(3, 1, 576, 14, count=2),
        Depthwise(3, 2, 576, 14),
        Depthwise(3, 1, 960, 7, count=3),
    ),
    "efficientnet_b0": (
        Depthwise(3, 1, 32, 112),
        Depthwise(3, 2, 96, 112),
        Depthwise(3, 1, 144, 56),
        Depthwise(5, 2, 144, 56),
        Depthwise(5, 1, 240, 28),
        Depthwise(3, 2, 240, 28),
        Depthwise(3, 1, 480, 14, count=2),
        Depthwise(5, 1, 480, 14),
        Depthwise(5, 1, 672, 14, count=2),
        Depthwise(5, 2, 672, 14),
        Depthwise(5, 1, 1152, 7, count=3),
        Depthwise(3, 1, 1152, 7),
    ),
    "convnext_tiny": (
        Depthwise(7, 1, 96, 56, count=3),
        Depthwise(7, 1, 192, 28, count=3),
        Depthwise(7, 1, 384, 14, count=9),
        Depthwise(7, 1, 768, 7, count=3),
    ),
}
