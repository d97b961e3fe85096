"""Frozen layers and layer-wise learning rates for transfer learning.

python -m fastcnn.train --arch resnet18 --pretrained --data photos --freeze backbone --unfreeze-epoch 5
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.parts import layer_groups


class Frozen:
    """Frozen layers: parameters without gradient, and modules in evaluation mode.

    In evaluation mode batch norm keeps its statistics, and dropout is disabled.

    Args:
        network: the whole network.
        names: attribute paths of its frozen modules and parameters, as in `layer_groups`.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.parameters = [p for n, p in network.named_parameters() if p.requires_grad and _within(n, names)]
        self.modules = _modules(network, names)
        for parameter in self.parameters:
            parameter.requires_grad = False

    def hold(self) -> None:
        """Set the modules to evaluation mode; call it after each `network.train()`."""
        for module in self.modules:
            module.eval()

    def buffers(self) -> list[Tensor]:
        """Return the buffers that stay constant."""
        return [buffer for module in self.modules for buffer in module.buffers()]

    def release(self) -> None:
        """Make the parameters trainable again."""
        for parameter in self.parameters:
            parameter.requires_grad = True


def frozen_layers(network: nn.Module, freeze: str, until: str | None) -> list[str]:
    """Return the attribute paths of the modules and parameters that `--freeze` and `--freeze-until` freeze.

    Raises:
        UserError: unknown layer, or no trainable layer would remain.
    """
    groups = layer_groups(network)
    if until is not None:
        count = 1 + _last_group(network, groups, until)
        if count == len(groups):
            raise UserError(f"--freeze-until {until}: nothing would be left to train; use a layer before it")
    elif freeze == "backbone":
        count = len(groups) - 1
        if count == 0:
            raise UserError("--freeze backbone: the network has no layers but its classifier; omit it")
    else:
        count = 0
    return [name for group in groups[:count] for name in group]


def lr_scales(network: nn.Module, backbone: float, decay: float) -> dict[str, float]:
    """Return the learning rate scale of each parameter by name.

    Args:
        backbone: scale of all layers but the classifier.
        decay: factor from each group of layers to the one before it (Clark et al., "ELECTRA", ICLR 2020;
            Bao et al., "BEiT", ICLR 2022).
    """
    groups = layer_groups(network)
    scales = {}
    for distance, group in enumerate(reversed(groups)):
        scale = decay**distance * (backbone if distance else 1.0)
        scales.update({name: scale for name, _ in network.named_parameters() if _within(name, group)})
    return scales


def describe_frozen(network: nn.Module, names: Sequence[str], unfreeze_epoch: int | None) -> str:
    """Return a line on the frozen layers and the number of trainable parameters."""
    frozen = sum(p.numel() for n, p in network.named_parameters() if _within(n, names))
    total = sum(p.numel() for p in network.parameters())
    end = f", until epoch {unfreeze_epoch}" if unfreeze_epoch is not None else ""
    return f"frozen up to {names[-1]}{end}: {total - frozen:,} of {total:,} parameters train"


def _within(path: str, names: Sequence[str]) -> bool:
    """Return True if a path is one of `names`, or inside one of them."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _last_group(network: nn.Module, groups: Sequence[Sequence[str]], layer: str) -> int:
    """Return the index of the last group inside `layer`, or with `layer` inside it."""
    known = set()
    for name, _ in network.named_parameters():
        parts = name.split(".")
        known |= {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    if layer not in known:
        near = difflib.get_close_matches(layer, sorted(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one such as {groups[0][0]}"
        raise UserError(f"--freeze-until {layer}: the network has no such layer with parameters; {hint}")
    return max(
        i
        for i, group in enumerate(groups)
        if any(_within(name, [layer]) or _within(layer, [name]) for name in group)
    )


def _modules(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the frozen modules, and modules without parameters before the last of them, such as dropout."""
    within = [(_within(name, names), module) for name, module in network.named_modules()]
    last = max((i for i, (frozen, _) in enumerate(within) if frozen), default=-1)
    return [
        module
        for i, (frozen, module) in enumerate(within)
        if frozen or (i < last and not any(True for _ in module.parameters()))
    ]
