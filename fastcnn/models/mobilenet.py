"""MobileNets: small networks of depthwise separable convolutions.

V1: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017.
V2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
V3: Howard et al., "Searching for MobileNetV3", ICCV 2019.

State-dict keys of V2 and V3 are torchvision's.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from fastcnn.models.base import FeatureSequence, Stage
from fastcnn.models.layers import ConvNormAct, MBConv, MBConvOptions, he_normal, make_divisible


class MobileNetV1(FeatureSequence):
    """Pairs of a depthwise 3x3 and a 1x1 convolution (table 1): images to logits.

    Args:
        width_mult: multiplier of all channels ("alpha", section 3.3).
    """

    classifier_name = "classifier"

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0) -> None:
        super().__init__()
        # Channels and stride of each pair of convolutions.
        pairs = [
            (64, 1),
            (128, 2),
            (128, 1),
            (256, 2),
            (256, 1),
            (512, 2),
            *[(512, 1)] * 5,
            (1024, 2),
            (1024, 1),
        ]
        channels = make_divisible(32 * width_mult)
        layers: list[nn.Module] = [ConvNormAct(in_chans, channels, 3, stride=2)]
        for width, stride in pairs:
            out_channels = make_divisible(width * width_mult)
            depthwise = ConvNormAct(channels, channels, 3, stride, depthwise=True)
            layers.append(nn.Sequential(depthwise, ConvNormAct(channels, out_channels)))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        ends = {1: 64, 3: 128, 5: 256, 11: 512, 13: 1024}  # last pair of each resolution
        self.stages = tuple(
            Stage(f"features.{i}", make_divisible(width * width_mult), 2 ** (n + 1))
            for n, (i, width) in enumerate(ends.items())
        )
        self.classifier = nn.Linear(channels, num_classes)
        he_normal(self, linear_std=0.01)


class LinearBottleneck(nn.Module):
    """V2's block (figure 4d): 1x1 expansion, depthwise 3x3, 1x1 projection without activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(ConvNormAct(in_channels, hidden, activation=nn.ReLU6))
        layers.append(ConvNormAct(hidden, hidden, 3, stride, nn.ReLU6, depthwise=True))
        layers += [nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(FeatureSequence):
    """Images [N, in_chans, H, W] to logits [N, num_classes].

    Args:
        width_mult: multiplier of all channels. Below 1 the last convolution keeps its channels.
        drop_rate: dropout rate before the classifier.
    """

    classifier_name = "classifier.1"

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, drop_rate: float = 0.2
    ) -> None:
        super().__init__()
        # Table 2: expansion, channels, blocks, stride of the first block.
        table = [
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ]
        channels, total = make_divisible(32 * width_mult), 2
        layers: list[nn.Module] = [ConvNormAct(in_chans, channels, 3, stride=2, activation=nn.ReLU6)]
        stages: list[Stage] = []
        for expand, width, blocks, stride in table:
            if stride == 2:
                stages.append(Stage(f"features.{len(layers) - 1}", channels, total))
                total *= 2
            for i in range(blocks):
                out_channels = make_divisible(width * width_mult)
                layers.append(LinearBottleneck(channels, out_channels, stride if i == 0 else 1, expand))
                channels = out_channels
        last = make_divisible(1280 * max(1.0, width_mult))
        layers.append(ConvNormAct(channels, last, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.stages = (*stages, Stage(f"features.{len(layers) - 1}", last, total))
        self.classifier = nn.Sequential(nn.Dropout(drop_rate), nn.Linear(last, num_classes))
        he_normal(self, linear_std=0.01)


LARGE = """
    3 16 16 - relu 1,   3 64 24 - relu 2,   3 72 24 - relu 1,    5 72 40 se relu 2,   5 120 40 se relu 1,
    5 120 40 se relu 1, 3 240 80 - hard 2,  3 200 80 - hard 1,   3 184 80 - hard 1,   3 184 80 - hard 1,
    3 480 112 se hard 1, 3 672 112 se hard 1, 5 672 160 se hard 2, 5 960 160 se hard 1, 5 960 160 se hard 1
"""
"""V3's table 1: kernel, expanded channels, channels, squeeze-and-excitation, activation, stride."""
SMALL = """
    3 16 16 se relu 2,  3 72 24 - relu 2,   3 88 24 - relu 1,    5 96 40 se hard 2,   5 240 40 se hard 1,
    5 240 40 se hard 1, 5 120 48 se hard 1, 5 144 48 se hard 1,  5 288 96 se hard 2,  5 576 96 se hard 1,
    5 576 96 se hard 1
"""
"""V3's table 2."""


class MobileNetV3(FeatureSequence):
    """Images [N, in_chans, H, W] to logits [N, num_classes].

    Args:
        table: `LARGE` or `SMALL`.
        hidden: hidden units of the classifier.
        width_mult: multiplier of all channels. Below 1 `hidden` is unchanged.
        drop_rate: dropout rate before the last layer.
    """

    classifier_name = "classifier.3"

    def __init__(
        self,
        table: str,
        hidden: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        width_mult: float = 1.0,
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)

        # Blocks; a stage ends before each stride.
        channels, total = make_divisible(16 * width_mult), 2
        layers: list[nn.Module] = [ConvNormAct(in_chans, channels, 3, 2, nn.Hardswish, norm=norm)]
        stages: list[Stage] = []
        for row in table.split(","):
            kernel, expand, width, se, name, stride = row.split()
            if stride == "2":
                stages.append(Stage(f"features.{len(layers) - 1}", channels, total))
                total *= 2
            expanded, out_channels = (make_divisible(int(c) * width_mult) for c in (expand, width))
            options = MBConvOptions(
                activation=nn.ReLU if name == "relu" else nn.Hardswish,
                norm=norm,
                squeeze=make_divisible(expanded // 4) if se == "se" else 0,
            )
            layers.append(MBConv(channels, expanded, out_channels, int(kernel), int(stride), options=options))
            channels = out_channels

        # Last convolution and classifier.
        last = 6 * channels
        layers.append(ConvNormAct(channels, last, activation=nn.Hardswish, norm=norm))
        self.features = nn.Sequential(*layers)
        self.stages = (*stages, Stage(f"features.{len(layers) - 1}", last, total))
        hidden = make_divisible(hidden * max(1.0, width_mult))
        self.classifier = nn.Sequential(
            nn.Linear(last, hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(hidden, num_classes),
        )
        he_normal(self, linear_std=0.01)


def mobilenet_v1(num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0) -> MobileNetV1:
    """MobileNetV1: 4,231,976 parameters."""
    return MobileNetV1(num_classes, in_chans, width_mult)


def mobilenet_v2(
    num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, drop_rate: float = 0.2
) -> MobileNetV2:
    """MobileNetV2: 3,504,872 parameters."""
    return MobileNetV2(num_classes, in_chans, width_mult, drop_rate)


def mobilenet_v3_large(
    num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, drop_rate: float = 0.2
) -> MobileNetV3:
    """MobileNetV3-Large: 5,483,032 parameters."""
    return MobileNetV3(LARGE, 1280, num_classes, in_chans, width_mult=width_mult, drop_rate=drop_rate)


def mobilenet_v3_small(
    num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, drop_rate: float = 0.2
) -> MobileNetV3:
    """MobileNetV3-Small: 2,542,856 parameters."""
    return MobileNetV3(SMALL, 1024, num_classes, in_chans, width_mult=width_mult, drop_rate=drop_rate)
