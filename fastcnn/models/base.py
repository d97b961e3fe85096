"""What every network offers beyond `forward`, so that freezing, new heads, segmentation and
detection work on any of them. A network knows no device, AMP, DDP or logging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Stage(NamedTuple):
    """A part of the network whose output is a feature map of one resolution."""

    name: str
    """Attribute path of its last module, such as "layer3"."""
    channels: int
    """Channels of its output."""
    stride: int
    """Input pixels per output pixel, along each side."""


class Outputs(NamedTuple):
    """What a network with auxiliary classifiers returns in training."""

    logits: Tensor
    """[N, num_classes]"""
    aux: tuple[Tensor, ...]
    """Logits of the auxiliary classifiers, each [N, num_classes], first layer's first."""


class ConvNet(nn.Module, ABC):
    """Base of the networks: images [N, C, H, W], normalized, to logits [N, num_classes]."""

    default_image_size: int = 224
    """Pixels a side that the network was published with."""
    fixed_image_size: bool = False
    """Whether no other size works."""
    stages: tuple[Stage, ...]
    """Feature maps from the finest to the coarsest; the last one is `forward_features`' output."""

    @abstractmethod
    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The output of each of `stages`: [N, channels, H / stride, W / stride], less where the network
        does not pad."""

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, before pooling."""
        return self.forward_stages(x)[-1]

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """Pooling and classifier: `forward_features`' output to logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @abstractmethod
    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a fresh one for `num_classes`, on the same device."""

    @abstractmethod
    def layer_groups(self) -> list[list[nn.Module]]:
        """All modules with parameters, from the input to the classifier, in groups that are frozen or
        decayed together; the last group is the classifier."""
