"""The guard against losses and weights that are infinite or NaN."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastcnn.runtime.distributed import is_distributed


class FiniteGuard:
    """Remembers on the device whether a loss was infinite or NaN; from then on no update is made.

    `found_inf` is what fused optimizers read to skip a step, as under `torch.amp.GradScaler`.
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self.bad_steps = torch.zeros((), device=device)
        self._pending: dist.Work | None = None

    def check(self, value: Tensor) -> None:
        self.found_inf.copy_(torch.maximum(self.found_inf, (~torch.isfinite(value.detach())).float()))

    def share(self) -> None:
        """Starts telling all ranks: one bad loss makes every rank's averaged gradient bad."""
        if is_distributed():
            self._pending = dist.all_reduce(self.found_inf, dist.ReduceOp.MAX, async_op=True)

    def nan_if_bad(self, loss: Tensor) -> Tensor:
        """The loss, or NaN from the first bad one on: with fp16 it is the scaler that skips updates."""
        return torch.where(self.found_inf > 0, torch.nan, 1.0) * loss

    def finish_checks(self, norm: Tensor | None = None) -> None:
        """Ends the step's checks, with a norm of the whole gradient, as it was before clipping, if there is
        one: after this every rank's flag is in, as far as the device's order of work goes."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        if norm is not None:  # the same on all ranks
            self.check(norm)
        self.bad_steps += self.found_inf

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        self.found_inf.item()

    def count(self) -> int:
        """Steps since the first bad one, itself included; waits for the device."""
        return int(self.bad_steps.item())
