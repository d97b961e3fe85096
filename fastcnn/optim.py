"""Parameter groups, optimizers, learning-rate schedules as pure functions of the step, and the moving
average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: biases and norms (`ndim <= 1`) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module,
    opt: Literal["sgd", "nesterov", "adamw"],
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
) -> Optimizer:
    """A fused optimizer whose learning rate is a tensor, so that changing it recompiles nothing."""
    groups = parameter_groups(model, weight_decay)
    device = next(model.parameters()).device
    rate = torch.tensor(lr, device=device)
    if opt == "adamw":
        return AdamW(groups, lr=rate, fused=True)
    optimizer = SGD(groups, lr=rate, momentum=momentum, nesterov=opt == "nesterov", fused=True)
    if momentum:  # if the very first update is skipped, SGD leaves its buffers uninitialized
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


@dataclass(frozen=True)
class Schedule:
    """Everything the learning rate depends on but the step. Lengths are in epochs."""

    peak: float
    steps_per_epoch: int
    epochs: int
    warmup_epochs: float = 0.0
    kind: Literal["cosine", "step", "multistep", "constant"] = "cosine"
    min_lr: float = 0.0
    decay_epochs: float = 30.0
    decay_milestones: tuple[float, ...] = ()
    decay_rate: float = 0.1


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
