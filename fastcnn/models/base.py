"""Base classes of the networks.

Besides `forward` they provide feature maps, groups of layers and a replaceable classifier, for freezing, new
heads, segmentation and detection. They are independent of device, AMP, DDP and logging.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stage(NamedTuple):
    """Part of a network, with a feature map of one resolution as output."""

    name: str
    """Attribute path of its last module, such as "layer3"."""
    channels: int
    """Output channels."""
    stride: int
    """Input pixels per output pixel, along each axis."""


class Outputs(NamedTuple):
    """Outputs of a network with auxiliary classifiers, in training mode."""

    logits: Tensor
    """[N, num_classes]"""
    aux: tuple[Tensor, ...]
    """Logits of the auxiliary classifiers, each [N, num_classes], in the order of their layers."""


def logits_of(outputs: Any) -> Any:
    """Return the logits of a network's outputs, without auxiliary ones."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


class ConvNet(nn.Module, ABC):
    """Base class: normalized images [N, C, H, W] to logits [N, num_classes].

    Segmentation networks return [N, num_classes, H, W].
    """

    default_image_size: int = 224
    """Side in pixels of the images that the network was published with."""
    fixed_image_size: bool = False
    """True if no other size works."""
    minimum_image_size: int = 1
    """Smallest side in pixels; the last feature map would be empty below it."""
    image_size_multiple: int = 1
    """The side in pixels must be a multiple of this."""
    classifier_name: str
    """Attribute path of the last layer, linear or a 1x1 convolution."""
    head_names: tuple[str, ...] = ()
    """Attributes after the last of `stages` that have parameters or dropout; empty: the classifier's."""
    stages: tuple[Stage, ...]
    """Feature maps from the finest to the coarsest. The last one is the output of `forward_features`, or the
    input of a decoder."""

    @abstractmethod
    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Return the output of each of `stages`.

        Its shape is [N, channels, H / stride, W / stride], smaller without padding.
        """

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, the input of `forward_head`."""
        return self.forward_stages(x)[-1]

    @abstractmethod
    def forward_head(self, features: Tensor) -> Tensor:
        """Apply pooling, if any, and the classifier to the output of `forward_features`."""

    def forward(self, x: Tensor) -> Tensor | Outputs:
        return self.forward_head(self.forward_features(x))

    @abstractmethod
    def layer_groups(self) -> list[list[str]]:
        """Return groups of layers that are frozen or decayed together, from the input to the classifier.

        Each layer is the attribute path of a parameter, or of a module with parameters. The last group is the
        classifier; on a backbone it includes the decoder.
        """

    def remove_head(self) -> None:
        """Remove all modules that `forward_stages` does not need, for use as a backbone."""
        for name in self._head():
            setattr(self, name, None)

    def without_head(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of a full state dict that remain after `remove_head`."""
        return {name: value for name, value in state.items() if name.partition(".")[0] not in self._head()}

    def _head(self) -> tuple[str, ...]:
        return self.head_names or (self.classifier_name.partition(".")[0],)

    def reset_classifier(self, num_classes: int, hidden: int | None = None) -> None:
        """Replace the last layer by a freshly initialized one, on the same device.

        Args:
            num_classes: number of classes.
            hidden: units of a hidden layer with ReLU and dropout; None: one linear layer.
        """
        replace_classifier(self, self.classifier_name, num_classes, hidden)


def strip_head(network: ConvNet) -> list[list[str]]:
    """Remove the head of a network, and return its remaining `layer_groups` with the prefix "backbone."."""
    groups = network.layer_groups()  # before the removal: some networks need their head for it
    network.remove_head()
    remaining = [f"{name}." for name, _ in network.named_parameters()]
    remaining_groups = (
        [name for name in group if any(n.startswith(f"{name}.") for n in remaining)] for group in groups
    )
    return [[f"backbone.{name}" for name in group] for group in remaining_groups if group]


class FeatureSequence(ConvNet):
    """Network of one sequence `features`, pooling and `classifier`, as in torchvision."""

    features: nn.Sequential
    classifier: nn.Module
    map_size: int = 1
    """Side in pixels of the classifier's input, averaged from the last feature map."""

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
        """Return paths of layers with parameters, inside plain sequences except the classifier."""
        if type(module) is nn.Sequential and path != self.classifier_name:
            return [
                p for name, child in module.named_children() for p in self._layers(child, f"{path}.{name}")
            ]
        return [path] if any(True for _ in module.parameters()) else []


def grouped(network: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """Group layers, in order, for `layer_groups`.

    A norm joins the layer before it. A single parameter, such as a class token, joins the layer after it.
    """
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
    """Replace the classifier of any network by a freshly initialized one.

    Args:
        name: attribute path of the classifier: a linear layer, or a classifier made by this function.
        num_classes: number of classes.
        hidden: units of a hidden layer with ReLU and dropout; None: one linear layer.
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
