"""Muon: momentum whose update of each bank of filters is made orthogonal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcnn.models.parts import classifier_names
from fastcnn.optim.rmsprop import zero_where

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of X, X X' X and (X X')^2 X in a step of the iteration; chosen by Jordan et al. for steepness at 0."""
STEPS = 3
"""Of the iteration, as in `airbench94_muon.py`."""
EPS = 1e-7

FILTER_MOMENTUM, OTHER_MOMENTUM = 0.6, 0.85
"""Of filters, and of all else."""
BIAS_RATE = 0.053 * 2000 / 0.24
"""Learning rate of biases and norms over that of filters. `airbench94_muon.py` has 0.053 beside 0.24, for a
loss that is the sum over 2,000 images; here it is their mean."""
CLASSIFIER_RATE = 0.67 * 2000 / 256 / 0.24
"""The same of other weights, times their number of inputs. There it is 0.67, under logits that are divided by
the classifier's 256 inputs: for undivided ones, 0.67 / 256^2."""


class Muon(Optimizer):
    """Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024), with Nesterov
    momentum and the fixed norms of `airbench94_muon.py`.

    In groups with "orthogonal" each parameter p is a bank of filters, [out, ...], and G its gradient as a
    matrix [out, inputs]:

        M = momentum M + G
        p = p sqrt(out) / |p|
        p = p - lr orthogonal(G + momentum M)

    so that a filter's norm is 1 in the quadratic mean; a norm after the layer makes that no restriction.
    `weight_decay` would mean nothing there, and is not read. Other groups are updated by SGD with Nesterov
    momentum, as torch's, their weight decay in the gradient.

    Filters of one shape go through the iteration together, on GPUs in bf16. Nothing waits for the device. As
    fused optimizers, and for `torch.amp.GradScaler`, it reads the attributes `found_inf` (tensor [], above 0:
    this step changes nothing) and `grad_scale` (tensor [] that gradients are divided by).

    Args:
        params: parameters, or groups of them as `muon_groups` makes them; each group's "lr" may be a tensor
            [] on their device.
        lr, momentum, weight_decay, orthogonal: of groups without their own.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.24,
        momentum: float = FILTER_MOMENTUM,
        weight_decay: float = 0.0,
        orthogonal: bool = True,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": orthogonal}
        super().__init__(params, settings)

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
        momenta = [self._momentum(p) for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        if grad_scale is not None:
            grads = list(torch._foreach_div(grads, grad_scale))
        decay = 0.0 if group["orthogonal"] else group["weight_decay"]
        grads = list(torch._foreach_add(grads, params, alpha=decay))  # a copy in any case
        kept: Any = group["momentum"]
        rate: Any = group["lr"]
        if skip is not None:  # then the momentum keeps all and takes nothing up, and moves nothing
            zero_where(grads, skip)
            kept, rate = torch.where(skip, 1.0, kept), torch.where(skip, 0.0, rate)
        torch._foreach_mul_(momenta, kept)
        torch._foreach_add_(momenta, grads)
        torch._foreach_add_(grads, momenta, alpha=group["momentum"])
        moves = grads
        if group["orthogonal"]:
            _fix_norms(params, skip)
            moves = _orthogonal_each(grads)
        torch._foreach_mul_(moves, rate)
        torch._foreach_sub_(params, moves)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _fix_norms(params: list[Tensor], skip: Tensor | None) -> None:
    """Makes the filters' norm 1 in the quadratic mean over each bank, unless `skip` is true."""
    factors = list(torch._foreach_norm(params))
    torch._foreach_add_(factors, EPS)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [len(p) ** 0.5 for p in params])
    if skip is not None:
        factors = [torch.where(skip, 1.0, factor) for factor in factors]
    torch._foreach_mul_(params, factors)


def _orthogonal_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonal` of each tensor as a matrix [len, rest], those of one shape together."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_shape.setdefault((len(tensor), tensor[0].numel()), []).append(i)
    results = list(tensors)
    for where in by_shape.values():
        matrices = orthogonal(torch.stack([tensors[i].flatten(1) for i in where]))
        for i, matrix in zip(where, matrices):
            results[i] = matrix.view(tensors[i].shape)
    return results


def orthogonal(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices: of U S V', U S' V' with S' about 1.

    Newton-Schulz iteration by a polynomial of degree 5 (Jordan et al. 2024). It does not converge: its
    coefficients bring small singular values up fast, and leave them anywhere from about 0.7 to 1.2. After
    3 steps those below about a fiftieth of the matrix's norm are still small.

    Args:
        matrices: [N, rows, columns].
        steps: more bring up smaller singular values.
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
    model: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """All parameters in groups for `Muon`, with what each has in place of a learning rate: "lr_scale", its
    share of the filters'.

    Weights of convolutions are made orthogonal, but for those that make the logits. The classifier, its bias
    included, and weights of other layers get `CLASSIFIER_RATE` over their inputs, and biases and norms
    `BIAS_RATE`. What else has more than one dimension, such as class tokens and embeddings of positions, is
    no matrix that multiplies, and is not made orthogonal either (README of github.com/KellerJordan/Muon): it
    gets `CLASSIFIER_RATE` over its last dimension.

    Args:
        weight_decay: a step takes away lr * weight_decay of all but filters, whatever their share of lr.
        lr_scales: further shares of the learning rate by the parameter's name; 1 where there is none.
    """
    heads = tuple(f"{name}." for name in classifier_names(model))
    inputs = {
        name: p[0].numel() if name.endswith("weight") else p.shape[-1]
        for name, p in model.named_parameters()
        if p.ndim > 1
    }
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        head = name.startswith(heads)
        of_weight = inputs.get(f"{name.rpartition('.')[0]}.weight", 1)
        if parameter.ndim == 4 and name.endswith("weight") and not head:
            filters, rate = True, 1.0
        elif parameter.ndim > 1 or head:
            filters, rate = False, CLASSIFIER_RATE / inputs.get(name, of_weight)
        else:
            filters, rate = False, BIAS_RATE
        key = filters, rate, (lr_scales or {}).get(name, 1.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": params,
            "lr_scale": rate * share,
            "momentum": FILTER_MOMENTUM if filters else OTHER_MOMENTUM,
            "weight_decay": 0.0 if filters else weight_decay / rate,
            "orthogonal": filters,
        }
        for (filters, rate, share), params in groups.items()
    ]
