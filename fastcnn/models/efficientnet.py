"""EfficientNet (Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019).

B0, and seven larger networks by compound scaling of its width, depth and resolution. State-dict keys are
torchvision's.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

from torch import nn

from fastcnn.models.base import FeatureSequence, Stage
from fastcnn.models.layers import ConvNormAct, MBConv, MBConvOptions, he_normal, make_divisible


class Scaling(NamedTuple):
    """Scaling of a variant relative to B0."""

    width: float
    depth: float
    image_size: int
    drop_rate: float


SCALING = {
    "b0": Scaling(1.0, 1.0, 224, 0.2),
    "b1": Scaling(1.0, 1.1, 240, 0.2),
    "b2": Scaling(1.1, 1.2, 260, 0.3),
    "b3": Scaling(1.2, 1.4, 300, 0.3),
    "b4": Scaling(1.4, 1.8, 380, 0.4),
    "b5": Scaling(1.6, 2.2, 456, 0.4),
    "b6": Scaling(1.8, 2.6, 528, 0.5),
    "b7": Scaling(2.0, 3.1, 600, 0.5),
}

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Table 1, B0: expansion, kernel, stride, channels, blocks."""


class EfficientNet(FeatureSequence):
    """Images [N, in_chans, H, W] to logits [N, num_classes].

    Args:
        variant: a key of `SCALING`.
        drop_rate: dropout rate before the classifier; None: as published.
        drop_path_rate: stochastic depth rate of the last block, decreasing to 0 at the first.
    """

    classifier_name = "classifier.1"

    def __init__(
        self,
        variant: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        scaling = SCALING[variant]
        self.default_image_size = scaling.image_size
        # TensorFlow's norm: torchvision's weights of B5 to B7 were converted from it.
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01) if variant >= "b5" else nn.BatchNorm2d
        depths = [math.ceil(blocks * scaling.depth) for *_, blocks in STAGES]
        drop_paths = [drop_path_rate * i / sum(depths) for i in range(sum(depths))]

        channels, total = make_divisible(32 * scaling.width), 2
        layers: list[nn.Module] = [ConvNormAct(in_chans, channels, 3, 2, nn.SiLU, norm=norm)]
        stages: list[Stage] = []
        for (expand, kernel, stride, width, _), depth in zip(STAGES, depths):
            if stride == 2:
                stages.append(Stage(f"features.{len(layers) - 1}", channels, total))
                total *= 2
            out_channels = make_divisible(width * scaling.width)
            blocks = []
            for i in range(depth):
                options = MBConvOptions(
                    activation=nn.SiLU,
                    norm=norm,
                    squeeze=max(1, channels // 4),
                    squeeze_activation=nn.SiLU,
                    gate=nn.Sigmoid,
                )
                blocks.append(
                    MBConv(
                        channels,
                        make_divisible(channels * expand),
                        out_channels,
                        kernel,
                        stride if i == 0 else 1,
                        options=options,
                        drop_path=drop_paths.pop(0),
                    )
                )
                channels = out_channels
            layers.append(nn.Sequential(*blocks))
        layers.append(ConvNormAct(channels, 4 * channels, activation=nn.SiLU, norm=norm))
        self.features = nn.Sequential(*layers)
        self.stages = (*stages, Stage(f"features.{len(layers) - 1}", 4 * channels, total))
        drop_rate = scaling.drop_rate if drop_rate is None else drop_rate
        linear = nn.Linear(4 * channels, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(drop_rate), linear)
        he_normal(self)
        nn.init.uniform_(linear.weight, -(num_classes**-0.5), num_classes**-0.5)
        nn.init.zeros_(linear.bias)


def efficientnet_b0(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B0: 5,288,548 parameters."""
    return EfficientNet("b0", num_classes, in_chans, drop_rate, drop_path_rate)


def efficientnet_b1(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B1: 7,794,184 parameters."""
    return EfficientNet("b1", num_classes, in_chans, drop_rate, drop_path_rate)


def efficientnet_b2(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B2: 9,109,994 parameters."""
    return EfficientNet("b2", num_classes, in_chans, drop_rate, drop_path_rate)


def efficientnet_b3(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B3: 12,233,232 parameters."""
    return EfficientNet("b3", num_classes, in_chans, drop_rate, drop_path_rate)


def efficientnet_b4(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B4: 19,341,616 parameters."""
    return EfficientNet("b4", num_classes, in_chans, drop_rate, drop_path_rate)


def efficientnet_b5(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B5: 30,389,784 parameters."""
    return EfficientNet("b5", num_classes, in_chans, drop_rate, drop_path_rate)


def efficientnet_b6(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B6: 43,040,704 parameters."""
    return EfficientNet("b6", num_classes, in_chans, drop_rate, drop_path_rate)


def efficientnet_b7(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float | None = None, drop_path_rate: float = 0.2
) -> EfficientNet:
    """EfficientNet-B7: 66,347,960 parameters."""
    return EfficientNet("b7", num_classes, in_chans, drop_rate, drop_path_rate)
