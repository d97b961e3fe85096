"""Optimizers that skip a step on the device after a loss that is not finite, as torch's fused ones do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by bytes per element."""


class SkippingOptimizer(Optimizer):
    """Base of optimizers that read `found_inf` and `grad_scale` of `torch.amp.GradScaler` or the guard."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        skip = None if found_inf is None else found_inf > 0
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group, skip, grad_scale)
        return loss

    def _update(
        self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        """Update the parameters of a group that have gradients.

        Args:
            skip: bool [], true to change nothing; None if no step is skipped.
            grad_scale: divisor of the gradients; None for 1.
        """
        raise NotImplementedError


def zero_where(tensors: Sequence[Tensor], where: Tensor) -> None:
    """Fill tensors of one type with zeros if `where`, bool [], is true, without a host sync.

    The tensors are multiplied as integers: a product of floats would keep NaN and infinity.
    """
    bits = [tensor.view(INTEGERS[tensor.element_size()]) for tensor in tensors]
    torch._foreach_mul_(bits, (~where).to(bits[0].dtype))
