"""LeNet-5 (LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998, section II.B).

Differences from the paper: C3 is connected to all six maps of S2, in the paper to some of them. The average
pooling has no trainable coefficient and bias. tanh is not scaled by 1.7159. The output is a linear layer with
softmax, in the paper radial basis functions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcnn.models.base import ConvNet, Stage


class LeNet5(ConvNet):
    """Images [N, in_chans, 32, 32] to logits [N, num_classes]; 61,706 parameters for 10 classes, in gray."""

    default_image_size = 32
    fixed_image_size = True  # because of conv5 and fc6
    minimum_image_size = 16
    classifier_name = "fc7"
    head_names = ("conv5", "fc6", "fc7")
    stages = (Stage("pool2", 6, 2), Stage("pool4", 16, 4))

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, activation: type[nn.Module] = nn.Tanh
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 6, 5)  # 32 -> 28
        self.act1 = activation()
        self.pool2 = nn.AvgPool2d(2)  # -> 14
        self.conv3 = nn.Conv2d(6, 16, 5)  # -> 10
        self.act3 = activation()
        self.pool4 = nn.AvgPool2d(2)  # -> 5
        self.conv5 = nn.Conv2d(16, 120, 5)  # -> 1
        self.act5 = activation()
        self.fc6 = nn.Linear(120, 84)
        self.act6 = activation()
        self.fc7 = nn.Linear(84, num_classes)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        first = self.pool2(self.act1(self.conv1(x)))
        return [first, self.pool4(self.act3(self.conv3(first)))]

    def forward_head(self, features: Tensor) -> Tensor:
        x = torch.flatten(self.act5(self.conv5(features)), 1)
        return self.fc7(self.act6(self.fc6(x)))

    def layer_groups(self) -> list[list[str]]:
        return [["conv1"], ["conv3"], ["conv5"], ["fc6"], ["fc7"]]


def lenet5(num_classes: int = 10, in_chans: int = 1) -> LeNet5:
    """LeNet-5 with tanh."""
    return LeNet5(num_classes, in_chans)


def lenet5_relu(num_classes: int = 10, in_chans: int = 1) -> LeNet5:
    """LeNet-5 with ReLU instead of tanh."""
    return LeNet5(num_classes, in_chans, activation=nn.ReLU)
