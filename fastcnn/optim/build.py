"""Parameter groups, optimizers, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from fastcnn.config import OptimizerSettings
from fastcnn.optim.muon import Muon, muon_groups
from fastcnn.optim.rmsprop import RMSpropTF


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """All parameters in groups of one weight decay and one share of the learning rate ("lr_scale").

    Frozen ones are there too: without a gradient an optimizer lets them be, weight decay included, and the
    groups stay what they are when they are unfrozen.

    Args:
        weight_decay: of parameters with more than one dimension; biases and norms are not decayed.
        lr_scales: shares of the learning rate by the parameter's name; 1 where there is none.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
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
    """Gives the parameters that train the momentum 0 where they have none yet.

    SGD would leave the buffers uninitialized if the very first update were skipped, and cannot make some of
    them beside others that are there. Other optimizers need nothing.
    """
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("momentum") else ():
            if p.requires_grad and "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"].fill_(lr * group["lr_scale"])
