"""Networks for segmentation: U-Net (Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", MICCAI 2015), and its decoder on any other network.

`unet_paper` is the paper's: convolutions do not pad, so that the output is smaller than the image; it leaves
out the dropout of section 3.1, which has no rate there. The others pad, and have batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.base import ConvNet, Stage, take_as_backbone
from fastcnn.models.layers import ConvNormAct
from fastcnn.models.resnet import resnet18

LEVELS = 5
"""Resolutions of a U-Net, each half of the one before (figure 1)."""


class SegmentationNet(ConvNet):
    """Images [N, in_chans, H, W] to logits [N, num_classes, H, W]: an encoder, a decoder, a 1x1 convolution.

    Unlike in other networks, `stages` and `forward_stages` end before `forward_features`: they are the
    encoder's, and it gives the last map of the decoder, which the classifier sees.
    """

    classifier_name = "head"
    head_names = ("decoder", "head")
    decoder: nn.ModuleList
    head: nn.Conv2d

    def forward_head(self, features: Tensor) -> Tensor:
        """The 1x1 convolution: a decoder's last map to logits of each pixel."""
        return self.head(features)

    def reset_classifier(self, num_classes: int, hidden: int | None = None) -> None:
        """Replaces the 1x1 convolution by a fresh one for `num_classes`, on the same device.

        Raises:
            UserError: a hidden layer is asked for.
        """
        if hidden is not None:
            raise UserError("--head mlp: the network ends in a 1x1 convolution; write --head linear")
        old = self.head.weight
        self.head = nn.Conv2d(self.head.in_channels, num_classes, 1).to(old.device, old.dtype)
        he_by_inputs(self.head)


class UNet(SegmentationNet):
    """The network of figure 1: images [N, in_chans, H, W] to logits [N, num_classes, H, W].

    Args:
        width: channels of the first level; each level has twice those of the one before.
        padded: convolutions pad and have batch norm instead of a bias, and any size works. False: they do not
            pad, skip connections are cropped, and the output is smaller: 388 px of 572 (section 2).
        bilinear: upsample bilinearly and halve the channels by a 1x1 convolution, where the paper has a
            transposed convolution for both.
        image_size: `default_image_size`.
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_chans: int = 3,
        width: int = 64,
        padded: bool = True,
        bilinear: bool = False,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        self.default_image_size = image_size
        self.minimum_image_size = 2 ** (LEVELS - 1) if padded else 188  # 188 leave 4
        widths = [width * 2**i for i in range(LEVELS)]
        self.stages = tuple(Stage(f"encoder.{i}", w, 2**i) for i, w in enumerate(widths))
        levels = [nn.Sequential(*two_convolutions(in_chans, width, padded))]
        for before, after in pairwise(widths):
            levels.append(nn.Sequential(nn.MaxPool2d(2), *two_convolutions(before, after, padded)))
        self.encoder = nn.ModuleList(levels)
        self.decoder = nn.ModuleList(Expansion(2 * w, w, padded, bilinear) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, num_classes, 1)
        he_by_inputs(self)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for level in self.encoder:
            x = level(x)
            outputs.append(x)
        return outputs

    def forward_features(self, x: Tensor) -> Tensor:
        """The decoder's last map, [N, width, H, W], less where convolutions do not pad."""
        *skips, x = self.forward_stages(x)
        for block, skip in zip(self.decoder, reversed(skips)):
            x = block(x, skip)
        return x

    def layer_groups(self) -> list[list[str]]:
        encoder = [[f"encoder.{i}"] for i in range(len(self.encoder))]
        return [*encoder, *([f"decoder.{i}"] for i in range(len(self.decoder))), ["head"]]


class Expansion(nn.Module):
    """A step of the expansive path (section 2): the map twice as large with half the channels, the skip
    connection beside it, two 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, padded: bool, bilinear: bool) -> None:
        super().__init__()
        self.padded = padded
        self.up: nn.Conv2d | nn.ConvTranspose2d
        if bilinear:
            self.up = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.convs = nn.Sequential(*two_convolutions(2 * out_channels, out_channels, padded))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        height, width = skip.shape[2:] if self.padded else (2 * x.shape[2], 2 * x.shape[3])
        if isinstance(self.up, nn.ConvTranspose2d):
            x = self.up(x, output_size=[height, width])  # what pooling left over of odd sizes sees the bias
        else:  # the result is that of the other order, for a quarter of the work
            x = F.interpolate(self.up(x), (height, width), mode="bilinear", align_corners=False)
        if not self.padded:
            top, left = (skip.shape[2] - height) // 2, (skip.shape[3] - width) // 2
            skip = skip[:, :, top : top + height, left : left + width]
        return self.convs(torch.cat([skip, x], 1))


class BackboneUNet(SegmentationNet):
    """A U-Net's decoder on another network: images [N, in_chans, H, W] to logits [N, num_classes, H, W].

    From the coarsest stage on, each block doubles the resolution until it is the image's. Where the backbone
    has a stage of that stride, the last of them is the skip connection. A block's output has 16 channels for
    each pixel of its stride: 256, 128, 64, 32 and 16 from stride 32 on, as in the decoder of
    segmentation_models.pytorch, whose nearest-neighbour upsampling is taken over too.

    The size of images is bound as by the backbone, but for what its own classifier needs.

    Args:
        backbone: a fresh network; its classifier is taken away.
    """

    def __init__(self, backbone: ConvNet, num_classes: int) -> None:
        super().__init__()
        self.default_image_size = backbone.default_image_size
        self.minimum_image_size = backbone.minimum_image_size
        self.image_size_multiple = backbone.image_size_multiple
        self.stages = tuple(stage._replace(name=f"backbone.{stage.name}") for stage in backbone.stages)
        self._backbone_groups = take_as_backbone(backbone)
        self.backbone = backbone

        last = backbone.stages[-1]
        widths = {stage.stride: stage.channels for stage in backbone.stages}
        channels, stride = last.channels, last.stride
        blocks = []
        while stride > 1:
            stride //= 2
            blocks.append(Doubling(channels, widths.get(stride, 0), 16 * stride))
            channels = 16 * stride
        self.decoder = nn.ModuleList(blocks)
        self.head = nn.Conv2d(channels, num_classes, 1)
        he_by_inputs(self.decoder)
        he_by_inputs(self.head)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        return self.backbone.forward_stages(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The decoder's last map, [N, 16, H, W]."""
        height, width = x.shape[2:]
        maps = self.forward_stages(x)
        skips = {stage.stride: map for stage, map in zip(self.stages, maps)}
        x, stride = maps[-1], self.stages[-1].stride
        for block in self.decoder:
            stride //= 2
            x = block(x, skips.get(stride), (-(-height // stride), -(-width // stride)))
        return x

    def layer_groups(self) -> list[list[str]]:
        """Those of the backbone, and one of decoder and classifier."""
        return [*self._backbone_groups, ["decoder", "head"]]


class Doubling(nn.Module):
    """A step of `BackboneUNet`'s decoder: the map twice as large, a skip connection beside it, two 3x3
    convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*two_convolutions(in_channels + skip_channels, out_channels))

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """`size` is that of the output where there is no skip connection, whose own size may be less."""
        if skip is None:
            return self.convs(F.interpolate(x, size))
        return self.convs(torch.cat([skip, F.interpolate(x, skip.shape[2:])], 1))


def two_convolutions(in_channels: int, out_channels: int, padded: bool = True) -> list[nn.Module]:
    """3x3, ReLU, 3x3, ReLU; `padded` with batch norm, else with biases."""
    if padded:
        return [ConvNormAct(in_channels, out_channels, 3), ConvNormAct(out_channels, out_channels, 3)]
    first, second = nn.Conv2d(in_channels, out_channels, 3), nn.Conv2d(out_channels, out_channels, 3)
    return [first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True)]


def he_by_inputs(module: nn.Module) -> None:
    """Starts convolutions at deviations of sqrt(2 / N), N the values that an output sees (section 3), with
    biases of 0. Strides are those of transposed convolutions alone."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            seen = layer.in_channels * math.prod(layer.kernel_size) // math.prod(layer.stride)
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / seen))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def unet_on(
    num_classes: int = 21, in_chans: int = 3, backbone: Callable[..., ConvNet] = resnet18
) -> BackboneUNet:
    """`BackboneUNet` on a fresh backbone."""
    return BackboneUNet(backbone(num_classes=1, in_chans=in_chans), num_classes)


def unet(num_classes: int = 21, in_chans: int = 3) -> UNet:
    """U-Net with padding and batch norm: 31,038,933 parameters."""
    return UNet(num_classes, in_chans)


def unet_bilinear(num_classes: int = 21, in_chans: int = 3) -> UNet:
    """U-Net that upsamples bilinearly: 28,949,973 parameters."""
    return UNet(num_classes, in_chans, bilinear=True)


def unet_small(num_classes: int = 21, in_chans: int = 3) -> UNet:
    """U-Net of 16 to 256 channels, a quarter of the paper's, for 64 px: 1,942,917 parameters."""
    return UNet(num_classes, in_chans, width=16, image_size=64)


def unet_paper(num_classes: int = 2, in_chans: int = 1) -> UNet:
    """The paper's U-Net, 572 px to 388: 31,030,658 parameters."""
    return UNet(num_classes, in_chans, padded=False, image_size=572)
