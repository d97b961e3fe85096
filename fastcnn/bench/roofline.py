"""What a step must compute and move at least, and how fast this machine computes and moves.

A step's convolutions and products of matrices are taken one by one: each takes the time of its floating-point
operations or of its bytes (each input read once, each output written once), whichever is longer. All else is
taken to be fused into them, at no cost. The update reads weights, gradients and momenta and writes weights
and momenta. The sum is a lower bound of the step's time, and its share of the measured time says how close a
step comes (Williams, Waterman, Patterson, "Roofline", CACM 2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastcnn_kernels.depthwise_conv import FLOPS

PRODUCT_SIDES = {"cuda": (8192,), "cpu": (64, 128, 256, 512, 1024, 2048)}
"""Sides of the square matrices that measure a product: the first whose product takes `LONG_ENOUGH`."""
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
"""More than most caches hold."""
LONG_ENOUGH = 0.05
"""Seconds of a call from which on a larger one would tell nothing more about the rate."""


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
    """Of a product of matrices, by dtype, such as "bfloat16". One without counts as float32."""


def lower_bound(operations: list[Operation], parameters: int, ceilings: Ceilings) -> float:
    """Seconds that a step of these operations takes at least.

    Args:
        parameters: numbers that are trained, in float32, by SGD with momentum: 5 of each are moved.
    """
    seconds = 5 * 4 * parameters / ceilings.bytes_per_second
    for operation in operations:
        rate = ceilings.flops_per_second.get(operation.dtype, ceilings.flops_per_second["float32"])
        seconds += max(operation.flops / rate, operation.bytes / ceilings.bytes_per_second)
    return seconds


@dataclass(frozen=True)
class Probe:
    """A call that does a known amount of work."""

    call: Callable[[], Tensor]
    work: int
    """Bytes moved, or FLOPs."""

    def __call__(self) -> Tensor:
        return self.call()


def copy(device: str) -> Probe:
    """A copy of `COPY_BYTES`, which are read and written."""
    source = torch.randn(COPY_BYTES[device] // 4, device=device)
    return Probe(partial(torch.empty_like(source).copy_, source), 2 * COPY_BYTES[device])


def product(device: str, dtype: str) -> Probe:
    """A product of random square matrices; on CUDA float32 is TF32, as in convolutions."""
    torch.set_float32_matmul_precision("high")

    def make(side: int) -> Probe:
        a, b = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
        return Probe(partial(torch.mm, a, b, out=torch.empty_like(a)), 2 * side**3)

    return _grow(make, PRODUCT_SIDES[device])


def _grow(
    make: Callable[[int], Probe], sizes: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> Probe:
    """The first size whose calls take `LONG_ENOUGH`, also the faster of two; else the last."""
    *smaller, last = sizes
    for size in smaller:
        probe = make(size)
        probe()  # allocates
        seconds = []
        for _ in range(2):
            start = clock()
            probe()
            seconds.append(clock() - start)
        if min(seconds) >= LONG_ENOUGH:
            return probe
    return make(last)


def work_of(probe: Callable[[], Tensor]) -> int:
    """Question to the worker of a probe."""
    assert isinstance(probe, Probe)
    return probe.work
