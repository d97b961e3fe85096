"""The mean of the weights of a run's last epochs (Izmailov et al., "Averaging Weights Leads to Wider Optima
and Better Generalization", UAI 2018)."""

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

BATCHES = 100
"""Of training, over which the statistics of batch norm are taken anew, at most."""


class Average:
    """A running mean of the weights that validation sees after whole epochs, on the CPU."""

    def __init__(self) -> None:
        self.epochs = 0
        self.weights: dict[str, Tensor] = {}

    def add(self, state: TrainState) -> None:
        """Adds the weights of an epoch."""
        self.epochs += 1
        for name, value in pack_state(state)["weights"].items():
            own = value.detach().to("cpu", copy=True)
            if own.is_floating_point() and name in self.weights:
                own = self.weights[name] + (own - self.weights[name]) / self.epochs
            self.weights[name] = own

    def including_partial_epoch(self, state: TrainState) -> Average:
        """The mean with the weights of an epoch that was cut short. It is another one, so that a run that is
        given more epochs and finishes that one does not count it twice."""
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
    """Makes the average the network's weights, and takes the statistics of its batch norms anew from training
    batches, as `torch.optim.swa_utils.update_bn` does. A moving average of the weights begins anew with them.
    All ranks call it."""
    state.network.load_state_dict(average.weights)
    _take_statistics(state, loader)
    if state.ema is not None:
        state.ema.restart()


def batches_looked_at(network: nn.Module, loader: Loader) -> int:
    """How many training batches `load_averaged` takes for the statistics, at most."""
    has_statistics = any(
        isinstance(module, _BatchNorm) and module.track_running_stats for module in network.modules()
    )
    return min(BATCHES, len(loader)) if has_statistics else 0


def _take_statistics(state: TrainState, loader: Loader) -> None:
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
        norm.momentum = None  # a mean in which every batch counts the same
    model: nn.Module = getattr(state.eval_model, "_orig_mod", state.eval_model)  # not to compile it once more
    loader.load_state_dict({"epoch": 0, "consumed": 0})  # its first epoch may be the one that has just ended
    for batch in islice(loader, BATCHES):
        with state.autocast():
            model(batch.images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    average_buffers(state.network, [b for b in state.network.buffers() if id(b) in fixed])
