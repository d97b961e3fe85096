"""Metrics as sums on the device, without host syncs until they are computed."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.runtime.distributed import all_reduce_sum


class Metrics(Protocol):
    """Metrics of a task over batches, without a host sync until `compute`."""

    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        """Add a batch; `loss` is the mean over its real samples."""

    def compute(self) -> dict[str, float]:
        """Return the metrics over all ranks, and the number of samples as "samples". Collective."""

    def state(self) -> Tensor:
        """Return the sums of this rank, for a checkpoint or `add`."""

    def add(self, state: Tensor) -> None:
        """Add the sums of another state."""

    def reset(self) -> None:
        """Reset all sums to 0."""


class Sums:
    """Vector of named sums on `device`."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(len(names), dtype=dtype, device=device)

    def add(self, *increments: Tensor) -> None:
        """Add a scalar tensor to each sum, in the order of the names."""
        self.values += torch.stack([i.to(self.values.dtype) for i in increments])

    def over_ranks(self) -> dict[str, float]:
        """Return the sums over all ranks; syncs with the device. Collective."""
        return dict(zip(self.names, all_reduce_sum(self.values.clone()).tolist()))


class MeanLoss:
    """Number and mean loss of the real samples; base class of other metrics.

    Args:
        others: names of additional sums.
    """

    def __init__(self, device: torch.device, others: tuple[str, ...] = ()) -> None:
        self.sums = Sums(("samples", "loss", *others), device)

    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        samples = batch.mask.sum()
        self.sums.add(samples, loss.detach() * samples)

    def compute(self) -> dict[str, float]:
        totals = self.sums.over_ranks()
        return {"samples": totals["samples"], "loss": totals["loss"] / max(totals["samples"], 1)}

    def state(self) -> Tensor:
        return self.sums.values

    def add(self, state: Tensor) -> None:
        self.sums.values += state.to(self.sums.values)

    def reset(self) -> None:
        self.sums.values.zero_()
