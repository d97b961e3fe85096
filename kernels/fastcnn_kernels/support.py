"""Support of the Triton kernels: devices, layers, launches and warnings of a fallback."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import torch

Pair = tuple[int, int]
"""Vertical and horizontal."""
Geometry = tuple[Pair, Pair, Pair]
"""Stride, padding and dilation."""

only_compile = False
"""Compile kernels without launching them. Set in processes that fill Triton's cache."""


def run_kernel(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Launch `kernel[grid](*arguments, **constants)`, or only compile it."""
    kernel.run(*arguments, grid=grid, warmup=only_compile, **constants)


@functools.cache
def why_not_triton(device: torch.device) -> str | None:
    """Reason why Triton kernels cannot run on a CUDA device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "the kernels were written for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU is of compute capability {capability[0]}.{capability[1]}, and Triton needs 8.0"
    return None


def why_no_kernel(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> str | None:
    """Reason why a depthwise convolution has no Triton kernel; None if it has one."""
    if kernel not in ((3, 3), (5, 5), (7, 7)):
        return f"a kernel of {kernel[0]} x {kernel[1]} (3 x 3, 5 x 5 and 7 x 7 have one)"
    if stride not in ((1, 1), (2, 2)):
        return f"stride {stride} (1 and 2 have one)"
    if dilation != (1, 1):
        return f"dilation {dilation}"
    return None


@functools.cache
def warn_once(message: str) -> None:
    """Warn, once for each message."""
    warnings.warn(message, stacklevel=3)
