"""Muon: momentum with an orthogonalized update of each filter bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.models.parts import classifier_names
from fastcnn.optim.skipping import SkippingOptimizer, zero_where

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Coefficients of X, X X' X and (X X')^2 X in the iteration; chosen by Jordan et al. for a steep slope at
0."""
STEPS = 3
"""Number of iterations, as in `airbench94_muon.py`."""
EPS = 1e-7

FILTER_MOMENTUM, OTHER_MOMENTUM = 0.6, 0.85
"""Momentum of filters, and of all other parameters."""
BIAS_RATE = 0.053 * 2000 / 0.24
"""Learning rate of biases and norms, relative to filters. In `airbench94_muon.py` the rates are 0.053 and
0.24 for a loss summed over 2,000 images; here the loss is the mean."""
CLASSIFIER_RATE = 0.67 * 2000 / 256 / 0.24
"""Learning rate of other weights times their number of inputs, relative to filters. In `airbench94_muon.py`
it is 0.67, for logits divided by the 256 inputs of the classifier. Undivided logits need 0.67 / 256^2."""


class Muon(SkippingOptimizer):
    """Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024), with Nesterov
    momentum and the fixed norms of `airbench94_muon.py`.

    In groups with "orthogonal" each parameter p is a filter bank [out, ...], and G its gradient as a matrix
    [out, inputs]:

        M = momentum M + G
        p = p sqrt(out) / |p|
        p = p - lr orthogonal(G + momentum M)

    The root mean square of the filters' norms is thus 1, which is no restriction with a norm after the layer.
    `weight_decay` would have no effect on these groups, and is ignored. Other groups are updated by SGD with
    Nesterov momentum as in torch, with the weight decay added to the gradient.

    Filters of one shape share a batched iteration, in bf16 on GPUs. There is no host sync. As fused
    optimizers, and for `torch.amp.GradScaler`, the step reads two attributes: `found_inf` (tensor []; above 0
    the step changes nothing) and `grad_scale` (tensor []; gradients are divided by it).

    Args:
        params: parameters, or groups as returned by `muon_groups`. The "lr" of a group may be a tensor [] on
            the device of its parameters.
        lr, momentum, weight_decay, orthogonal: defaults for groups without their own.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.24,
        *,
        momentum: float = FILTER_MOMENTUM,
        weight_decay: float = 0.0,
        orthogonal: bool = True,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": orthogonal}
        super().__init__(params, settings)

    def _update(
        self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        momenta = [self._momentum(p) for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        if grad_scale is not None:
            grads = list(torch._foreach_div(grads, grad_scale))
        decay = 0.0 if group["orthogonal"] else group["weight_decay"]
        grads = list(torch._foreach_add(grads, params, alpha=decay))  # always a copy
        momentum: Any = group["momentum"]
        rate: Any = group["lr"]
        if skip is not None:  # skipped step: momentum unchanged, no update
            zero_where(grads, skip)
            momentum, rate = torch.where(skip, 1.0, momentum), torch.where(skip, 0.0, rate)
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, grads)
        torch._foreach_add_(grads, momenta, alpha=group["momentum"])
        updates = grads
        if group["orthogonal"]:
            _fix_norms(params, skip)
            updates = _orthogonal_each(grads)
        torch._foreach_mul_(updates, rate)
        torch._foreach_sub_(params, updates)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _fix_norms(params: list[Tensor], skip: Tensor | None) -> None:
    """Scale each filter bank to a root mean square of 1 of its filters' norms, unless `skip` is true."""
    factors = list(torch._foreach_norm(params))
    torch._foreach_add_(factors, EPS)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [len(p) ** 0.5 for p in params])
    if skip is not None:
        factors = [torch.where(skip, 1.0, factor) for factor in factors]
    torch._foreach_mul_(params, factors)


def _orthogonal_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Apply `orthogonal` to each tensor as a matrix [len, rest], batched over equal shapes."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_shape.setdefault((len(tensor), tensor[0].numel()), []).append(i)
    results = list(tensors)
    for indices in by_shape.values():
        matrices = orthogonal(torch.stack([tensors[i].flatten(1) for i in indices]))
        for i, matrix in zip(indices, matrices):
            results[i] = matrix.view(tensors[i].shape)
    return results


def orthogonal(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Return approximately the nearest semi-orthogonal matrices: for U S V', U S' V' with S' about 1.

    Newton-Schulz iteration by a polynomial of degree 5 (Jordan et al. 2024). It does not converge: its
    coefficients increase small singular values fast, to values between about 0.7 and 1.2. After 3 steps those
    below about a fiftieth of the matrix norm are still small.

    Args:
        matrices: [N, rows, columns].
        steps: number of iterations; more of them increase smaller singular values.
    """
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + EPS)
    if matrices.is_cuda:
        x = x.bfloat16()
    wide = matrices.shape[1] <= matrices.shape[2]
    x = x if wide else x.mT
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


def muon_groups(
    network: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return all parameters in groups for `Muon`, each with a learning rate relative to filters ("lr_scale").

    Weights of convolutions are orthogonalized, except those of the classifier. The classifier, its bias
    included, and weights of other layers have the rate `CLASSIFIER_RATE` divided by their number of inputs.
    Biases and norms have `BIAS_RATE`. Other parameters of two or more dimensions, such as class tokens and
    position embeddings, do not multiply activations, and are not orthogonalized either (README of
    github.com/KellerJordan/Muon). Their rate is `CLASSIFIER_RATE` divided by their last dimension.

    Args:
        weight_decay: a step subtracts lr * weight_decay times the parameter, for all parameters but filters,
            independent of their relative rate.
        lr_scales: additional learning rate scales by parameter name; 1 by default.
    """
    heads = tuple(f"{name}." for name in classifier_names(network))
    inputs = {
        name: p[0].numel() if name.endswith("weight") else p.shape[-1]
        for name, p in network.named_parameters()
        if p.ndim > 1
    }

    # Group by kind, rate and scale; each group becomes one of the optimizer's.
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        in_head = name.startswith(heads)
        weight_inputs = inputs.get(f"{name.rpartition('.')[0]}.weight", 1)
        if parameter.ndim == 4 and name.endswith("weight") and not in_head:
            is_filter, rate = True, 1.0
        elif parameter.ndim > 1 or in_head:
            is_filter, rate = False, CLASSIFIER_RATE / inputs.get(name, weight_inputs)
        else:
            is_filter, rate = False, BIAS_RATE
        key = is_filter, rate, (lr_scales or {}).get(name, 1.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": params,
            "lr_scale": rate * scale,
            "momentum": FILTER_MOMENTUM if is_filter else OTHER_MOMENTUM,
            "weight_decay": 0.0 if is_filter else weight_decay / rate,
            "orthogonal": is_filter,
        }
        for (is_filter, rate, scale), params in groups.items()
    ]
