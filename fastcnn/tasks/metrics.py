"""Sums that stay on the device until somebody asks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.runtime.distributed import all_reduce_sum


class Metrics(Protocol):
    """What a task measures over batches, without waiting for the device until `compute`."""

    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        """Adds a batch. `loss` is its mean over the real samples."""

    def compute(self) -> dict[str, float]:
        """The metrics of all ranks' samples so far, and their number as "samples". All ranks call it."""

    def state(self) -> Tensor:
        """This rank's sums, for a checkpoint or to add to another's."""

    def add(self, state: Tensor) -> None:
        """Adds another's sums."""

    def reset(self) -> None:
        """Back to nothing."""


class Sums:
    """A vector of named sums on `device`."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.zeros(len(names), dtype=dtype, device=device)

    def add(self, *increments: Tensor) -> None:
        """Adds one scalar tensor for each name."""
        self.values += torch.stack([i.to(self.values.dtype) for i in increments])

    def over_ranks(self) -> dict[str, float]:
        """The sums of all ranks; waits for the device."""
        return dict(zip(self.names, all_reduce_sum(self.values.clone()).tolist()))


class MeanLoss:
    """The real samples' number and mean loss; what is measured beside them derives from it.

    Args:
        others: names of further sums.
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
