"""Residual networks (He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016).

The ImageNet networks are v1.5: a bottleneck's stride is in its 3x3 convolution, as in torchvision, whose
state-dict keys they share, and by default each residual branch's last batch norm starts at zero (Goyal et
al. 2017, "Accurate, Large Minibatch SGD", section 5.1). The CIFAR networks start as in the paper (section
3.4, He initialization).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.base import ConvNet, Stage


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


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
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions (figure 5, right), the stride in the 3x3 (v1.5)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


Block = type[BasicBlock] | type[Bottleneck]


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


def conv_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """1x1 convolution and batch norm (option B of section 3.3)."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class _ResNetBase(ConvNet):
    """What both kinds share: a stem, stages of blocks, global average pooling, one linear layer."""

    classifier_name = "fc"
    layer_names: tuple[str, ...]
    fc: nn.Linear

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """From images to the first stage's input."""

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        outputs = []
        for name in self.layer_names:
            x = getattr(self, name)(x)
            outputs.append(x)
        return outputs

    def forward_head(self, features: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))

    def layer_groups(self) -> list[list[str]]:
        blocks = [[f"{name}.{i}"] for name in self.layer_names for i in range(len(getattr(self, name)))]
        return [["conv1", "bn1"], *blocks, ["fc"]]

    def _stage(
        self, block: Block, in_channels: int, width: int, blocks: int, stride: int, option_a: bool = False
    ) -> nn.Sequential:
        out_channels = width * block.expansion
        shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            shortcut = (PadShortcut if option_a else conv_shortcut)(in_channels, out_channels, stride)
        rest = [block(out_channels, width, 1, None) for _ in range(blocks - 1)]
        return nn.Sequential(block(in_channels, width, stride, shortcut), *rest)

    def _initialize(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_norm.weight)


class ResNet(_ResNetBase):
    """The ImageNet networks of table 1: images [N, in_chans, H, W] to logits [N, num_classes]."""

    layer_names = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        block: Block,
        layers: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        wide = [width * block.expansion for width in (64, 128, 256, 512)]
        self.layer1 = self._stage(block, 64, 64, layers[0], stride=1)
        self.layer2 = self._stage(block, wide[0], 128, layers[1], stride=2)
        self.layer3 = self._stage(block, wide[1], 256, layers[2], stride=2)
        self.layer4 = self._stage(block, wide[2], 512, layers[3], stride=2)
        self.fc = nn.Linear(wide[3], num_classes)
        self.stages = tuple(Stage(*s) for s in zip(self.layer_names, wide, (4, 8, 16, 32)))
        self._initialize(zero_init_residual)

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))


class CifarResNet(_ResNetBase):
    """The CIFAR-10 networks of section 4.2: 6n + 2 layers, shortcuts without parameters (option A)."""

    default_image_size = 32
    layer_names = ("layer1", "layer2", "layer3")
    stages = (Stage("layer1", 16, 1), Stage("layer2", 32, 2), Stage("layer3", 64, 4))

    def __init__(
        self, depth: int, num_classes: int = 10, in_chans: int = 3, zero_init_residual: bool = False
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth}: a CIFAR ResNet has 6n + 2 layers: 20, 32, 44, 56, 110, ...")
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(in_chans, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(BasicBlock, 16, 16, blocks, stride=1)
        self.layer2 = self._stage(BasicBlock, 16, 32, blocks, stride=2, option_a=True)
        self.layer3 = self._stage(BasicBlock, 32, 64, blocks, stride=2, option_a=True)
        self.fc = nn.Linear(64, num_classes)
        self._initialize(zero_init_residual)

    def stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))


def resnet18(num_classes: int = 1000, in_chans: int = 3, zero_init_residual: bool = True) -> ResNet:
    """ResNet-18: 11,689,512 parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_chans, zero_init_residual)


def resnet34(num_classes: int = 1000, in_chans: int = 3, zero_init_residual: bool = True) -> ResNet:
    """ResNet-34: 21,797,672 parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_chans, zero_init_residual)


def resnet50(num_classes: int = 1000, in_chans: int = 3, zero_init_residual: bool = True) -> ResNet:
    """ResNet-50: 25,557,032 parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_chans, zero_init_residual)


def resnet101(num_classes: int = 1000, in_chans: int = 3, zero_init_residual: bool = True) -> ResNet:
    """ResNet-101: 44,549,160 parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_chans, zero_init_residual)


def resnet152(num_classes: int = 1000, in_chans: int = 3, zero_init_residual: bool = True) -> ResNet:
    """ResNet-152: 60,192,808 parameters."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, in_chans, zero_init_residual)


def resnet20(num_classes: int = 10, in_chans: int = 3, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-20: 269,722 parameters; 91.25% on CIFAR-10 (table 6)."""
    return CifarResNet(20, num_classes, in_chans, zero_init_residual)


def resnet32(num_classes: int = 10, in_chans: int = 3, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-32: 464,154 parameters; 92.49% on CIFAR-10 (table 6)."""
    return CifarResNet(32, num_classes, in_chans, zero_init_residual)


def resnet44(num_classes: int = 10, in_chans: int = 3, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-44: 658,586 parameters; 92.83% on CIFAR-10 (table 6)."""
    return CifarResNet(44, num_classes, in_chans, zero_init_residual)


def resnet56(num_classes: int = 10, in_chans: int = 3, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-56: 853,018 parameters; 93.03% on CIFAR-10 (table 6)."""
    return CifarResNet(56, num_classes, in_chans, zero_init_residual)


def resnet110(num_classes: int = 10, in_chans: int = 3, zero_init_residual: bool = False) -> CifarResNet:
    """CIFAR ResNet-110: 1,727,962 parameters; 93.57% on CIFAR-10 (table 6, best of five)."""
    return CifarResNet(110, num_classes, in_chans, zero_init_residual)
