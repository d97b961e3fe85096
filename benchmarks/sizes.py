"""Networks, image sizes, batch sizes and layers of all benchmarks."""

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
        Train("alexnet_torchvision", 64, 64),
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
        Train("alexnet_torchvision", 224, 256),
        Train("vgg16", 224, 128),
        Train("densenet121", 224, 128),
        Train("vit_b_16", 224, 128),
    ),
}
"""Most important first."""


class Load(NamedTuple):
    """Training batches of a loader."""

    img_size: int | None
    """Pixels a side; None: the native size of small images of one size."""
    batch_size: int
    crop: Literal["random-resized", "pad"]
    turn_images: int
    """Minimum number of images in a timed turn."""


LOAD = {
    "cpu": (Load(224, 32, "random-resized", 1_280), Load(None, 128, "pad", 12_800)),
    "cuda": (Load(224, 256, "random-resized", 12_288), Load(None, 512, "pad", 51_200)),
}
"""Settings for photos, and for small images of one size."""
BIG_LOAD = {
    "cpu": Load(224, 16, "random-resized", 192),
    "cuda": Load(224, 64, "random-resized", 1_024),
}
"""Settings for photos of 12 megapixels."""


class Layer(NamedTuple):
    """A layer of a well-known network, with the channels and size of its input and output."""

    network: str
    kind: Literal["conv", "depthwise", "norm-relu", "lrn", "pool", "linear"]
    channels: int
    size: int
    """Height and width of the input; 1 for a linear layer."""
    out_channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    batch_size: int = 256
    first: bool = False
    """The network's first layer, whose input needs no gradient."""

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def __str__(self) -> str:
        if self.kind == "linear":
            what = f"linear-{self.channels}-{self.out_channels}"
        else:
            kernel = f"{self.kernel}x{self.kernel}" if self.kind in ("conv", "depthwise", "pool") else ""
            stride = f"s{self.stride}" if self.stride > 1 else ""
            channels = (
                f"{self.channels}"
                if self.channels == self.out_channels
                else f"{self.channels}-{self.out_channels}"
            )
            what = f"{self.kind}{kernel}{stride}-{channels}-{self.size}px"
        return f"{self.network}-{what}-batch{self.batch_size}"


def _layers(batch_size: int) -> tuple[Layer, ...]:
    layers = (
        Layer("resnet50", "conv", 64, 56, 64, 3, 1, 1),
        Layer("resnet50", "conv", 256, 14, 256, 3, 1, 1),
        Layer("resnet50", "conv", 128, 56, 128, 3, 2, 1),
        Layer("resnet50", "conv", 64, 56, 256),
        Layer("resnet50", "conv", 1024, 14, 256),
        Layer("resnet50", "conv", 3, 224, 64, 7, 2, 3, first=True),
        Layer("resnet50", "norm-relu", 256, 56, 256),
        Layer("resnet50", "pool", 64, 112, 64, 3, 2, 1),
        Layer("resnet50", "linear", 2048, 1, 1000),
        Layer("mobilenet_v2", "depthwise", 144, 56, 144, 3, 1, 1),
        Layer("mobilenet_v2", "depthwise", 144, 56, 144, 3, 2, 1),
        Layer("mobilenet_v2", "conv", 144, 56, 24),
        Layer("mobilenet_v2", "norm-relu", 144, 56, 144),
        Layer("efficientnet_b0", "depthwise", 240, 28, 240, 5, 1, 2),
        Layer("efficientnet_b0", "depthwise", 672, 14, 672, 5, 2, 2),
        Layer("alexnet", "lrn", 96, 55, 96, 5),  # as in the paper: 96 channels
        Layer("alexnet", "linear", 9216, 1, 4096),
        Layer("vgg16", "conv", 64, 224, 64, 3, 1, 1),
        Layer("vgg16", "conv", 512, 14, 512, 3, 1, 1),
        Layer("vgg16", "pool", 64, 224, 64, 2, 2),
    )
    return tuple(layer._replace(batch_size=batch_size) for layer in layers)


LAYERS = {"cpu": _layers(8), "cuda": _layers(256)}
"""Layers of networks at 224 pixels (AlexNet's normalization at 227)."""
