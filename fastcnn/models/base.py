"""What every network offers beyond `forward`, so that freezing, new heads, segmentation and
detection work on any of them. A network knows no device, AMP, DDP or logging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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


def logits_of(outputs: Any) -> Any:
    """What a network returned, without what stands beside its logits."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


class ConvNet(nn.Module, ABC):
    """Base of the networks: images [N, C, H, W], normalized, to logits [N, num_classes], or for segmentation
    [N, num_classes, H, W]."""

    default_image_size: int = 224
    """Pixels a side that the network was published with."""
    fixed_image_size: bool = False
    """Whether no other size works."""
    minimum_image_size: int = 1
    """Fewer pixels a side leave nothing of the last feature map."""
    image_size_multiple: int = 1
    """What the pixels a side must be a multiple of."""
    classifier_name: str
    """Attribute path of the linear layer, or 1x1 convolution, that makes the logits."""
    head_names: tuple[str, ...] = ()
    """Attributes of what has parameters or drops, and comes after the last of `stages`; empty: the one that
    holds the classifier."""
    stages: tuple[Stage, ...]
    """Feature maps from the finest to the coarsest; the last one is `forward_features`' output, or what a
    decoder begins with."""

    @abstractmethod
    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The output of each of `stages`: [N, channels, H / stride, W / stride], less where the network
        does not pad."""

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, which `forward_head` takes."""
        return self.forward_stages(x)[-1]

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """Pooling, if any, and classifier: `forward_features`' output to logits."""

    def forward(self, x: Tensor) -> Tensor | Outputs:
        return self.forward_head(self.forward_features(x))

    @abstractmethod
    def layer_groups(self) -> list[list[str]]:
        """Attribute paths of all modules (or parameters) that have parameters, from the input to the
        classifier, in groups that are frozen or decayed together; the last group is the classifier, with the
        decoder where that is on another network."""

    def remove_head(self) -> None:
        """Takes away what `forward_stages` does not need, as under a decoder or a detector."""
        for name in self._head():
            setattr(self, name, None)

    def without_head(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the whole network for what `remove_head` leaves."""
        return {name: value for name, value in state.items() if name.partition(".")[0] not in self._head()}

    def _head(self) -> tuple[str, ...]:
        return self.head_names or (self.classifier_name.partition(".")[0],)

    def reset_classifier(self, num_classes: int, hidden: int | None = None) -> None:
        """Replaces the last layer by a fresh one for `num_classes`, on the same device.

        Args:
            num_classes: size of the logits.
            hidden: units of a hidden layer before it, with ReLU and dropout; None: a linear layer alone.
        """
        replace_classifier(self, self.classifier_name, num_classes, hidden)


def take_as_backbone(network: ConvNet) -> list[list[str]]:
    """Takes a network's head away, and gives the rest's `layer_groups` as they are below "backbone."."""
    groups = network.layer_groups()  # some networks cannot tell without their head
    network.remove_head()
    left = [f"{name}." for name, _ in network.named_parameters()]
    kept = ([name for name in group if any(n.startswith(f"{name}.") for n in left)] for group in groups)
    return [[f"backbone.{name}" for name in group] for group in kept if group]


class FeatureSequence(ConvNet):
    """A network whose way to the last feature map is one sequence, `features`, as in torchvision; pooling and
    `classifier` come after it."""

    features: nn.Sequential
    classifier: nn.Module
    map_size: int = 1
    """Pixels a side of the map that the classifier sees: the mean over parts of the last feature map."""

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        names = {stage.name for stage in self.stages}
        outputs = []
        for name, layer in self.features.named_children():
            x = layer(x)
            if f"features.{name}" in names:
                outputs.append(x)
        return outputs

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(features, self.map_size), 1))

    def layer_groups(self) -> list[list[str]]:
        paths = [
            *self._layers(self.features, "features"),
            *self._layers(self.classifier, "classifier"),
        ]
        return grouped(self, paths)

    def _layers(self, module: nn.Module, path: str) -> list[str]:
        """Paths of what has parameters; plain sequences but the classifier are taken apart."""
        if type(module) is nn.Sequential and path != self.classifier_name:
            return [
                p for name, child in module.named_children() for p in self._layers(child, f"{path}.{name}")
            ]
        return [path] if any(True for _ in module.parameters()) else []


def grouped(network: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """Layers of a network, in order, as groups of `layer_groups`: a norm goes with what is before it, and a
    parameter of its own, such as a class token, with what is after it."""
    parameters = dict(network.named_parameters())
    groups: list[list[str]] = [[]]
    for name in names:
        norm = all(p.ndim <= 1 for n, p in parameters.items() if f"{n}.".startswith(f"{name}."))
        only_parameters = all(n in parameters for n in groups[-1])
        if norm or only_parameters:
            groups[-1].append(name)
        else:
            groups.append([name])
    return [group for group in groups if group]


def replace_classifier(network: nn.Module, name: str, num_classes: int, hidden: int | None = None) -> None:
    """Puts a fresh classifier at the path `name` of a network, where a linear layer or such a classifier is.

    Args:
        network: any network.
        name: attribute path of its last layer.
        num_classes: size of the logits.
        hidden: units of a hidden layer before it, with ReLU and dropout; None: a linear layer alone.
    """
    old = network.get_submodule(name)
    first = next(m for m in old.modules() if isinstance(m, nn.Linear))
    new: nn.Module = nn.Linear(first.in_features, num_classes)
    if hidden is not None:
        new = nn.Sequential(
            nn.Linear(first.in_features, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, num_classes)
        )
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new.to(first.weight.device, first.weight.dtype))
