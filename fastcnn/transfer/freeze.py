"""Transfer learning: under which classifier, which layers train, at which share of the learning rate.

python -m fastcnn.train --arch resnet18 --pretrained --data photos --freeze backbone --unfreeze-epoch 5
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.parts import layer_groups


class Frozen:
    """Layers that do not train: their parameters get no gradient, and their modules stay in evaluation mode,
    so that batch norm keeps its statistics and dropout is off.

    Args:
        network: all of it.
        names: attribute paths of modules and parameters in it, as in `layer_groups`.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.parameters = [p for n, p in network.named_parameters() if p.requires_grad and _within(n, names)]
        self.modules = _modules(network, names)
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def hold(self) -> None:
        """Puts the modules into evaluation mode, after `network.train()` has taken them out of it."""
        for module in self.modules:
            module.eval()

    def buffers(self) -> list[Tensor]:
        """Those that do not change."""
        return [buffer for module in self.modules for buffer in module.buffers()]

    def release(self) -> None:
        """Lets the parameters train again."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def frozen_layers(network: nn.Module, freeze: str, until: str | None) -> list[str]:
    """What `--freeze` and `--freeze-until` freeze: attribute paths of modules and parameters.

    Raises:
        UserError: no such layer, or nothing would be left to train.
    """
    groups = layer_groups(network)
    if until is not None:
        count = 1 + _last_group(network, groups, until)
        if count == len(groups):
            raise UserError(
                f"--freeze-until {until}: nothing would be left to train; write a layer before it"
            )
    elif freeze == "backbone":
        count = len(groups) - 1
        if count == 0:
            raise UserError("--freeze backbone: the network has no layers but its classifier; leave it out")
    else:
        count = 0
    return [name for group in groups[:count] for name in group]


def lr_scales(network: nn.Module, backbone: float, decay: float) -> dict[str, float]:
    """Each parameter's share of the learning rate.

    Args:
        backbone: share of all layers but the classifier.
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
    """What is frozen, for people."""
    frozen = sum(p.numel() for n, p in network.named_parameters() if _within(n, names))
    total = sum(p.numel() for p in network.parameters())
    end = f", until epoch {unfreeze_epoch}" if unfreeze_epoch is not None else ""
    return f"frozen up to {names[-1]}{end}: {total - frozen:,} of {total:,} parameters train"


def _within(path: str, names: Sequence[str]) -> bool:
    """Whether a path is one of `names` or in one of them."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _last_group(network: nn.Module, groups: Sequence[Sequence[str]], layer: str) -> int:
    """The last group that is in `layer`, or holds it."""
    known = set()
    for name, _ in network.named_parameters():
        parts = name.split(".")
        known |= {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    if layer not in known:
        near = difflib.get_close_matches(layer, sorted(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"write one such as {groups[0][0]}"
        raise UserError(f"--freeze-until {layer}: the network has no such layer with parameters; {hint}")
    return max(
        i
        for i, group in enumerate(groups)
        if any(_within(name, [layer]) or _within(layer, [name]) for name in group)
    )


def _modules(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The frozen modules, and those without parameters before the last of them, such as dropout."""
    within = [(_within(name, names), module) for name, module in network.named_modules()]
    last = max((i for i, (frozen, _) in enumerate(within) if frozen), default=-1)
    return [
        module
        for i, (frozen, module) in enumerate(within)
        if frozen or (i < last and not any(True for _ in module.parameters()))
    ]
