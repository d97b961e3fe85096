"""Guard against infinite and NaN losses and weights."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastcnn.runtime.distributed import is_distributed


class FiniteGuard:
    """A flag on the device, set by the first infinite or NaN loss; it stops all updates.

    Fused optimizers skip a step by `found_inf`, as under `torch.amp.GradScaler`.
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self.bad_steps = torch.zeros((), device=device)
        self._pending: dist.Work | None = None

    def check(self, value: Tensor) -> None:
        """Set the flag if a value is infinite or NaN."""
        self.found_inf.copy_(torch.maximum(self.found_inf, (~torch.isfinite(value.detach())).float()))

    def share(self) -> None:
        """Start the all-reduce of the flag: one bad loss makes every rank's averaged gradient bad."""
        if is_distributed():
            self._pending = dist.all_reduce(self.found_inf, dist.ReduceOp.MAX, async_op=True)

    def nan_if_bad(self, loss: Tensor) -> Tensor:
        """Return the loss, or NaN once the flag is set: with fp16 the scaler skips the updates."""
        return torch.where(self.found_inf > 0, torch.nan, 1.0) * loss

    def finish_checks(self, norm: Tensor | None = None) -> None:
        """Finish the checks of a step: wait, on the stream, for the all-reduced flag.

        Args:
            norm: gradient norm before clipping, the same on all ranks; can set the flag too.
        """
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        if norm is not None:
            self.check(norm)
        self.bad_steps += self.found_inf

    def wait(self) -> None:
        """Wait until the device has finished all queued work."""
        self.found_inf.item()

    def count(self) -> int:
        """Return the number of steps from the first bad one on; waits for the device."""
        return int(self.bad_steps.item())
