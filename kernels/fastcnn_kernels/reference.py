"""Reference implementations in plain PyTorch, which the kernels are tested against.

They are slow, differentiable and work in any dtype; use float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_response_norm_reference(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Local response normalization over channels (Krizhevsky et al. 2012, section 3.3).

    output = input / (k + alpha / size * sum of input ** 2 over `size` neighboring channels) ** beta, as
    `torch.nn.functional.local_response_norm`: channels beyond the ends count as zero, an even window
    reaches one channel further back, and alpha is divided by the window's size (the paper does not).

    Args:
        input: [N, C, ...].
        size: channels in the window, 1 or more.

    Returns:
        A tensor of the input's shape and dtype.
    """
    if size < 1:
        raise ValueError(f"size {size}: a window has 1 channel or more")
    squares = input.square()
    window = torch.zeros_like(squares)
    channels = input.shape[1]
    for offset in range(-(size // 2), (size - 1) // 2 + 1):
        first, last = max(0, -offset), min(channels, channels - offset)
        if first < last:
            window[:, first:last] += squares[:, first + offset : last + offset]
    return input / (k + alpha / size * window) ** beta


def depthwise_conv2d_reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Depthwise convolution as a sum over taps: `torch.nn.functional.conv2d` with groups = channels.

    Args:
        input: [N, C, H, W].
        weight: [C, 1, K, L].
        bias: [C].

    Returns:
        [N, C, (H + 2 * padding - dilation * (K - 1) - 1) // stride + 1, likewise for W].
    """
    if weight.shape[:2] != (input.shape[1], 1):
        raise ValueError(
            f"weight {tuple(weight.shape)}: expected ({input.shape[1]}, 1, K, L) for an input of "
            f"{input.shape[1]} channels"
        )
    padded = F.pad(input, (padding,) * 4)
    rows, columns = weight.shape[2:]
    height = (padded.shape[2] - dilation * (rows - 1) - 1) // stride + 1
    width = (padded.shape[3] - dilation * (columns - 1) - 1) // stride + 1
    output = input.new_zeros(input.shape[0], input.shape[1], height, width)
    for row in range(rows):
        for column in range(columns):
            top, left = row * dilation, column * dilation
            taps = padded[:, :, top : top + stride * (height - 1) + 1 : stride]
            taps = taps[:, :, :, left : left + stride * (width - 1) + 1 : stride]
            output = output + taps * weight[:, 0, row, column].view(1, -1, 1, 1)
    return output if bias is None else output + bias.view(1, -1, 1, 1)
