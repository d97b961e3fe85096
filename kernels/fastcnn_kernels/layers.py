"""The layers that the kernels are audited and measured on: those of published networks at 224 pixels.

AlexNet's local response normalization as the paper has it (Krizhevsky et al. 2012, section 3.5: 227 pixels,
after the ReLU of the first two layers), GoogLeNet's (Szegedy et al. 2015, figure 3), the depthwise
convolutions of torchvision's networks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution, padded so that stride 1 keeps the size."""

    kernel: int
    stride: int
    channels: int
    size: int
    """Rows, and columns, of the input."""
    count: int = 1
    """How many of them the network has."""


@dataclass(frozen=True)
class Norm:
    """A local response normalization."""

    window: int
    channels: int
    size: int
    count: int = 1


NETWORKS: dict[str, tuple[Depthwise | Norm, ...]] = {
    "alexnet": (Norm(5, 96, 55), Norm(5, 256, 27)),
    "googlenet": (Norm(5, 64, 56), Norm(5, 192, 56)),
    "mobilenet_v2": (
        Depthwise(3, 1, 32, 112),
        Depthwise(3, 2, 96, 112),
        Depthwise(3, 1, 144, 56),
        Depthwise(3, 2, 144, 56),
        Depthwise(3, 1, 192, 28, 2),
        Depthwise(3, 2, 192, 28),
        Depthwise(3, 1, 384, 14, 4),
        Depthwise(3, 1, 576, 14, 2),
        Depthwise(3, 2, 576, 14),
        Depthwise(3, 1, 960, 7, 3),
    ),
    "efficientnet_b0": (
        Depthwise(3, 1, 32, 112),
        Depthwise(3, 2, 96, 112),
        Depthwise(3, 1, 144, 56),
        Depthwise(5, 2, 144, 56),
        Depthwise(5, 1, 240, 28),
        Depthwise(3, 2, 240, 28),
        Depthwise(3, 1, 480, 14, 2),
        Depthwise(5, 1, 480, 14),
        Depthwise(5, 1, 672, 14, 2),
        Depthwise(5, 2, 672, 14),
        Depthwise(5, 1, 1152, 7, 3),
        Depthwise(3, 1, 1152, 7),
    ),
    "convnext_tiny": (
        Depthwise(7, 1, 96, 56, 3),
        Depthwise(7, 1, 192, 28, 3),
        Depthwise(7, 1, 384, 14, 9),
        Depthwise(7, 1, 768, 7, 3),
    ),
}
