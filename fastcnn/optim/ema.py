"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class EMA:
    """Exponential moving average of a network's parameters and floating-point buffers.

    The decay of update t, counted from 1, is min(decay, (1 + t) / (10 + t)). Without this warmup the average
    of a short run would stay close to its random initialization.

    Args:
        every: steps between updates.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1) -> None:
        self.decay = decay
        self.every = every
        self.updates = 0
        self.waited = 0
        """Steps since the last update."""
        self.live = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        self.average = {k: v.clone() for k, v in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Count a step, and update the average every `every` steps."""
        self.waited += 1
        if self.waited < self.every:
            return
        self.waited = 0
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self.live.values()), 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average from the current weights."""
        self.updates = self.waited = 0
        torch._foreach_copy_(list(self.average.values()), list(self.live.values()))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Swap the average into the network, and restore its weights on exit.

        Swapping in place avoids a second compiled network.
        """
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
        return {"updates": self.updates, "waited": self.waited, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.waited = state["waited"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])
