"""Where the Triton kernels can run, on what, and how a fallback is said."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import torch

only_compile = False
"""Set in processes that fill Triton's cache: no kernel is launched any more."""


def run_kernel(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """As `kernel[grid](*arguments, **constants)`."""
    kernel.run(*arguments, grid=grid, warmup=only_compile, **constants)


@functools.cache
def why_not_triton(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a CUDA device, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "the kernels were written for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU is of compute capability {capability[0]}.{capability[1]}, and Triton needs 8.0"
    return None


def why_no_kernel(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> str | None:
    """Why no Triton kernel does a depthwise convolution of these settings; None if one does."""
    if kernel not in ((3, 3), (5, 5), (7, 7)):
        return f"a kernel of {kernel[0]} x {kernel[1]} (3 x 3, 5 x 5 and 7 x 7 have one)"
    if stride not in ((1, 1), (2, 2)):
        return f"stride {stride} (1 and 2 have one)"
    if dilation != (1, 1):
        return f"dilation {dilation}"
    return None


@functools.cache
def say_once(message: str) -> None:
    """Warns the first time that it is told a message."""
    warnings.warn(message, stacklevel=3)
