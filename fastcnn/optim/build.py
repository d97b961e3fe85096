"""Parameter groups and optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from fastcnn.config import OptimizerSettings
from fastcnn.errors import UserError
from fastcnn.optim.muon import Muon, muon_groups
from fastcnn.optim.rmsprop import RMSpropTF


def parameter_groups(
    network: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return all parameters in groups of equal weight decay and equal learning rate scale ("lr_scale").

    Frozen parameters are included. Optimizers skip parameters without a gradient, weight decay included, and
    the groups stay the same after unfreezing.

    Args:
        weight_decay: weight decay of parameters with two or more dimensions; biases and norms have none.
        lr_scales: learning rate scales by parameter name, relative to the learning rate; 1 by default.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        key = (lr_scales or {}).get(name, 1.0), parameter.ndim > 1
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[scale, decayed],
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_scale": scale,
        }
        for scale, decayed in sorted(groups, reverse=True)
    ]


def build_optimizer(
    network: nn.Module,
    settings: OptimizerSettings,
    *,
    lr: float,
    lr_scales: Mapping[str, float] | None = None,
) -> Optimizer:
    """Build the optimizer of `--opt`.

    It skips steps without a host sync. Its learning rates are tensors, so that a new rate does not recompile.

    Args:
        settings: with a number for `weight_decay`. "adamw" and "muon" ignore `momentum`.
        lr: initial learning rate.
        lr_scales: see `parameter_groups`.
    """
    opt, momentum = settings.opt, settings.momentum
    grouping = muon_groups if opt == "muon" else parameter_groups
    groups = grouping(network, float(settings.weight_decay), lr_scales)
    device = next(network.parameters()).device
    for group in groups:
        group["lr"] = torch.tensor(lr * group["lr_scale"], device=device)
    if opt == "adamw":
        return AdamW(groups, fused=True)
    if opt == "rmsproptf":
        return RMSpropTF(groups, momentum=momentum)
    optimizer: Optimizer
    if opt == "muon":
        optimizer = Muon(groups)
    else:
        optimizer = SGD(groups, momentum=momentum, nesterov=opt == "nesterov", fused=True)
    add_momentum_buffers(optimizer)
    return optimizer


def add_momentum_buffers(optimizer: Optimizer) -> None:
    """Add momentum buffers of 0 to trainable parameters without one.

    SGD would leave the buffers uninitialized if its first update were skipped, and it cannot add buffers to a
    group that has some. Other optimizers need no buffers in advance.
    """
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("momentum") else ():
            if p.requires_grad and "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


STATE_NAMES = {
    SGD: {"momentum_buffer"},
    AdamW: {"step", "exp_avg", "exp_avg_sq"},
    RMSpropTF: {"square_avg", "momentum_buffer"},
    Muon: {"momentum_buffer"},
}
"""Names of the tensors of an updated parameter."""


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load the tensors of a saved state, as copies; keep the hyperparameters.

    Each tensor takes the memory format, dtype and device of its parameter. Fused optimizers read parameters
    and states in the order of memory, so other strides would mix up their elements.

    Args:
        saved: `optimizer.state_dict()`, of any memory format, dtype and device.

    Raises:
        UserError: it belongs to other parameters or another optimizer.
    """
    groups, names = optimizer.param_groups, STATE_NAMES[type(optimizer)]
    parameters = [parameter for group in groups for parameter in group["params"]]
    counts = [_length(group.get("params")) for group in saved["param_groups"]]
    if counts != [len(group["params"]) for group in groups]:
        raise UserError("--resume: its optimizer has other groups of parameters; use another checkpoint")
    optimizer.state.clear()
    for index, state in saved["state"].items():
        if not 0 <= index < len(parameters) or not _fits(state, parameters[index], names):
            raise UserError(
                f"--resume: its optimizer does not fit parameter {index} of the network; use another file"
            )
        parameter = parameters[index]
        for name, value in state.items():
            own = torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
            optimizer.state[parameter][name] = own.copy_(value)
    add_momentum_buffers(optimizer)  # for layers frozen at the save


def _length(params: object) -> int:
    return len(params) if isinstance(params, list) else -1


def _fits(state: Mapping[str, Tensor], parameter: Tensor, names: set[str]) -> bool:
    """Return whether the tensors have these names, and the parameter's shape or, as a step, none."""
    return state.keys() in (set(), names) and all(
        value.is_floating_point() and value.shape == (() if name == "step" else parameter.shape)
        for name, value in state.items()
    )


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of each group to `lr` times its scale, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr * group["lr_scale"])
