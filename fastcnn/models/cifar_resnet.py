"""Residual networks for 32 px.

The CIFAR-10 networks of He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2, have the paper's initialization (section 3.4, He initialization). `resnet18_cifar` is ImageNet's
with a small stem, as is common on CIFAR. `resnet50_short` is a ResNet-50 without its last stage: the map of
a CIFAR image has one pixel before it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.base import Stage
from fastcnn.models.resnet import BASIC, Bottleneck, ResidualNet, ResNet, conv3x3, conv_shortcut


class PadShortcut(nn.Module):
    """Shortcut without parameters: every second pixel, missing channels zero (option A of section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class CifarResNet(ResidualNet):
    """The CIFAR-10 networks of section 4.2: 6n + 2 layers, shortcuts without parameters (option A)."""

    default_image_size = 32
    layer_names = ("layer1", "layer2", "layer3")
    shortcut = PadShortcut
    stages = (Stage("layer1", 16, 1), Stage("layer2", 32, 2), Stage("layer3", 64, 4))

    def __init__(
        self, depth: int, num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth}: a CIFAR ResNet has 6n + 2 layers: 20, 32, 44, 56, 110, ...")
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(in_chans, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(BASIC, 16, 16, blocks=blocks, stride=1)
        self.layer2 = self._stage(BASIC, 16, 32, blocks=blocks, stride=2)
        self.layer3 = self._stage(BASIC, 32, 64, blocks=blocks, stride=2)
        self._classifier(64, num_classes)
        self._initialize(zero_init_residual=zero_init_residual)

    def stem(self, x: Tensor) -> Tensor:
        """Return the input of the first stage."""
        return self.relu(self.bn1(self.conv1(x)))


class ShortResNet50(ResidualNet):
    """ResNet-50 for 32 px without its last stage: images [N, in_chans, H, W] to logits [N, num_classes].

    A 7x7 stem and stages of 3, 4 and 6 bottlenecks. The stride of a stage is in its last block: in the 3x3
    convolution, and in a 1x1 pool as the shortcut. The authors' code for He et al., "Identity Mappings in
    Deep Residual Networks", ECCV 2016, does the same.
    """

    default_image_size = 32
    layer_names = ("layer1", "layer2", "layer3")
    stages = (Stage("layer1", 256, 8), Stage("layer2", 512, 16), Stage("layer3", 1024, 32))

    def __init__(self, num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False) -> None:
        super().__init__()
        self._large_stem(in_chans)
        channels = 64
        for name, width, blocks in zip(self.layer_names, (64, 128, 256), (3, 4, 6)):
            out = width * Bottleneck.expansion
            first = Bottleneck(channels, width, 1, conv_shortcut(channels, out, 1))
            middle = [Bottleneck(out, width, 1, None) for _ in range(blocks - 2)]
            last = Bottleneck(out, width, 2, nn.MaxPool2d(1, stride=2))
            self.add_module(name, nn.Sequential(first, *middle, last))
            channels = out
        self._classifier(channels, num_classes)
        self._initialize(zero_init_residual=zero_init_residual)


def resnet20(num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-20: 269,722 parameters; 91.25% on CIFAR-10 (table 6)."""
    return CifarResNet(20, num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnet32(num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-32: 464,154 parameters; 92.49% on CIFAR-10 (table 6)."""
    return CifarResNet(32, num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnet44(num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-44: 658,586 parameters; 92.83% on CIFAR-10 (table 6)."""
    return CifarResNet(44, num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnet56(num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-56: 853,018 parameters; 93.03% on CIFAR-10 (table 6)."""
    return CifarResNet(56, num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnet110(num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-110: 1,727,962 parameters; 93.57% on CIFAR-10 (table 6, best of five)."""
    return CifarResNet(110, num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnet18_cifar(num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False) -> ResNet:
    """ResNet-18 with a 3x3 stem and no pool, for 32 px: 11,173,962 parameters."""
    layers = 2, 2, 2, 2
    return ResNet(
        layers, num_classes, in_chans, zero_init_residual=zero_init_residual, options=BASIC, small_images=True
    )


def resnet50_short(
    num_classes: int = 10, in_chans: int = 3, *, zero_init_residual: bool = False
) -> ShortResNet50:
    """ResNet-50 without its last stage, for 32 px: 8,553,546 parameters."""
    return ShortResNet50(num_classes, in_chans, zero_init_residual=zero_init_residual)
