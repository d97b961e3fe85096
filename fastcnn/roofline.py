"""What a step must compute and move at least, and how fast this machine computes and moves.

A step's convolutions and products of matrices are taken one by one: each takes the time of its floating-point
operations or of its bytes (each input read once, each output written once), whichever is longer. All else is
taken to be fused into them, at no cost. The update reads weights, gradients and momenta and writes weights
and momenta. The sum is a lower bound of the step's time, and its share of the measured time says how close a
step comes (Williams, Waterman, Patterson, "Roofline", CACM 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastcnn_kernels.depthwise_conv import FLOPS

PRODUCT_SIDE = {"cuda": 8192, "cpu": 2048}
"""Of the square matrices that measure a product."""
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
"""More than most caches hold."""


@dataclass(frozen=True)
class Operation:
    """A convolution or a product of matrices, forward or backward."""

    flops: int
    bytes: int
    dtype: str


class Counter(TorchDispatchMode):
    """Collects the operations of `torch.utils.flop_counter`'s registry as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        # PyTorch takes the weight gradient of a grouped convolution for that of a dense one.
        own: dict[Any, Any] = {torch.ops.aten.convolution_backward: _convolution_backward}
        self._counts: dict[Any, Any] = {**flop_registry, **FLOPS, **own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = self._counts.get(func._overloadpacket)
        if count is not None:
            flops = count(*args, **(kwargs or {}), out_val=result)
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            dtype = str(tensors[0].dtype).removeprefix("torch.")
            self.operations.append(Operation(int(flops), moved, dtype))
        return result


def _convolution_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, *rest: Any, out_val: tuple[Tensor | None, ...]
) -> int:
    """Each gradient takes the multiply-adds of the forward pass."""
    gradients = sum(gradient is not None for gradient in out_val[:2])
    return 2 * gradients * grad_output.numel() * weight[0].numel()


def count(step: Callable[[], Any]) -> list[Operation]:
    """The operations of one call of an eager step."""
    with Counter() as counter:
        step()
    return counter.operations


@dataclass(frozen=True)
class Ceilings:
    """What this machine reached, in one process."""

    bytes_per_second: float
    """Of a large copy: bytes read and bytes written."""
    flops_per_second: dict[str, float]
    """Of a product of matrices, by dtype, such as "bfloat16"."""


def lower_bound(operations: list[Operation], parameters: int, ceilings: Ceilings) -> float:
    """Seconds that a step of these operations takes at least.

    Args:
        parameters: numbers that are trained, in float32, by SGD with momentum: 5 of each are moved.
    """
    seconds = 5 * 4 * parameters / ceilings.bytes_per_second
    for operation in operations:
        rate = ceilings.flops_per_second[operation.dtype]
        seconds += max(operation.flops / rate, operation.bytes / ceilings.bytes_per_second)
    return seconds


def copy(device: str) -> Callable[[], Tensor]:
    """A copy that moves twice `COPY_BYTES`."""
    source = torch.randn(COPY_BYTES[device] // 4, device=device)
    return partial(torch.empty_like(source).copy_, source)


def product(device: str, dtype: str) -> Callable[[], Tensor]:
    """A product of random square matrices of `PRODUCT_SIDE`; on CUDA float32 is TF32, as in convolutions."""
    torch.set_float32_matmul_precision("high")
    side = PRODUCT_SIDE[device]
    a, b = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
    return partial(torch.mm, a, b, out=torch.empty_like(a))


def ceilings(device: str, seconds: dict[str, list[float]]) -> Ceilings:
    """From the times of calls of `copy` ("copy") and of `product` (by dtype): the best of each counts."""
    best = {name: min(times) for name, times in seconds.items()}
    flops = 2 * PRODUCT_SIDE[device] ** 3
    moved = 2 * COPY_BYTES[device] / best.pop("copy", math.inf)
    return Ceilings(moved, {name: flops / time for name, time in best.items()})
