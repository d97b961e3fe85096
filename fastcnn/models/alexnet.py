"""AlexNet, and torchvision's variant with published weights.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS
2012. The paper states images of 224 px, but its maps of 55 x 55 (figure 2) need 227 px. Its two columns, each
with half of the channels in layers 2, 4 and 5, are merged here; `groups=2` separates them again. For other
image sizes the last map is pooled to the size that the first fully connected layer expects.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fastcnn.models.base import FeatureSequence, Stage
from fastcnn.models.layers import response_norm


class AlexNet(FeatureSequence):
    """Images [N, in_chans, H, W] to logits [N, num_classes]."""

    default_image_size = 227
    minimum_image_size = 67
    map_size = 6
    classifier_name = "classifier.fc8"
    stages = (
        Stage("features.norm1", 96, 4),
        Stage("features.norm2", 256, 8),
        Stage("features.relu5", 256, 16),
        Stage("features.pool5", 256, 32),
    )

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5, groups: int = 1
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_chans, 96, 11, stride=4),  # 227 -> 55
                norm1=response_norm(relu=True),
                pool1=nn.MaxPool2d(3, stride=2),  # -> 27
                conv2=nn.Conv2d(96, 256, 5, padding=2, groups=groups),
                norm2=response_norm(relu=True),
                pool2=nn.MaxPool2d(3, stride=2),  # -> 13
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 384, 3, padding=1, groups=groups),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(384, 256, 3, padding=1, groups=groups),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(3, stride=2),  # -> 6
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(256 * 6 * 6, 4096),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(drop_rate),
                fc7=nn.Linear(4096, 4096),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(drop_rate),
                fc8=nn.Linear(4096, num_classes),
            )
        )
        # Initialization of section 5.
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                assert module.bias is not None
                ones = name.endswith(("conv2", "conv4", "conv5", "fc6", "fc7"))
                nn.init.constant_(module.bias, 1.0 if ones else 0.0)


class TorchvisionAlexNet(FeatureSequence):
    """torchvision's AlexNet, with its state-dict keys: other widths, no response normalization.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    """

    minimum_image_size = 63
    map_size = 6
    classifier_name = "classifier.6"
    stages = (
        Stage("features.1", 64, 4),
        Stage("features.4", 192, 8),
        Stage("features.11", 256, 16),
        Stage("features.12", 256, 32),
    )

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(drop_rate),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )


def alexnet(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5, groups: int = 1) -> AlexNet:
    """AlexNet in one column: 62,378,344 parameters; with groups=2, the paper's two columns, 60,965,224."""
    return AlexNet(num_classes, in_chans, drop_rate, groups)


def alexnet_torchvision(
    num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5
) -> TorchvisionAlexNet:
    """torchvision's AlexNet: 61,100,840 parameters."""
    return TorchvisionAlexNet(num_classes, in_chans, drop_rate)
