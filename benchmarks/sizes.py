"""The sizes that are measured: the one table of all benchmarks."""

from __future__ import annotations

from typing import Literal, NamedTuple


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


class Load(NamedTuple):
    """Training batches of a loader."""

    img_size: int | None
    """None: as the images are, which are small ones of one size."""
    batch_size: int
    crop: Literal["random-resized", "pad"]
    turn_images: int
    """Of a timed turn at least."""


LOAD = {
    "cpu": (Load(224, 32, "random-resized", 1_280), Load(None, 128, "pad", 12_800)),
    "cuda": (Load(224, 256, "random-resized", 12_288), Load(None, 512, "pad", 51_200)),
}
"""For photos, and for small images of one size."""
