"""Where the Triton kernels can run, and how a fallback is said."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch


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


@functools.cache
def say_once(message: str) -> None:
    """Warns the first time that it is told a message."""
    warnings.warn(message, stacklevel=3)
