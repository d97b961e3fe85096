"""Launches of the kernels in `_lrn_triton`: compile-time arguments and number of lanes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastcnn_kernels._lrn_triton import backward_kernel, forward_kernel
from fastcnn_kernels.support import run_kernel

WARPS = 4
LANES = 32 * WARPS
"""Lanes of a program."""
MOST_CHANNELS = 16
"""Largest window, limited by the registers."""
LOAD_BYTES = 16
"""Bytes of the widest load."""

KERNELS = {"forward": forward_kernel, "gradient": backward_kernel}


class Settings(NamedTuple):
    """Settings of a normalization, as those of `local_response_norm`."""

    size: int
    alpha: float
    beta: float
    k: float
    relu: bool


class Launch(NamedTuple):
    """Compile-time arguments of a kernel, and its lanes."""

    constants: dict[str, Any]
    lanes: int
    stride: int


def plan(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    channels_last: bool,
    size: int,
    relu: bool,
    aligned: bool = True,
) -> Launch:
    """Plan the launch for an input [N, C, ...] that is dense in either memory format.

    Args:
        aligned: every tensor begins at a multiple of 16 bytes.
    """
    channels, pixels = shape[1], math.prod(shape[2:])
    group = LOAD_BYTES // dtype.itemsize
    wide = channels_last and aligned and channels % group == 0 and size - 1 <= group
    stride = 1 if channels_last else pixels
    lanes = shape[0] * pixels * -(-channels // group)
    constants = {"C": channels, "SIZE": size, "RELU": relu, "GROUP": group, "WIDE": wide, "BLOCK": LANES}
    return Launch(constants, lanes, stride)


def why_not(input: Tensor, size: int, alpha: float, k: float) -> str | None:
    """Reason why the kernels cannot do this normalization; None if they can."""
    if input.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{input.dtype}"
    if size > MOST_CHANNELS:
        return f"a window of {size} channels (up to {MOST_CHANNELS} have a kernel)"
    if alpha < 0:  # the divisor may be negative, and has no logarithm then
        return f"alpha {alpha} (from 0 on has a kernel)"
    if k <= 0:
        return f"k {k} (above 0 has a kernel)"
    lanes = plan(tuple(input.shape), input.dtype, channels_last=True, size=size, relu=False).lanes
    # Offsets before the first channel are computed, though not read.
    image = max(input.shape[1], size) * math.prod(input.shape[2:])
    if image >= 2**31 or lanes >= 2**31 - LANES:
        return f"an input of {tuple(input.shape)}, whose offsets or lanes take more than 32 bits"
    return None


def forward(input: Tensor, output: Tensor, settings: Settings) -> None:
    """Write the normalized input to `output`, both dense in the same memory format."""
    _launch(forward_kernel, (input, output), settings)


def backward(grad_output: Tensor, input: Tensor, grad_input: Tensor, settings: Settings) -> None:
    """Write the gradient to `grad_input`, all three dense in the same memory format."""
    _launch(backward_kernel, (grad_output, input, grad_input), settings)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], settings: Settings) -> None:
    input = tensors[-2]
    planned = plan(
        tuple(input.shape),
        input.dtype,
        channels_last=input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last),
        size=settings.size,
        relu=settings.relu,
        aligned=all(tensor.data_ptr() % LOAD_BYTES == 0 for tensor in tensors),
    )
    run_kernel(
        kernel,
        (triton.cdiv(planned.lanes, LANES),),
        *tensors,
        planned.lanes,
        planned.stride,
        settings.alpha / settings.size,
        float(settings.beta),
        float(settings.k),
        **planned.constants,
        THREE_QUARTERS=settings.beta == 0.75,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
