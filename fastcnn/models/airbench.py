"""airbench: networks for fast training on CIFAR-10.

Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3, in the version of
`airbench94_muon.py` in its repository. A fixed 2x2 convolution whitens patches of the images. Three blocks of
two 3x3 convolutions and a global max pool follow. Norms have no trainable scale, and a high momentum: their
statistics are those of the last few batches.

    network = airbench()
    network.init_from_images(images)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.base import ConvNet, Stage, grouped

WHITEN_EPS = 5e-4
"""Added to the variances of the patches, so that components of tiny variance are not amplified."""
CHUNK = 100
"""Images per chunk of patches in memory."""


class AirbenchNet(ConvNet):
    """Images [N, in_chans, H, W] to logits [N, num_classes].

    As published, except for the classifier. It has a bias, and its initial weights include the published
    division of the logits by their number of inputs. The filters of `whiten` are random until
    `init_from_images`.

    Args:
        widths: channels of the three blocks.
    """

    default_image_size = 32
    minimum_image_size = 9
    classifier_name = "head"

    def __init__(self, widths: tuple[int, int, int], num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        patch = 2 * 2 * in_chans
        self.whiten = nn.Conv2d(in_chans, 2 * patch, 2)
        self.whiten.weight.requires_grad = False
        self.act = nn.GELU()
        self.block1 = Block(2 * patch, widths[0])
        self.block2 = Block(widths[0], widths[1])
        self.block3 = Block(widths[1], widths[2])
        self.head = nn.Linear(widths[2], num_classes)
        self.stages = tuple(Stage(f"block{i + 1}", width, 2 << i) for i, width in enumerate(widths))
        nn.init.normal_(self.head.weight, std=1 / widths[2])
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Initialize `whiten` from the principal components of 2x2 patches (section 3.2).

        Its filters are the components, each divided by its standard deviation, and their negatives. The
        computation is in float64: the smallest variances are 1e-5 of the largest, and a GPU may round float32
        products to TF32.

        Args:
            images: float [N, in_chans, H, W], normalized as in training.
        """
        weight = self.whiten.weight
        size = weight[0].numel()
        squares = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        for part in images.split(CHUNK):
            patches = F.unfold(part.double(), 2).transpose(0, 1).flatten(1)  # [in_chans * 4, patches]
            squares += patches @ patches.T
        count = len(images) * (images.shape[2] - 1) * (images.shape[3] - 1)
        variances, components = torch.linalg.eigh(squares / count)
        filters = (components / (variances + WHITEN_EPS).sqrt()).T
        weight.copy_(torch.cat([filters, -filters]).view_as(weight))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        outputs = []
        x = self.act(self.whiten(x))
        for block in (self.block1, self.block2, self.block3):
            x = block(x)
            outputs.append(x)
        return outputs

    def forward_head(self, features: Tensor) -> Tensor:
        # Not amax: its gradient searches the maximum again; compiled in bf16 it finds none, and is NaN.
        return self.head(F.max_pool2d(features, features.shape[2:]).flatten(1))

    def layer_groups(self) -> list[list[str]]:
        layers = (f"block{i}.{name}" for i in (1, 2, 3) for name in ("conv1", "norm1", "conv2", "norm2"))
        return grouped(self, ["whiten", *layers, "head"])


class Block(nn.Module):
    """Two 3x3 convolutions with norm and GELU, and a pool after the first convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = _norm(out_channels)
        self.conv2 = _conv(out_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.pool(self.conv1(x))))
        return self.act(self.norm2(self.conv2(x)))


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution: its first filters are the identity, others torch's defaults (section 3.3)."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:in_channels])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


def airbench(num_classes: int = 10, in_chans: int = 3) -> AirbenchNet:
    """airbench94: 1,972,802 parameters; 94.01% on CIFAR-10 in 8 epochs with six views of each test image."""
    return AirbenchNet((64, 256, 256), num_classes, in_chans)


def airbench_small(num_classes: int = 10, in_chans: int = 3) -> AirbenchNet:
    """airbench94 with half the channels, for the CPU: 498,114 parameters."""
    return AirbenchNet((32, 128, 128), num_classes, in_chans)
