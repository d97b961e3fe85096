"""Parameter groups, optimizers, learning-rate schedules as pure functions of the step, and the moving
average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer


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
    model: nn.Module,
    opt: Literal["sgd", "nesterov", "adamw"],
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    lr_scales: Mapping[str, float] | None = None,
) -> Optimizer:
    """A fused optimizer whose learning rates are tensors, so that changing them recompiles nothing; for
    `lr_scales` see `parameter_groups`."""
    groups = parameter_groups(model, weight_decay, lr_scales)
    device = next(model.parameters()).device
    for group in groups:
        group["lr"] = torch.tensor(lr * group["lr_scale"], device=device)
    if opt == "adamw":
        return AdamW(groups, fused=True)
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


@dataclass(frozen=True)
class Schedule:
    """Everything the learning rate depends on but the step. Lengths are in epochs."""

    peak: float
    steps_per_epoch: int
    epochs: float
    warmup_epochs: float = 0.0
    kind: Literal["cosine", "step", "multistep", "constant"] = "cosine"
    min_lr: float = 0.0
    decay_epochs: float = 30.0
    decay_milestones: tuple[float, ...] = ()
    decay_rate: float = 0.1

    @property
    def total_steps(self) -> int:
        """Updates of the whole run: of 9.5 epochs the last one is a half."""
        return round(self.epochs * self.steps_per_epoch)


def learning_rate(step: int, schedule: Schedule) -> float:
    """The learning rate of update `step`, counted from 0.

    Linear from peak / n to the peak in the n steps of the warm-up (Goyal et al. 2017, section 2.2), then a
    half cosine to `min_lr` (Loshchilov, Hutter 2017, equation 5), or the peak times `decay_rate` for each
    drop so far.
    """
    s = schedule
    warmup = round(s.warmup_epochs * s.steps_per_epoch)
    if step < warmup:
        return s.peak * (step + 1) / warmup
    epoch = step / s.steps_per_epoch
    if s.kind == "cosine":
        total = s.epochs * s.steps_per_epoch
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return s.min_lr + (s.peak - s.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if s.kind == "step":
        return s.peak * s.decay_rate ** math.floor(epoch / s.decay_epochs)
    if s.kind == "multistep":
        return s.peak * s.decay_rate ** sum(epoch >= milestone for milestone in s.decay_milestones)
    return s.peak


class EMA:
    """Exponential moving average of a network's parameters and floating-point buffers.

    The decay of update t, counted from 1, is min(decay, (1 + t) / (10 + t)), so that a short run's average
    is not its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self.average = {k: v.clone() for k, v in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self.live.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the network, and takes it out again: no second compiled network."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, average in zip(self.live.values(), self.average.values()):
            live_values = live.clone()
            live.copy_(average)
            average.copy_(live_values)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])
