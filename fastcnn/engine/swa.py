"""Stochastic weight averaging: the mean of the weights of a run's last epochs (Izmailov et al., "Averaging
Weights Leads to Wider Optima and Better Generalization", UAI 2018)."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcnn.data.loaders.base import Loader
from fastcnn.engine.checkpoint import pack_state
from fastcnn.engine.state import TrainState, to_training
from fastcnn.runtime.distributed import average_buffers

STATISTICS_BATCHES = 100
"""Max training batches for the recomputation of batch norm statistics."""


class Average:
    """Running mean, on the CPU, of the validated weights after whole epochs."""

    def __init__(self) -> None:
        self.epochs = 0
        self.weights: dict[str, Tensor] = {}

    def add(self, state: TrainState) -> None:
        """Add the weights of an epoch."""
        self.epochs += 1
        for name, value in pack_state(state)["weights"].items():
            own = value.detach().to("cpu", copy=True)
            if own.is_floating_point() and name in self.weights:
                own = self.weights[name] + (own - self.weights[name]) / self.epochs
            self.weights[name] = own

    def including_partial_epoch(self, state: TrainState) -> Average:
        """Return a copy with a partial epoch; a later run that finishes the epoch uses the original."""
        whole = Average()
        whole.epochs, whole.weights = self.epochs, dict(self.weights)
        whole.add(state)
        return whole

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.weights = state["epochs"], state["weights"]


@torch.no_grad()
def load_averaged(average: Average, state: TrainState, loader: Loader) -> None:
    """Load the average into the network and recompute its batch norm statistics from training batches.

    `torch.optim.swa_utils.update_bn` does the same. The exponential moving average restarts from these
    weights. All ranks call it.
    """
    state.network.load_state_dict(average.weights)
    _recompute_statistics(state, loader)
    if state.ema is not None:
        state.ema.restart()


def statistics_batches(network: nn.Module, loader: Loader) -> int:
    """Return the number of training batches from which `load_averaged` recomputes the statistics."""
    has_statistics = any(
        isinstance(module, _BatchNorm) and module.track_running_stats for module in network.modules()
    )
    return min(STATISTICS_BATCHES, len(loader)) if has_statistics else 0


def _recompute_statistics(state: TrainState, loader: Loader) -> None:
    to_training(state)
    fixed = {id(buffer) for buffer in state.frozen.buffers()} if state.frozen is not None else set()
    norms = [
        module
        for module in state.network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean: equal weight for all batches
    model: nn.Module = getattr(
        state.eval_model, "_orig_mod", state.eval_model
    )  # uncompiled, to avoid another graph
    loader.load_state_dict({"epoch": 0, "consumed": 0})  # the loader may be at the end of its epoch
    for batch in islice(loader, STATISTICS_BATCHES):
        with state.autocast():
            model(batch.images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    average_buffers(state.network, [b for b in state.network.buffers() if id(b) in fixed])
