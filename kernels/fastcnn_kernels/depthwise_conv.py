"""Depthwise convolution: `torch.nn.functional.conv2d` with groups = channels.

    from fastcnn_kernels import depthwise_conv2d
    y = depthwise_conv2d(x, weight, padding=1)   # x [N, C, H, W] in channels-last memory, weight [C, 1, 3, 3]

Three operators, each with a schema, a shape function, a PyTorch implementation for every device and Triton
kernels for CUDA. Each is differentiable, so gradients of gradients work. The function and the module follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn_kernels import dispatch
from fastcnn_kernels.support import Geometry, Pair, warn_once, why_not_triton

HALF = (torch.bfloat16, torch.float16)

FORWARD = "fastcnn::depthwise_conv2d"
INPUT_GRAD = "fastcnn::depthwise_conv2d_input_grad"
WEIGHT_GRAD = "fastcnn::depthwise_conv2d_weight_grad"
_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation"

torch.library.define(FORWARD, f"(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
torch.library.define(
    INPUT_GRAD, f"(Tensor grad_output, Tensor weight, SymInt[4] input_size, {_GEOMETRY}) -> Tensor"
)
# The second result is empty without a bias.
torch.library.define(
    WEIGHT_GRAD,
    f"(Tensor grad_output, Tensor input, Tensor weight, bool bias, {_GEOMETRY}) -> (Tensor, Tensor)",
)


def _format(tensor: Tensor) -> torch.memory_format:
    """Memory format of results: that of the input, channels-last where both apply."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _empty(like: Tensor, size: Sequence[int]) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=_format(like))


def output_size(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    sides = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    )
    return [input.shape[0], input.shape[1], *sides]


# Shape functions


@torch.library.register_fake(FORWARD)
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    size = output_size(input, weight, stride, padding, dilation)
    return input.new_empty(size).contiguous(memory_format=_format(input))


@torch.library.register_fake(INPUT_GRAD)
def _(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    return grad_output.new_empty(input_size).contiguous(memory_format=_format(grad_output))


@torch.library.register_fake(WEIGHT_GRAD)
def _(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(weight.shape[0] if bias else 0)


# PyTorch implementations, for every device


def pytorch_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups=input.shape[1])
    return output.contiguous(memory_format=_format(input))


torch.library.impl(FORWARD, "default", pytorch_forward)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    *,
    bias: bool,
    geometry: Geometry,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; `mask` selects those to compute."""
    channels = weight.shape[0]
    return torch.ops.aten.convolution_backward(
        grad_output,
        input,
        weight.to(input.dtype),
        [channels] if bias else None,
        *geometry,
        False,  # transposed
        [0, 0],  # output padding
        channels,
        mask,
    )


def _wide(tensor: Tensor, *, slow: bool) -> Tensor:
    """Cast to float32 where half precision is `slow` on the CPU.

    oneDNN takes up to 300 times as long as in float32 for the input gradient of a strided depthwise
    convolution, and two to eight times for the weight gradient of kernels above 3 x 3 and of maps smaller
    than the kernel (benchmarks/LOG.md).
    """
    return tensor.float() if slow and tensor.device.type == "cpu" and tensor.dtype in HALF else tensor


def pytorch_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    wide = _wide(grad_output, slow=max(stride) > 1)
    input = _empty(wide, input_size)  # only its size and memory format are read
    geometry, mask = (stride, padding, dilation), (True, False, False)
    grad, _, _ = _backward(wide, input, weight, bias=False, geometry=geometry, mask=mask)
    return grad.to(grad_output.dtype).contiguous(memory_format=_format(grad_output))


torch.library.impl(INPUT_GRAD, "default", pytorch_input_grad)


def pytorch_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor, Tensor]:
    geometry = (stride, padding, dilation)
    side = max(weight.shape[2:])
    slow = side > 3 or side > min(input.shape[2:])
    grad_output, input = _wide(grad_output, slow=slow), _wide(input, slow=slow)
    mask = (False, True, bias)
    _, grad, bias_grad = _backward(grad_output, input, weight, bias=bias, geometry=geometry, mask=mask)
    # DDP's buckets expect the weight's layout.
    grad = torch.empty_like(weight).copy_(grad)
    return grad, bias_grad.to(weight.dtype) if bias else weight.new_empty(0)


torch.library.impl(WEIGHT_GRAD, "default", pytorch_weight_grad)


# Triton kernels on CUDA, where they apply and are faster


def _use_triton(
    kind: str,
    tensors: tuple[Tensor, ...],
    weight: Tensor,
    input_size: Sequence[int],
    geometry: Geometry,
) -> bool:
    """True if the pass `kind` of a layer, which reads `tensors`, runs on Triton."""
    stride, padding, _ = geometry
    first = tensors[0]
    why = why_not_triton(first.device)
    if why is None:
        from fastcnn_kernels import depthwise_conv_launch as launch

        why = launch.why_not(tensors, weight, input_size, geometry)
    if why is not None:
        warn_once(f"fastcnn_kernels: depthwise convolution by PyTorch: {why}")
        return False
    return first.numel() > 0 and dispatch.wins(
        kind,
        first.device,
        first.dtype,
        input_size=tuple(input_size),
        kernel=weight.shape[2],
        stride=stride[0],
        padding=padding,
    )


def _forward_cuda(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    stride, padding, dilation = geometry = pair(stride), pair(padding), pair(dilation)
    if not _use_triton("forward", (input,), weight, input.shape, geometry):
        return pytorch_forward(input, weight, bias, stride, padding, dilation)
    from fastcnn_kernels import depthwise_conv_launch as launch

    output = _empty(input, output_size(input, weight, stride, padding, dilation))
    with torch.cuda.device_of(input):
        launch.forward(input, weight, bias, output, stride=stride, padding=padding)
    return output


torch.library.impl(FORWARD, "cuda", _forward_cuda)


def _input_grad_cuda(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    stride, padding, dilation = geometry = pair(stride), pair(padding), pair(dilation)
    if not _use_triton("input_grad", (grad_output,), weight, input_size, geometry):
        return pytorch_input_grad(grad_output, weight, input_size, stride, padding, dilation)
    from fastcnn_kernels import depthwise_conv_launch as launch

    grad_input = _empty(grad_output, input_size)
    with torch.cuda.device_of(grad_output):
        launch.input_grad(grad_output, weight, grad_input, stride=stride, padding=padding)
    return grad_input


torch.library.impl(INPUT_GRAD, "cuda", _input_grad_cuda)


def _weight_grad_cuda(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor, Tensor]:
    stride, padding, dilation = geometry = pair(stride), pair(padding), pair(dilation)
    if not _use_triton("weight_grad", (grad_output, input), weight, input.shape, geometry):
        return pytorch_weight_grad(grad_output, input, weight, bias, stride, padding, dilation)
    from fastcnn_kernels import depthwise_conv_launch as launch

    grad_weight = torch.empty_like(weight)
    grad_bias = weight.new_empty(weight.shape[0] if bias else 0)
    to_bias = grad_bias if bias else None
    with torch.cuda.device_of(input):
        launch.weight_grad(grad_output, input, grad_weight, to_bias, stride=stride, padding=padding)
    return grad_weight, grad_bias


torch.library.impl(WEIGHT_GRAD, "cuda", _weight_grad_cuda)


# Gradients. The operators are derivatives of one trilinear form, so each one's gradients are the others.


def _keep_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *ctx.geometry = inputs
    ctx.memory_format, ctx.input_size = _format(input), input.shape
    _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    ctx.save_for_backward(input if needs_weight or needs_bias else None, weight)


def _forward_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    # Copy an expanded gradient, or one in another format than the input's, once for both passes.
    grad_output = grad_output.contiguous(memory_format=ctx.memory_format)
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = torch.ops.fastcnn.depthwise_conv2d_input_grad(
            grad_output, weight, ctx.input_size, *ctx.geometry
        )
    if needs_weight or needs_bias:
        grad_weight, grad_bias = torch.ops.fastcnn.depthwise_conv2d_weight_grad(
            grad_output, input, weight, needs_bias, *ctx.geometry
        )
    return grad_input, grad_weight, grad_bias if needs_bias else None, None, None, None


torch.library.register_autograd(FORWARD, _forward_backward, setup_context=_keep_forward)


def _keep_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(grad_output, weight)


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, weight = ctx.saved_tensors
    grad = grad.contiguous(memory_format=_format(grad_output))
    to_output = torch.ops.fastcnn.depthwise_conv2d(grad, weight, None, *ctx.geometry)
    to_weight, _ = torch.ops.fastcnn.depthwise_conv2d_weight_grad(
        grad_output, grad, weight, False, *ctx.geometry
    )
    return to_output, to_weight, None, None, None, None


torch.library.register_autograd(INPUT_GRAD, _input_grad_backward, setup_context=_keep_input_grad)


def _keep_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_output, input, _, ctx.bias, *ctx.geometry = inputs
    ctx.save_for_backward(grad_output, input)


def _weight_grad_backward(ctx: Any, grad: Tensor, bias_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, input = ctx.saved_tensors
    bias = bias_grad if ctx.bias else None
    to_output = torch.ops.fastcnn.depthwise_conv2d(input, grad.contiguous(), bias, *ctx.geometry)
    to_input = torch.ops.fastcnn.depthwise_conv2d_input_grad(
        grad_output, grad.contiguous(), input.shape, *ctx.geometry
    )
    return to_output, to_input, None, None, None, None, None


torch.library.register_autograd(WEIGHT_GRAD, _weight_grad_backward, setup_context=_keep_weight_grad)


# The function and the module


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Depthwise convolution as `torch.nn.functional.conv2d(..., groups=C)`.

    On CUDA, kernels of 3, 5 and 7 at stride 1 and 2 run on Triton if the input is in channels-last memory.
    All else falls back to PyTorch, with one warning. Sums are accumulated in float32.

    Under autocast the input is cast like that of `conv2d`. A float32 weight is not cast: the Triton kernels
    read it and return its gradient in float32, where PyTorch rounds both to the input's dtype. On the CPU,
    gradients that are slow in half precision are computed in float32.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [C, 1, K, L], of the input's dtype or float32.
        bias: [C].
        stride, padding, dilation: numbers, for both axes or (vertical, horizontal). The padding "valid" is
            none, and "same", at stride 1, keeps the size.

    Returns:
        [N, C, (H + 2 * padding - dilation * (K - 1) - 1) // stride + 1, likewise], of the input's dtype and
        memory format.

    Raises:
        ValueError: incompatible shapes, or tensors on several devices.
    """
    if input.dim() == 3:
        return depthwise_conv2d(input[None], weight, bias, stride, padding, dilation)[0]
    _check_tensors(input, weight, bias)
    before, more = explicit_padding(padding, weight.shape[2:], stride, dilation)
    geometry = pair(stride), before, pair(dilation)
    if min(geometry[0]) < 1 or min(geometry[1]) < 0 or min(geometry[2]) < 1:
        raise ValueError(
            f"stride {stride}, padding {padding}, dilation {dilation}: at least 1, 0 and 1 are possible"
        )
    if any(more):
        input = F.pad(input, (0, more[1], 0, more[0]))
    size = output_size(input, weight, *geometry)
    if min(size[2:]) < 1:
        raise ValueError(
            f"input {tuple(input.shape)}: smaller than the kernel, {tuple(weight.shape[2:])}, at padding "
            f"{padding} and dilation {dilation}; use a larger padding"
        )
    return torch.ops.fastcnn.depthwise_conv2d(autocast_input(input), weight, bias, *geometry)


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError for incompatible shapes and for tensors on several devices."""
    if input.dim() != 4:
        raise ValueError(f"input {tuple(input.shape)}: expected [N, C, H, W] or [C, H, W]")
    channels = input.shape[1]
    if weight.dim() != 4 or weight.shape[0] != channels or weight.shape[1] != 1:
        raise ValueError(
            f"weight {tuple(weight.shape)}: expected ({channels}, 1, K, L) for an input of {channels} "
            "channels"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(
            f"bias {tuple(bias.shape)}: expected ({channels},) for an input of {channels} channels"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} on {tensor.device}, input on {input.device}: move one of them")


class DepthwiseConv2d(nn.Conv2d):
    """`depthwise_conv2d` as a layer: an `nn.Conv2d` with groups = channels, with the same state-dict keys.

    Args:
        channels: channels of input and output.
        kernel_size, stride, padding, dilation, bias, device, dtype: as for `nn.Conv2d`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride,
            padding,
            dilation,
            channels,
            bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        if self.padding_mode != "zeros":
            return super().forward(input)
        return depthwise_conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation)


def autocast_input(input: Tensor) -> Tensor:
    """Cast the input as `conv2d` does under autocast, which the meta device lacks."""
    # torch.amp.is_autocast_available would replace the comparison, but torch.compile of 2.11 cannot trace it.
    device = input.device.type
    if device == "meta" or input.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return input
    return input.to(torch.get_autocast_dtype(device))


def explicit_padding(
    padding: int | Sequence[int] | str,
    kernel: Sequence[int],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[Pair, Pair]:
    """Return the zeros on each side, vertical and horizontal, and those more at the bottom and on the right.

    Only "same" needs more on one side, where `dilation * (kernel - 1)` is odd.

    Raises:
        ValueError: another text than "same" and "valid", or "same" at a stride.
    """
    if not isinstance(padding, str):
        return pair(padding), (0, 0)
    if padding not in ("same", "valid"):
        raise ValueError(f'padding {padding!r}: use "same", "valid", a number, or (vertical, horizontal)')
    if padding == "valid":
        return (0, 0), (0, 0)
    if max(pair(stride)) > 1:
        raise ValueError(f'padding "same" at stride {stride}: use numbers, "same" keeps the size at stride 1')
    high, wide = (d * (k - 1) for k, d in zip(kernel, pair(dilation)))
    return (high // 2, wide // 2), (high % 2, wide % 2)


def pair(value: int | Sequence[int]) -> Pair:
    if isinstance(value, int):
        return value, value
    if len(value) not in (1, 2):
        raise ValueError(f"{value!r}: use a number for both axes, or (vertical, horizontal)")
    return value[0], value[-1]


# FLOPs from shapes, two for each multiply-add


def _flops_forward(input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int]) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[2:])


def _flops_input_grad(grad_output: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any) -> int:
    return 2 * math.prod(grad_output) * math.prod(weight[2:])


def _flops_weight_grad(
    grad_output: Sequence[int], input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any
) -> int:
    return 2 * math.prod(grad_output) * math.prod(weight[2:])


FLOPS = {
    torch.ops.fastcnn.depthwise_conv2d: _flops_forward,
    torch.ops.fastcnn.depthwise_conv2d_input_grad: _flops_input_grad,
    torch.ops.fastcnn.depthwise_conv2d_weight_grad: _flops_weight_grad,
}
"""For `torch.utils.flop_counter.FlopCounterMode(custom_mapping=FLOPS)`. They are not registered there, since
importing it imports Triton."""
