"""ConvNeXt (Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, "A ConvNet for the 2020s", CVPR 2022).

A ResNet with the design choices of Transformers: 7x7 depthwise convolutions, inverted bottlenecks, layer
norm, GELU. In channels-last memory the permutations are views, without a copy. State-dict keys are
torchvision's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from fastcnn.models.base import FeatureSequence, Stage
from fastcnn_kernels import DepthwiseConv2d


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, norm, 1x1 to four times the channels, GELU, 1x1 back, scale, shortcut (figure 4)."""

    def __init__(self, channels: int, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            DepthwiseConv2d(channels, 7, padding=3),
            Permute([0, 2, 3, 1]),  # a 1x1 convolution is a linear layer over the last axis
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.stochastic_depth = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        return self.stochastic_depth(self.layer_scale * self.block(x)) + x


class ConvNeXt(FeatureSequence):
    """Images [N, in_chans, H, W] to logits [N, num_classes].

    Args:
        depths, widths: blocks and channels of the four stages (section 3).
        drop_path_rate: stochastic depth rate of the last block, decreasing to 0 at the first.
        layer_scale: initial layer scale (appendix A.1).
    """

    minimum_image_size = 32
    classifier_name = "classifier.2"

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        widths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        drop_paths = [drop_path_rate * i / (sum(depths) - 1) for i in range(sum(depths))]
        layers: list[nn.Module] = []
        for i, (depth, width) in enumerate(zip(depths, widths)):
            if i == 0:
                layers.append(nn.Sequential(nn.Conv2d(in_chans, width, 4, stride=4), LayerNorm2d(width)))
            else:
                halved = nn.Conv2d(widths[i - 1], width, 2, stride=2)
                layers.append(nn.Sequential(LayerNorm2d(widths[i - 1]), halved))
            layers.append(
                nn.Sequential(*(Block(width, drop_paths.pop(0), layer_scale) for _ in range(depth)))
            )
        self.features = nn.Sequential(*layers)
        self.stages = tuple(Stage(f"features.{2 * i + 1}", w, 4 * 2**i) for i, w in enumerate(widths))
        self.classifier = nn.Sequential(LayerNorm2d(width), nn.Flatten(1), nn.Linear(width, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(features, 1))


def convnext_tiny(num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1) -> ConvNeXt:
    """ConvNeXt-T: 28,589,128 parameters."""
    return ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), num_classes, in_chans, drop_path_rate=drop_path_rate)


def convnext_small(num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.4) -> ConvNeXt:
    """ConvNeXt-S: 50,223,688 parameters."""
    return ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768), num_classes, in_chans, drop_path_rate=drop_path_rate)


def convnext_base(num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.5) -> ConvNeXt:
    """ConvNeXt-B: 88,591,464 parameters."""
    return ConvNeXt(
        (3, 3, 27, 3), (128, 256, 512, 1024), num_classes, in_chans, drop_path_rate=drop_path_rate
    )


def convnext_large(num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.5) -> ConvNeXt:
    """ConvNeXt-L: 197,767,336 parameters."""
    return ConvNeXt(
        (3, 3, 27, 3), (192, 384, 768, 1536), num_classes, in_chans, drop_path_rate=drop_path_rate
    )
