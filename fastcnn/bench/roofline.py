"""Roofline of a training step: lower bound of its time from FLOPs, bytes and this machine's ceilings.

Each convolution and matrix product takes the time of its floating-point operations or of its bytes (inputs
read once, outputs written once), whichever is longer. All other operations count as fused into them, at no
cost. The update reads weights, gradients and momenta and writes weights and momenta. The sum is a lower bound
of the step's time (Williams, Waterman, Patterson, "Roofline", CACM 2009).
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
"""Candidate sides of the square matrices of a probe; the first whose product takes `LONG_ENOUGH` is used."""
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
"""Size of the copy probe, larger than most caches."""
LONG_ENOUGH = 0.05
"""Seconds of a probe's call; longer calls do not change the measured rate."""


@dataclass(frozen=True)
class Operation:
    """A convolution or matrix product, forward or backward."""

    flops: int
    bytes: int
    dtype: str


class Counter(TorchDispatchMode):
    """Records calls of the operations in `torch.utils.flop_counter`'s registry."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        # PyTorch counts the weight gradient of a grouped convolution as that of a dense one.
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
    """Return the operations of one call of an eager step."""
    with Counter() as counter:
        step()
    return counter.operations


@dataclass(frozen=True)
class Ceilings:
    """Rates that this machine reached in one process."""

    bytes_per_second: float
    """Bytes read and written by a large copy."""
    flops_per_second: dict[str, float]
    """Rate of a matrix product by dtype, such as "bfloat16"; a missing dtype counts as float32."""


def lower_bound(operations: list[Operation], parameters: int, ceilings: Ceilings) -> float:
    """Lower bound in seconds of a step with these operations.

    Args:
        parameters: number of trained float32 parameters; SGD with momentum moves 5 numbers for each.
    """
    seconds = 5 * 4 * parameters / ceilings.bytes_per_second
    for operation in operations:
        rate = ceilings.flops_per_second.get(operation.dtype, ceilings.flops_per_second["float32"])
        seconds += max(operation.flops / rate, operation.bytes / ceilings.bytes_per_second)
    return seconds


@dataclass(frozen=True)
class Probe:
    """A call with a known amount of work."""

    call: Callable[[], Tensor]
    work: int
    """Bytes moved, or FLOPs."""

    def __call__(self) -> Tensor:
        return self.call()


def copy(device: str) -> Probe:
    """Copy of `COPY_BYTES`, which are read and written."""
    source = torch.randn(COPY_BYTES[device] // 4, device=device)
    return Probe(partial(torch.empty_like(source).copy_, source), 2 * COPY_BYTES[device])


def product(device: str, dtype: str) -> Probe:
    """Product of random square matrices; on CUDA float32 is TF32, as in convolutions."""
    torch.set_float32_matmul_precision("high")

    def make(side: int) -> Probe:
        a, b = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
        return Probe(partial(torch.mm, a, b, out=torch.empty_like(a)), 2 * side**3)

    return grow(make, PRODUCT_SIDES[device])


def grow(
    make: Callable[[int], Probe], sizes: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> Probe:
    """Probe of the first size whose calls all take `LONG_ENOUGH`, else of the last size."""
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
    """Work of a worker's probe; a function for `Worker.call`."""
    assert isinstance(probe, Probe)
    return probe.work
