"""GoogLeNet, or Inception v1 (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015).

`googlenet` is torchvision's, with its state-dict keys: batch norm, and 3x3 convolutions instead of the
paper's 5x5. `inception_v1` is the paper's: 5x5 convolutions and response normalization. The paper does not
give its constants; they are AlexNet's. `inception_v1_bn` has batch norm instead (Ioffe, Szegedy 2015). In
training mode all of them also return the logits of two auxiliary classifiers, each on a map pooled to 4x4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.base import ConvNet, Outputs, Stage, replace_classifier
from fastcnn.models.layers import response_norm

MODULES = {
    "inception3a": (192, 64, 96, 128, 16, 32, 32),
    "inception3b": (256, 128, 128, 192, 32, 96, 64),
    "inception4a": (480, 192, 96, 208, 16, 48, 64),
    "inception4b": (512, 160, 112, 224, 24, 64, 64),
    "inception4c": (512, 128, 128, 256, 24, 64, 64),
    "inception4d": (512, 112, 144, 288, 32, 64, 64),
    "inception4e": (528, 256, 160, 320, 32, 128, 128),
    "inception5a": (832, 256, 160, 320, 32, 128, 128),
    "inception5b": (832, 384, 192, 384, 48, 128, 128),
}
"""Table 1: channels in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection."""


class ConvReLU(nn.Module):
    """Convolution, batch norm or a bias, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, batch_norm: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=not batch_norm)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four parallel branches (figure 2b).

    Args:
        channels: a row of `MODULES`.
        kernel5: kernel size of the third branch, 5 in the paper.
    """

    def __init__(self, channels: tuple[int, ...], kernel5: int, *, batch_norm: bool) -> None:
        super().__init__()
        ins, ones, threes_in, threes, fives_in, fives, pooled = channels

        def conv(before: int, after: int, kernel: int) -> ConvReLU:
            return ConvReLU(before, after, kernel, batch_norm=batch_norm)

        self.branch1 = conv(ins, ones, 1)
        self.branch2 = nn.Sequential(conv(ins, threes_in, 1), conv(threes_in, threes, 3))
        self.branch3 = nn.Sequential(conv(ins, fives_in, 1), conv(fives_in, fives, kernel5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(ins, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    """Auxiliary classifier on an intermediate map, for training only (section 5)."""

    def __init__(self, in_channels: int, num_classes: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv = ConvReLU(in_channels, 128, 1, batch_norm=batch_norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, 4)), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x), inplace=True)))


class GoogLeNet(ConvNet):
    """Images [N, in_chans, H, W] to logits [N, num_classes], in training mode to `Outputs`.

    Args:
        paper: 5x5 convolutions and a 3x3 fourth pool; False: torchvision's 3x3 convolutions and 2x2 pool.
        batch_norm: batch norm after each convolution; False: response normalization before the second
            convolution and after the third.
        drop_rate: dropout rate before the classifier.
        aux: include the auxiliary classifiers.
    """

    classifier_name = "fc"
    head_names = ("aux1", "aux2", "dropout", "fc")
    stages = (
        Stage("conv1", 64, 2),
        Stage("conv3", 192, 4),
        Stage("inception3b", 480, 8),
        Stage("inception4e", 832, 16),
        Stage("inception5b", 1024, 32),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        paper: bool = False,
        batch_norm: bool = True,
        drop_rate: float = 0.2,
        aux: bool = True,
    ) -> None:
        super().__init__()
        self.minimum_image_size = 31 if paper else 15
        self.conv1 = ConvReLU(in_chans, 64, 7, stride=2, batch_norm=batch_norm)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.Identity() if batch_norm else response_norm()
        self.conv2 = ConvReLU(64, 64, 1, batch_norm=batch_norm)
        self.conv3 = ConvReLU(64, 192, 3, batch_norm=batch_norm)
        self.norm2 = nn.Identity() if batch_norm else response_norm()
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for name, channels in MODULES.items():
            self.add_module(name, Inception(channels, 5 if paper else 3, batch_norm=batch_norm))
            if name == "inception3b":
                self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            elif name == "inception4e":
                self.maxpool4 = nn.MaxPool2d(3 if paper else 2, stride=2, ceil_mode=True)
        self.trunk = tuple(name for name, _ in self.named_children())
        self.aux1 = Auxiliary(512, num_classes, batch_norm=batch_norm) if aux else None
        self.aux2 = Auxiliary(528, num_classes, batch_norm=batch_norm) if aux else None
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(1024, num_classes)
        self._initialize(batch_norm=batch_norm)

    def _initialize(self, *, batch_norm: bool) -> None:
        for module in self.modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if batch_norm:
                nn.init.trunc_normal_(module.weight, std=0.01)
            else:  # not in the paper; Caffe's reproduction has this initialization
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.constant_(module.bias, 0.2)
        if not batch_norm:
            for name in ("fc", "aux1.fc2", "aux2.fc2") if self.aux1 is not None else ("fc",):
                nn.init.zeros_(self.get_parameter(f"{name}.bias"))

    def _maps(self, x: Tensor, names: set[str]) -> dict[str, Tensor]:
        """Run the trunk, and return the outputs of the named modules."""
        maps = {}
        for name in self.trunk:
            x = getattr(self, name)(x)
            if name in names:
                maps[name] = x
        return maps

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        return list(self._maps(x, {stage.name for stage in self.stages}).values())

    def forward_head(self, features: Tensor) -> Tensor:
        return self.fc(self.dropout(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1)))

    def forward(self, x: Tensor) -> Tensor | Outputs:
        maps = self._maps(x, {"inception4a", "inception4d", "inception5b"})
        logits = self.forward_head(maps["inception5b"])
        if self.aux1 is None or self.aux2 is None or not (self.training and self.aux1.training):
            return logits  # frozen auxiliary classifiers are in evaluation mode
        return Outputs(logits, (self.aux1(maps["inception4a"]), self.aux2(maps["inception4d"])))

    def reset_classifier(self, num_classes: int, hidden: int | None = None) -> None:
        super().reset_classifier(num_classes, hidden)
        for name in ("aux1", "aux2") if self.aux1 is not None else ():
            replace_classifier(self, f"{name}.fc2", num_classes)

    def layer_groups(self) -> list[list[str]]:
        trunk = [[name] for name in self.trunk if name.startswith(("conv", "inception"))]
        aux = [["aux1", "aux2"]] if self.aux1 is not None else []
        return [*trunk, *aux, ["fc"]]


def googlenet(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2, *, aux: bool = True
) -> GoogLeNet:
    """torchvision's GoogLeNet: 13,004,888 parameters, without auxiliary classifiers 6,624,904."""
    return GoogLeNet(num_classes, in_chans, drop_rate=drop_rate, aux=aux)


def inception_v1(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.4, *, aux: bool = True
) -> GoogLeNet:
    """The paper's GoogLeNet: 13,378,280 parameters, without auxiliary classifiers 6,998,552."""
    return GoogLeNet(num_classes, in_chans, paper=True, batch_norm=False, drop_rate=drop_rate, aux=aux)


def inception_v1_bn(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.4, *, aux: bool = True
) -> GoogLeNet:
    """The paper's, with batch norm: 13,385,816 parameters, without auxiliary classifiers 7,005,832."""
    return GoogLeNet(num_classes, in_chans, paper=True, drop_rate=drop_rate, aux=aux)
