"""VGG (Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015).

Stacks of 3x3 convolutions, each followed by a 2x2 pool. State-dict keys of the networks for 224 px are
torchvision's. The networks for CIFAR have a smaller head (Liu, Deng, "Very Deep Convolutional Neural Network
Based Image Classification Using Small Training Sample Size", ACPR 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fastcnn.models.base import FeatureSequence, Stage
from fastcnn.models.layers import he_normal

Cfg = Sequence[int | str]
"""Channels of each 3x3 convolution, and "M" for a 2x2 pool."""

A: Cfg = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
B: Cfg = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
D: Cfg = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
E: Cfg = (*(64, 64, "M", 128, 128, "M"), *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M")
"""Columns of table 1."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Fully connected layers of a `VGG`."""

    map_size: int = 7
    """Side in pixels of the map that the first linear layer takes; other sizes are pooled to it."""
    hidden: Sequence[int] = (4096, 4096)
    """Units of the linear layers before the last."""
    batch_norm: bool = False
    """Batch norm after each of them."""


IMAGENET_HEAD = Head()


class VGG(FeatureSequence):
    """Images [N, in_chans, H, W] to logits [N, num_classes].

    Args:
        cfg: channels of each convolution, and "M" for a pool, such as [64, "M", 128, 128, "M"].
        batch_norm: batch norm after each convolution.
        head: layers after the last pool.
        drop_rate: dropout rate after each hidden layer of the head.
        image_size: `default_image_size`.

    Raises:
        ValueError: invalid `cfg`.
    """

    def __init__(
        self,
        cfg: Cfg,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        batch_norm: bool = False,
        head: Head = IMAGENET_HEAD,
        drop_rate: float = 0.5,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        if not cfg or cfg[0] == "M" or any(v != "M" and not (isinstance(v, int) and v > 0) for v in cfg):
            raise ValueError(f'cfg {list(cfg)}: use numbers of channels and "M", such as [64, "M", 128]')
        # Convolutions and pools; a stage ends before each pool.
        layers: list[nn.Module] = []
        stages: list[Stage] = []
        channels, stride = in_chans, 1
        for v in cfg:
            if isinstance(v, int):
                layers.append(nn.Conv2d(channels, v, 3, padding=1))
                layers += [nn.BatchNorm2d(v)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = v
            else:
                stages.append(Stage(f"features.{len(layers) - 1}", channels, stride))
                layers.append(nn.MaxPool2d(2))
                stride *= 2
        self.features = nn.Sequential(*layers)
        self.stages = (*stages, Stage(f"features.{len(layers) - 1}", channels, stride))
        self.default_image_size, self.minimum_image_size = image_size, stride
        self.map_size = head.map_size

        # Fully connected layers.
        hidden: list[nn.Module] = []
        width = channels * head.map_size**2
        for units in head.hidden:
            norm = [nn.BatchNorm1d(units)] if head.batch_norm else []
            hidden += [nn.Linear(width, units), *norm, nn.ReLU(inplace=True), nn.Dropout(drop_rate)]
            width = units
        self.classifier = nn.Sequential(*hidden, nn.Linear(width, num_classes))
        self.classifier_name = f"classifier.{len(hidden)}"
        he_normal(self, linear_std=0.01)


def vgg11(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-11, column A of table 1: 132,863,336 parameters."""
    return VGG(A, num_classes, in_chans, drop_rate=drop_rate)


def vgg11_bn(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-11 with batch norm: 132,868,840 parameters."""
    return VGG(A, num_classes, in_chans, batch_norm=True, drop_rate=drop_rate)


def vgg13(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-13, column B of table 1: 133,047,848 parameters."""
    return VGG(B, num_classes, in_chans, drop_rate=drop_rate)


def vgg13_bn(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-13 with batch norm: 133,053,736 parameters."""
    return VGG(B, num_classes, in_chans, batch_norm=True, drop_rate=drop_rate)


def vgg16(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-16, column D of table 1: 138,357,544 parameters."""
    return VGG(D, num_classes, in_chans, drop_rate=drop_rate)


def vgg16_bn(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-16 with batch norm: 138,365,992 parameters."""
    return VGG(D, num_classes, in_chans, batch_norm=True, drop_rate=drop_rate)


def vgg19(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-19, column E of table 1: 143,667,240 parameters."""
    return VGG(E, num_classes, in_chans, drop_rate=drop_rate)


def vgg19_bn(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-19 with batch norm: 143,678,248 parameters."""
    return VGG(E, num_classes, in_chans, batch_norm=True, drop_rate=drop_rate)


def _for_cifar(cfg: Cfg, num_classes: int, in_chans: int, drop_rate: float) -> VGG:
    """Return a VGG for 32 px with batch norm: a last map of 1x1 pixels and a head of 512 hidden units."""
    head = Head(map_size=1, hidden=(512,), batch_norm=True)
    return VGG(cfg, num_classes, in_chans, batch_norm=True, head=head, drop_rate=drop_rate, image_size=32)


def vgg11_cifar(num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-11 for 32 px, batch norm, 512-512-10 head: 9,494,794 parameters."""
    return _for_cifar(A, num_classes, in_chans, drop_rate)


def vgg13_cifar(num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-13 for 32 px, batch norm, 512-512-10 head: 9,679,690 parameters."""
    return _for_cifar(B, num_classes, in_chans, drop_rate)


def vgg16_cifar(num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-16 for 32 px, batch norm, 512-512-10 head: 14,991,946 parameters."""
    return _for_cifar(D, num_classes, in_chans, drop_rate)


def vgg19_cifar(num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-19 for 32 px, batch norm, 512-512-10 head: 20,304,202 parameters."""
    return _for_cifar(E, num_classes, in_chans, drop_rate)


def vgg16_cifar_wide(num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """VGG-16 for 32 px with batch norm, without its last two pools: 65,103,946 parameters.

    The last map has 4x4 pixels. The head is the paper's, with 4096 hidden units.
    """
    cfg = (*D[:10], *(512,) * 6)
    head = Head(map_size=4)
    return VGG(cfg, num_classes, in_chans, batch_norm=True, head=head, drop_rate=drop_rate, image_size=32)
