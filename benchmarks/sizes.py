"""The sizes that are measured: the one table of all benchmarks."""

from __future__ import annotations

from typing import NamedTuple


class Train(NamedTuple):
    arch: str
    img_size: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.arch}-{self.img_size}px-batch{self.batch_size}"


TRAIN = {
    "cpu": (
        Train("resnet18", 64, 32),
        Train("resnet50", 64, 32),
        Train("alexnet", 64, 64),
        Train("vgg11", 64, 32),
        Train("mobilenet_v2", 64, 32),
        Train("efficientnet_b0", 64, 16),
    ),
    "cuda": (
        Train("resnet50", 224, 256),
        Train("efficientnet_b0", 224, 256),
        Train("mobilenet_v2", 224, 256),
        Train("convnext_tiny", 224, 256),
        Train("resnet18", 224, 256),
        Train("alexnet", 224, 256),
        Train("vgg16", 224, 128),
        Train("densenet121", 224, 128),
        Train("vit_b_16", 224, 128),
    ),
}
"""Most important first."""
