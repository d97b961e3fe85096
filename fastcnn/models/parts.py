"""What fastcnn asks of any network, its own or another's: which images it takes, its groups of layers, its
classifier.

    python -c "from fastcnn.models import build, parts; print(parts.layer_groups(build('timm/vgg11')))"
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fastcnn.errors import UserError
from fastcnn.models import constructor, external
from fastcnn.models.base import ConvNet, grouped, replace_classifier
from fastcnn.models.external import ImageSizes, is_external


def image_sizes(arch: str) -> ImageSizes:
    """Which images the network `arch` takes.

    Raises:
        UserError: no such network.
    """
    if is_external(arch):
        return external.image_sizes(arch)
    with torch.device("meta"):
        return ImageSizes.of(constructor(arch)())


def map_strides(arch: str) -> tuple[int, ...]:
    """Pixels a side of what the maps of a network's stages show, ascending; none if they are not known."""
    if is_external(arch):
        return ()
    with torch.device("meta"):
        return tuple(sorted({stage.stride for stage in constructor(arch)().stages}))


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Attribute paths of the layers that make the logits: one, but for some of timm's networks."""
    noted = getattr(network, "classifier_name", None)  # `ConvNet`'s, or by `reset_classifier`
    noted = noted or getattr(network, "pretrained_cfg", {}).get("classifier")  # timm's
    if noted:
        return (noted,) if isinstance(noted, str) else tuple(noted)
    leaves = [(name, module) for name, module in network.named_modules() if _own_parameters(module)]
    linear = [name for name, module in leaves if isinstance(module, nn.Linear)]
    return tuple((linear or [name for name, _ in leaves])[-1:])


def layer_groups(network: nn.Module) -> list[list[str]]:
    """As `ConvNet.layer_groups`, of any network: sequences and lists of modules are taken apart, a norm goes
    with what is before it, and the classifier comes last."""
    if isinstance(network, ConvNet):
        return network.layer_groups()
    heads = classifier_names(network)
    names = (name for name in _layers(network, "", heads) if name not in heads)
    return [*grouped(network, names), list(heads)]


def _layers(module: nn.Module, prefix: str, heads: tuple[str, ...]) -> list[str]:
    names = [prefix + name for name in _own_parameters(module)]
    for child_name, child in module.named_children():
        path = prefix + child_name
        container = isinstance(child, nn.Sequential | nn.ModuleList)
        holds_a_head = any(head.startswith(f"{path}.") for head in heads)
        if path not in heads and (container or holds_a_head or any(map(_holds_blocks, child.children()))):
            names += _layers(child, f"{path}.", heads)
        elif any(True for _ in child.parameters()):
            names.append(path)
    return names


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a sequence or list of blocks, not of single layers."""
    kids = [kid for kid in module.children() if any(True for _ in kid.parameters())]
    blocks = [kid for kid in kids if not isinstance(kid, nn.Sequential) and any(True for _ in kid.children())]
    return isinstance(module, nn.Sequential | nn.ModuleList) and bool(kids) and blocks == kids


def _own_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that are not those of its children."""
    return [name for name, _ in module.named_parameters(recurse=False)]


def set_drop_rates(network: nn.Module, arch: str, drop: float | None, drop_path: float | None) -> None:
    """Sets the rate of all dropout layers; and of stochastic depth, rising linearly from the first block to
    the last (Huang et al. 2016, equation 4). None: the network's own.

    Raises:
        UserError: it has no such layers.
    """
    if drop is not None:
        for dropout in _all(network, nn.Dropout, f"--drop {drop:g}: {arch} has no dropout; leave it out"):
            dropout.p = drop
    if drop_path is not None:
        advice = f"--drop-path {drop_path:g}: {arch} has no stochastic depth; leave it out"
        blocks = _all(network, StochasticDepth, advice)
        for number, block in enumerate(blocks, 1):
            block.p = drop_path * number / len(blocks)


def _all(network: nn.Module, kind: type[nn.Module], advice: str) -> list[Any]:
    found = [module for module in network.modules() if isinstance(module, kind)]
    if not found:
        raise UserError(advice)
    return found


def reset_classifier(network: nn.Module, num_classes: int, hidden: int | None = None) -> None:
    """As `ConvNet.reset_classifier`, of any network that ends in one linear layer.

    Raises:
        UserError: it does not.
    """
    if isinstance(network, ConvNet):
        network.reset_classifier(num_classes, hidden)
        return
    names = classifier_names(network)
    if len(names) != 1 or not isinstance(network.get_submodule(names[0]), nn.Linear):
        found = " and ".join(f"{name}, a {type(network.get_submodule(name)).__name__}" for name in names)
        raise UserError(
            f"--head mlp: the network does not end in one linear layer, but in {found}; leave it out"
        )
    replace_classifier(network, names[0], num_classes, hidden)
    network.classifier_name = names[0]  # type: ignore[assignment]
