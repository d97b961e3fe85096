"""TensorFlow's RMSprop, the optimizer of MobileNetV3, MnasNet and EfficientNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcnn.optim.skipping import SkippingOptimizer, zero_where


class RMSpropTF(SkippingOptimizer):
    """RMSprop (Tieleman, Hinton 2012, lecture 6e) as in TensorFlow, which differs from torch in three points:

        v = alpha v + (1 - alpha) g^2,  v = 1 at first
        m = momentum m + lr g / sqrt(v + eps)
        p = p - m

    Epsilon is inside the square root. The mean square starts at 1. The momentum includes the learning rate of
    each step. The defaults are those of Tan et al. 2019 ("MnasNet", section 5.1) and Tan, Le 2019
    ("EfficientNet", section 5.2), with the epsilon of their code. Weight decay is added to the gradient, as
    L2 regularization.

    Steps are foreach operations without a host sync. As fused optimizers, and for `torch.amp.GradScaler`, the
    step reads two attributes: `found_inf` (tensor []; above 0 the step changes nothing) and `grad_scale`
    (tensor []; gradients are divided by it).

    Args:
        params: parameters, or groups of them. The "lr" of a group may be a tensor [] on the device of its
            parameters.
        lr: learning rate of groups without their own.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        alpha: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)

    def _update(
        self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        squares = [self._buffer(p, "square_avg", 1.0) for p in params]
        momenta = [self._buffer(p, "momentum_buffer", 0.0) for p in params]
        raw = [p.grad for p in params if p.grad is not None]
        scaled = torch._foreach_div(raw, grad_scale) if grad_scale is not None else raw
        grads = torch._foreach_add(scaled, params, alpha=group["weight_decay"])  # always a copy
        rate: float | Tensor = 1 - group["alpha"]
        momentum: float | Tensor = group["momentum"]
        if skip is not None:  # skipped step: mean square and momentum unchanged
            zero_where(grads, skip)
            rate, momentum = torch.where(skip, 0.0, rate), torch.where(skip, 1.0, momentum)

        # Mean square: v += (1 - alpha) (g^2 - v).
        change = torch._foreach_mul(grads, grads)
        torch._foreach_sub_(change, squares)
        torch._foreach_mul_(change, rate)
        torch._foreach_add_(squares, change)

        # Momentum and update.
        root = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(root)
        torch._foreach_div_(grads, root)
        torch._foreach_mul_(grads, group["lr"])
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, grads)
        updates = tuple(momenta) if skip is None else torch._foreach_mul(momenta, (~skip).float())
        torch._foreach_sub_(params, updates)

    def _buffer(self, parameter: Tensor, name: str, start: float) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.full_like(parameter, start)
        return state[name]
