"""Networks for segmentation: U-Net (Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", MICCAI 2015), and its decoder on any other network.

`unet_paper` is the paper's: its convolutions have no padding, so its output is smaller than the image. It
omits the dropout of section 3.1, which gives no rate. The other networks have padding and batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.base import ConvNet, Stage, strip_head
from fastcnn.models.layers import ConvNormAct
from fastcnn.models.resnet import resnet18

LEVELS = 5
"""Number of resolutions of a U-Net, each half of the one before (figure 1)."""


class SegmentationNet(ConvNet):
    """Images [N, in_chans, H, W] to logits [N, num_classes, H, W]: an encoder, a decoder, a 1x1 convolution.

    `stages` and `forward_stages` are those of the encoder. `forward_features` returns the last map of the
    decoder, the input of the classifier.
    """

    classifier_name = "head"
    head_names = ("decoder", "head")
    decoder: nn.ModuleList
    head: nn.Conv2d

    def forward_head(self, features: Tensor) -> Tensor:
        """Apply the 1x1 convolution to the last map of the decoder."""
        return self.head(features)

    def reset_classifier(self, num_classes: int, hidden: int | None = None) -> None:
        """Replace the 1x1 convolution by a freshly initialized one, on the same device.

        Raises:
            UserError: `hidden` is given.
        """
        if hidden is not None:
            raise UserError("--head mlp: the network ends in a 1x1 convolution; use --head linear")
        old = self.head.weight
        self.head = nn.Conv2d(self.head.in_channels, num_classes, 1).to(old.device, old.dtype)
        he_by_inputs(self.head)


class UNet(SegmentationNet):
    """The network of figure 1: images [N, in_chans, H, W] to logits [N, num_classes, H, W].

    Args:
        width: channels of the first level; they double with each level.
        padded: convolutions with padding, and batch norm instead of a bias, for any image size. False: no
            padding, cropped skip connections and a smaller output: 388 px for 572 (section 2).
        bilinear: upsample bilinearly, and halve the channels by a 1x1 convolution. False: the paper's
            transposed convolution.
        image_size: `default_image_size`.
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_chans: int = 3,
        *,
        width: int = 64,
        padded: bool = True,
        bilinear: bool = False,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        self.default_image_size = image_size
        self.minimum_image_size = 2 ** (LEVELS - 1) if padded else 188  # the output has 4 px
        widths = [width * 2**i for i in range(LEVELS)]
        self.stages = tuple(Stage(f"encoder.{i}", w, 2**i) for i, w in enumerate(widths))
        levels = [nn.Sequential(*two_convolutions(in_chans, width, padded=padded))]
        for before, after in pairwise(widths):
            levels.append(nn.Sequential(nn.MaxPool2d(2), *two_convolutions(before, after, padded=padded)))
        self.encoder = nn.ModuleList(levels)
        self.decoder = nn.ModuleList(
            Expansion(2 * w, w, padded=padded, bilinear=bilinear) for w in reversed(widths[:-1])
        )
        self.head = nn.Conv2d(width, num_classes, 1)
        he_by_inputs(self)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for level in self.encoder:
            x = level(x)
            outputs.append(x)
        return outputs

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map of the decoder, [N, width, H, W], smaller without padding."""
        *skips, x = self.forward_stages(x)
        for block, skip in zip(self.decoder, reversed(skips)):
            x = block(x, skip)
        return x

    def layer_groups(self) -> list[list[str]]:
        encoder = [[f"encoder.{i}"] for i in range(len(self.encoder))]
        return [*encoder, *([f"decoder.{i}"] for i in range(len(self.decoder))), ["head"]]


class Expansion(nn.Module):
    """Step of the expansive path (section 2): upsampling with half the channels, skip connection, two 3x3
    convolutions."""

    def __init__(self, in_channels: int, out_channels: int, *, padded: bool, bilinear: bool) -> None:
        super().__init__()
        self.padded = padded
        self.up: nn.Conv2d | nn.ConvTranspose2d
        if bilinear:
            self.up = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.convs = nn.Sequential(*two_convolutions(2 * out_channels, out_channels, padded=padded))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        height, width = skip.shape[2:] if self.padded else (2 * x.shape[2], 2 * x.shape[3])
        if isinstance(self.up, nn.ConvTranspose2d):
            x = self.up(x, output_size=[height, width])  # for odd sizes, the border is the bias
        else:  # convolution first: the same result with a quarter of the operations
            x = F.interpolate(self.up(x), (height, width), mode="bilinear", align_corners=False)
        if not self.padded:
            top, left = (skip.shape[2] - height) // 2, (skip.shape[3] - width) // 2
            skip = skip[:, :, top : top + height, left : left + width]
        return self.convs(torch.cat([skip, x], 1))


class BackboneUNet(SegmentationNet):
    """Decoder of a U-Net on a backbone: images [N, in_chans, H, W] to logits [N, num_classes, H, W].

    From the coarsest stage on, each block doubles the resolution, up to that of the image. Its skip
    connection is the last stage of the backbone with that stride, if there is one. The output of a block has
    16 channels times its stride: 256, 128, 64, 32 and 16 for a backbone of stride 32. Channels and
    nearest-neighbor upsampling are those of the decoder in segmentation_models.pytorch.

    Image sizes are restricted as by the backbone, but not by its classifier.

    Args:
        backbone: a freshly initialized network; its classifier is removed.
    """

    def __init__(self, backbone: ConvNet, num_classes: int) -> None:
        super().__init__()
        self.default_image_size = backbone.default_image_size
        self.minimum_image_size = backbone.minimum_image_size
        self.image_size_multiple = backbone.image_size_multiple
        self.stages = tuple(stage._replace(name=f"backbone.{stage.name}") for stage in backbone.stages)
        self._backbone_groups = strip_head(backbone)
        self.backbone = backbone

        # One block per doubling of the resolution, with the skip channels of its stride.
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
        """Return the last map of the decoder, [N, 16, H, W]."""
        height, width = x.shape[2:]
        maps = self.forward_stages(x)
        skips = {stage.stride: map for stage, map in zip(self.stages, maps)}
        x, stride = maps[-1], self.stages[-1].stride
        for block in self.decoder:
            stride //= 2
            x = block(x, skips.get(stride), (-(-height // stride), -(-width // stride)))
        return x

    def layer_groups(self) -> list[list[str]]:
        """Return the groups of the backbone, and one group with the decoder and classifier."""
        return [*self._backbone_groups, ["decoder", "head"]]


class Doubling(nn.Module):
    """Step of the decoder of `BackboneUNet`: upsampling by 2, skip connection, two 3x3 convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*two_convolutions(in_channels + skip_channels, out_channels))

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Upsample `x` to the size of `skip`, or without a skip connection to `size`."""
        if skip is None:
            return self.convs(F.interpolate(x, size))
        return self.convs(torch.cat([skip, F.interpolate(x, skip.shape[2:])], 1))


def two_convolutions(in_channels: int, out_channels: int, *, padded: bool = True) -> list[nn.Module]:
    """Return 3x3, ReLU, 3x3, ReLU; with batch norm if `padded`, else with biases."""
    if padded:
        return [ConvNormAct(in_channels, out_channels, 3), ConvNormAct(out_channels, out_channels, 3)]
    first, second = nn.Conv2d(in_channels, out_channels, 3), nn.Conv2d(out_channels, out_channels, 3)
    return [first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True)]


def he_by_inputs(module: nn.Module) -> None:
    """Initialize convolutions with standard deviation sqrt(2 / N), N the fan-in (section 3), and biases of 0.

    Only transposed convolutions may have strides.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = layer.in_channels * math.prod(layer.kernel_size) // math.prod(layer.stride)
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def unet_on(
    num_classes: int = 21, in_chans: int = 3, backbone: Callable[..., ConvNet] = resnet18
) -> BackboneUNet:
    """`BackboneUNet` on a freshly initialized backbone."""
    return BackboneUNet(backbone(num_classes=1, in_chans=in_chans), num_classes)


def unet(num_classes: int = 21, in_chans: int = 3) -> UNet:
    """U-Net with padding and batch norm: 31,038,933 parameters."""
    return UNet(num_classes, in_chans)


def unet_bilinear(num_classes: int = 21, in_chans: int = 3) -> UNet:
    """U-Net with bilinear upsampling: 28,949,973 parameters."""
    return UNet(num_classes, in_chans, bilinear=True)


def unet_small(num_classes: int = 21, in_chans: int = 3) -> UNet:
    """U-Net with 16 to 256 channels, a quarter of the paper's, for 64 px: 1,942,917 parameters."""
    return UNet(num_classes, in_chans, width=16, image_size=64)


def unet_paper(num_classes: int = 2, in_chans: int = 1) -> UNet:
    """The paper's U-Net, 572 px to 388: 31,030,658 parameters."""
    return UNet(num_classes, in_chans, padded=False, image_size=572)
