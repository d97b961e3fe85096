"""DenseNet-BC (Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR
2017).

Each layer of a dense block takes the maps of all layers before it. State-dict keys are torchvision's.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.base import FeatureSequence, Stage


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 to four times the growth, norm, ReLU, 3x3 to the growth (section 3, "bottleneck")."""

    def __init__(self, in_channels: int, growth: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(x)))
        return self.dropout(self.conv2(self.relu2(self.norm2(x))))


class DenseBlock(nn.Module):
    """Sequence of dense layers, each of which adds `growth` channels."""

    def __init__(self, in_channels: int, layers: int, growth: int, drop_rate: float) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(in_channels + i * growth, growth, drop_rate))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.children():
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class Transition(nn.Sequential):
    """Convolution and pool to half the channels and half the resolution (section 3, "compression")."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(in_channels),
                relu=nn.ReLU(inplace=True),
                conv=nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
        )


class DenseNet(FeatureSequence):
    """Images [N, in_chans, H, W] to logits [N, num_classes].

    Args:
        blocks: number of layers in each of the four dense blocks (table 1).
        growth: channels that each layer adds.
        stem: channels of the first convolution.
        drop_rate: dropout rate after each layer.
    """

    minimum_image_size = 29
    classifier_name = "classifier"

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        growth: int,
        stem: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(in_chans, stem, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(stem),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages = [Stage("features.relu0", stem, 2)]
        channels = stem
        for i, count in enumerate(blocks, 1):
            layers[f"denseblock{i}"] = DenseBlock(channels, count, growth, drop_rate)
            channels += count * growth
            if i < 4:
                stages.append(Stage(f"features.denseblock{i}", channels, 2 ** (i + 1)))
                layers[f"transition{i}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.stages = (*stages, Stage("features.norm5", channels, 32))
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(F.relu(features), 1), 1))


def densenet121(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-121: 7,978,856 parameters."""
    return DenseNet((6, 12, 24, 16), 32, 64, num_classes, in_chans, drop_rate=drop_rate)


def densenet161(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-161: 28,681,000 parameters."""
    return DenseNet((6, 12, 36, 24), 48, 96, num_classes, in_chans, drop_rate=drop_rate)


def densenet169(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-169: 14,149,480 parameters."""
    return DenseNet((6, 12, 32, 32), 32, 64, num_classes, in_chans, drop_rate=drop_rate)


def densenet201(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-201: 20,013,928 parameters."""
    return DenseNet((6, 12, 48, 32), 32, 64, num_classes, in_chans, drop_rate=drop_rate)
