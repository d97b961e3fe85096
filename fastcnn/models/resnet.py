"""Residual networks for ImageNet.

ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
ResNeXt: Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017.
Wide ResNet: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016.

They are v1.5, as torchvision's, with the same state-dict keys: the stride of a bottleneck is in its 3x3
convolution. By default the last batch norm of each residual branch starts at zero (Goyal et al. 2017,
"Accurate, Large Minibatch SGD", section 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from fastcnn.models.base import ConvNet, Stage
from fastcnn.models.layers import blur_strides, he_normal


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stochastic_depth = StochasticDepth(0.0, "row")
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Last batch norm of the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.stochastic_depth(self.bn2(self.conv2(x))) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions (figure 5, right), the stride in the 3x3 (v1.5).

    Args:
        groups: groups of the 3x3 convolution (ResNeXt, figure 3c).
        widening: channels of the 3x3 convolution, divided by `width`.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        groups: int = 1,
        widening: int = 1,
    ) -> None:
        super().__init__()
        inner = width * widening
        self.conv1 = conv1x1(in_channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.stochastic_depth = StochasticDepth(0.0, "row")
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Last batch norm of the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.stochastic_depth(self.bn3(self.conv3(x))) + shortcut)


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Kind of the blocks of a network."""

    basic: bool = False
    """Basic blocks instead of bottlenecks; they ignore the other options."""
    groups: int = 1
    """Groups of the 3x3 convolution in a bottleneck."""
    widening: int = 1
    """Channels of the 3x3 convolution in a bottleneck, divided by its width."""

    @property
    def expansion(self) -> int:
        """Output channels of a block, divided by its width."""
        return BasicBlock.expansion if self.basic else Bottleneck.expansion

    def block(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None
    ) -> BasicBlock | Bottleneck:
        """Build a block."""
        if self.basic:
            return BasicBlock(in_channels, width, stride, downsample)
        return Bottleneck(in_channels, width, stride, downsample, groups=self.groups, widening=self.widening)


BASIC, BOTTLENECK = BlockOptions(basic=True), BlockOptions()


def conv_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """1x1 convolution and batch norm (option B of section 3.3)."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class ResidualNet(ConvNet):
    """Base class: a stem, stages of blocks, global average pooling, one linear layer."""

    classifier_name = "fc"
    head_names = ("dropout", "fc")
    layer_names: tuple[str, ...]
    maxpool: nn.Module
    shortcut = staticmethod(conv_shortcut)

    def _small_stem(self, in_chans: int) -> None:
        """A 3x3 convolution, for images of 32 px."""
        self.conv1 = conv3x3(in_chans, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity()

    def _large_stem(self, in_chans: int) -> None:
        """A 7x7 convolution and a pool, for ImageNet."""
        self.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def stem(self, x: Tensor) -> Tensor:
        """Return the input of the first stage."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        outputs = []
        for name in self.layer_names:
            x = getattr(self, name)(x)
            outputs.append(x)
        return outputs

    def forward_head(self, features: Tensor) -> Tensor:
        return self.fc(self.dropout(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1)))

    def layer_groups(self) -> list[list[str]]:
        blocks = [[f"{name}.{i}"] for name in self.layer_names for i in range(len(getattr(self, name)))]
        return [["conv1", "bn1"], *blocks, ["fc"]]

    def _stage(
        self, options: BlockOptions, in_channels: int, width: int, *, blocks: int, stride: int
    ) -> nn.Sequential:
        out_channels = width * options.expansion
        shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            shortcut = self.shortcut(in_channels, out_channels, stride)
        rest = [options.block(out_channels, width, 1, None) for _ in range(blocks - 1)]
        return nn.Sequential(options.block(in_channels, width, stride, shortcut), *rest)

    def _classifier(self, channels: int, num_classes: int) -> None:
        """Add dropout and the linear layer, last: modules before frozen layers are in evaluation mode."""
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(channels, num_classes)

    def _initialize(self, *, zero_init_residual: bool) -> None:
        he_normal(self)
        for module in self.modules():
            if zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)


class ResNet(ResidualNet):
    """The networks of table 1: images [N, in_chans, H, W] to logits [N, num_classes].

    Args:
        layers: number of blocks in each of the four stages.
        zero_init_residual: start each residual branch at zero.
        options: kind of the blocks.
        blur: blur before strided convolutions (`layers.BlurConv2d`).
        small_images: use a stem for 32 px.
    """

    layer_names = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        zero_init_residual: bool = True,
        options: BlockOptions = BOTTLENECK,
        blur: bool = False,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        if small_images:
            self._small_stem(in_chans)
            self.default_image_size = 32
        else:
            self._large_stem(in_chans)
        channels, stages = 64, []
        for i, (name, blocks) in enumerate(zip(self.layer_names, layers)):
            width = 64 * 2**i
            stride = 1 if i == 0 else 2
            self.add_module(name, self._stage(options, channels, width, blocks=blocks, stride=stride))
            channels = width * options.expansion
            stages.append(Stage(name, channels, 2**i if small_images else 4 * 2**i))
        self.stages = tuple(stages)
        self._classifier(channels, num_classes)
        if blur:
            blur_strides(self)
        self._initialize(zero_init_residual=zero_init_residual)


def resnet18(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNet-18: 11,689,512 parameters."""
    return ResNet((2, 2, 2, 2), num_classes, in_chans, zero_init_residual=zero_init_residual, options=BASIC)


def resnet34(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNet-34: 21,797,672 parameters."""
    return ResNet((3, 4, 6, 3), num_classes, in_chans, zero_init_residual=zero_init_residual, options=BASIC)


def resnet50(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNet-50: 25,557,032 parameters."""
    return ResNet((3, 4, 6, 3), num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnet50_blur(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNet-50 with a blur before strided convolutions, as in FFCV: 25,557,032 parameters."""
    return ResNet((3, 4, 6, 3), num_classes, in_chans, zero_init_residual=zero_init_residual, blur=True)


def resnet101(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNet-101: 44,549,160 parameters."""
    return ResNet((3, 4, 23, 3), num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnet152(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNet-152: 60,192,808 parameters."""
    return ResNet((3, 8, 36, 3), num_classes, in_chans, zero_init_residual=zero_init_residual)


def resnext50_32x4d(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNeXt-50, 32 groups of 4 channels: 25,028,904 parameters."""
    return ResNet(
        (3, 4, 6, 3),
        num_classes,
        in_chans,
        zero_init_residual=zero_init_residual,
        options=BlockOptions(groups=32, widening=2),
    )


def resnext101_32x8d(
    num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True
) -> ResNet:
    """ResNeXt-101, 32 groups of 8 channels: 88,791,336 parameters."""
    return ResNet(
        (3, 4, 23, 3),
        num_classes,
        in_chans,
        zero_init_residual=zero_init_residual,
        options=BlockOptions(groups=32, widening=4),
    )


def resnext101_64x4d(
    num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True
) -> ResNet:
    """ResNeXt-101, 64 groups of 4 channels: 83,455,272 parameters."""
    return ResNet(
        (3, 4, 23, 3),
        num_classes,
        in_chans,
        zero_init_residual=zero_init_residual,
        options=BlockOptions(groups=64, widening=4),
    )


def wide_resnet50_2(num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True) -> ResNet:
    """ResNet-50 with twice the channels in its 3x3 convolutions: 68,883,240 parameters."""
    return ResNet(
        (3, 4, 6, 3),
        num_classes,
        in_chans,
        zero_init_residual=zero_init_residual,
        options=BlockOptions(widening=2),
    )


def wide_resnet101_2(
    num_classes: int = 1000, in_chans: int = 3, *, zero_init_residual: bool = True
) -> ResNet:
    """ResNet-101 with twice the channels in its 3x3 convolutions: 126,886,696 parameters."""
    return ResNet(
        (3, 4, 23, 3),
        num_classes,
        in_chans,
        zero_init_residual=zero_init_residual,
        options=BlockOptions(widening=2),
    )
