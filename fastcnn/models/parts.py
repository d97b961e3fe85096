"""Image sizes, groups of layers and classifier of any network, own or external.

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
    """Return the image sizes of a network.

    Raises:
        UserError: unknown network.
    """
    if is_external(arch):
        return external.image_sizes(arch)
    with torch.device("meta"):
        return ImageSizes.of(constructor(arch)())


def map_strides(arch: str) -> tuple[int, ...]:
    """Return the strides of a network's feature maps in pixels, ascending; empty for external networks."""
    if is_external(arch):
        return ()
    with torch.device("meta"):
        return tuple(sorted({stage.stride for stage in constructor(arch)().stages}))


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Return attribute paths of the layers with the logits: one, except in some networks of timm."""
    declared = getattr(network, "classifier_name", None)  # a `ConvNet`, or after `reset_classifier`
    declared = declared or getattr(network, "pretrained_cfg", {}).get("classifier")  # timm
    if declared:
        return (declared,) if isinstance(declared, str) else tuple(declared)
    leaves = [(name, module) for name, module in network.named_modules() if _own_parameters(module)]
    linear = [name for name, module in leaves if isinstance(module, nn.Linear)]
    return tuple((linear or [name for name, _ in leaves])[-1:])


def layer_groups(network: nn.Module) -> list[list[str]]:
    """Return `ConvNet.layer_groups` for any network.

    Sequences and lists of modules are split into their layers. A norm joins the layer before it, and the
    classifier comes last.
    """
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
    """Return True for a sequence or list of blocks, not of single layers."""
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    blocks = [
        child
        for child in children
        if not isinstance(child, nn.Sequential) and any(True for _ in child.children())
    ]
    return isinstance(module, nn.Sequential | nn.ModuleList) and bool(children) and blocks == children


def _own_parameters(module: nn.Module) -> list[str]:
    """Return names of a module's parameters, without those of its children."""
    return [name for name, _ in module.named_parameters(recurse=False)]


def set_drop_rates(network: nn.Module, arch: str, drop: float | None, drop_path: float | None) -> None:
    """Set the rates of dropout and stochastic depth; None keeps those of the network.

    Stochastic depth increases linearly from the first block to the last (Huang et al. 2016, equation 4).

    Raises:
        UserError: the network has no such layers.
    """
    if drop is not None:
        for dropout in _all(network, nn.Dropout, f"--drop {drop:g}: {arch} has no dropout; omit it"):
            dropout.p = drop
    if drop_path is not None:
        advice = f"--drop-path {drop_path:g}: {arch} has no stochastic depth; omit it"
        blocks = _all(network, StochasticDepth, advice)
        for number, block in enumerate(blocks, 1):
            block.p = drop_path * number / len(blocks)


def _all(network: nn.Module, kind: type[nn.Module], advice: str) -> list[Any]:
    layers = [module for module in network.modules() if isinstance(module, kind)]
    if not layers:
        raise UserError(advice)
    return layers


def reset_classifier(network: nn.Module, num_classes: int, hidden: int | None = None) -> None:
    """Apply `ConvNet.reset_classifier` to any network that ends in one linear layer.

    Raises:
        UserError: the network ends in other layers.
    """
    if isinstance(network, ConvNet):
        network.reset_classifier(num_classes, hidden)
        return
    names = classifier_names(network)
    if len(names) != 1 or not isinstance(network.get_submodule(names[0]), nn.Linear):
        last = " and ".join(f"{name}, a {type(network.get_submodule(name)).__name__}" for name in names)
        raise UserError(f"--head mlp: the network does not end in one linear layer, but in {last}; omit it")
    replace_classifier(network, names[0], num_classes, hidden)
    network.classifier_name = names[0]  # type: ignore[assignment]
