"""Local response normalization as `torch.nn.functional.local_response_norm`, each pass in one kernel.

    from fastcnn_kernels import local_response_norm
    y = local_response_norm(x, 5)                # x [N, C, ...]
    y = local_response_norm(x, 5, relu=True)     # of relu(x), as in AlexNet

Two operators, each with a schema, a shape function, a PyTorch implementation for every device and a Triton
kernel for CUDA. Both are differentiable. The function and the module follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn_kernels.support import warn_once, why_not_triton

FORWARD = "fastcnn::local_response_norm"
BACKWARD = "fastcnn::local_response_norm_backward"
_SETTINGS = "int size, float alpha, float beta, float k, bool relu"

torch.library.define(FORWARD, f"(Tensor input, {_SETTINGS}) -> Tensor")
torch.library.define(BACKWARD, f"(Tensor grad_output, Tensor input, {_SETTINGS}) -> Tensor")


def _dense(input: Tensor) -> Tensor:
    """Return the input channels-last if it is (4-D), else contiguous: the memory format of results."""
    channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
    return input if channels_last else input.contiguous()


@torch.library.register_fake(FORWARD)
def _(input: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool) -> Tensor:
    return torch.empty_like(_dense(input))


@torch.library.register_fake(BACKWARD)
def _(
    grad_output: Tensor, input: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool
) -> Tensor:
    return torch.empty_like(_dense(input))


def _window_sums(values: Tensor, before: int, after: int) -> Tensor:
    """Sum over the window of each channel, from `before` channels before it to `after` after it."""
    sums = values.clone()
    for offset in range(-before, after + 1):
        count = values.shape[1] - abs(offset)
        if offset and count > 0:
            sums.narrow(1, max(0, -offset), count).add_(values.narrow(1, max(0, offset), count))
    return sums


def _arithmetic(input: Tensor, *, relu: bool) -> Tensor:
    """Cast the input to the precision of the arithmetic, and rectify it with `relu`."""
    x = input if input.dtype == torch.float64 else input.float()
    return x.relu() if relu else x


def _divisor(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    return _window_sums(x.square(), size // 2, (size - 1) // 2).mul_(alpha / size).add_(k)


def _power(d: Tensor, beta: float) -> Tensor:
    """d ** -beta"""
    if beta == 0.75:  # several times as fast as pow
        root = d.rsqrt()
        return root.sqrt().mul_(root)
    return d.pow(-beta)


def _forward(input: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool) -> Tensor:
    x = _arithmetic(input, relu=relu)
    power = _power(_divisor(x, size, alpha, k), beta)
    return torch.empty_like(_dense(input)).copy_(power.mul_(x))


def _backward(
    grad_output: Tensor, input: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool
) -> Tensor:
    x = _arithmetic(input, relu=relu)
    d = _divisor(x, size, alpha, k)
    grad = _power(d, beta).mul_(grad_output)
    sums = _window_sums(d.reciprocal_().mul_(grad).mul_(x), (size - 1) // 2, size // 2)
    grad.addcmul_(sums, x, value=-2 * alpha / size * beta)
    if relu:
        grad.masked_fill_(x == 0, 0)
    return torch.empty_like(_dense(input)).copy_(grad)


def _use_triton(input: Tensor, size: int, alpha: float, k: float) -> bool:
    why = why_not_triton(input.device)
    if why is None:
        from fastcnn_kernels import lrn_launch

        why = lrn_launch.why_not(input, size, alpha, k)
    if why is not None:
        warn_once(f"fastcnn_kernels: local response normalization by PyTorch: {why}")
    return why is None and input.numel() > 0


def _forward_cuda(input: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool) -> Tensor:
    input = _dense(input)
    if not _use_triton(input, size, alpha, k):
        return _forward(input, size, alpha, beta, k, relu)
    from fastcnn_kernels import lrn_launch

    output = torch.empty_like(input)
    with torch.cuda.device_of(input):
        lrn_launch.forward(input, output, lrn_launch.Settings(size, alpha, beta, k, relu))
    return output


def _backward_cuda(
    grad_output: Tensor, input: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool
) -> Tensor:
    input = _dense(input)
    if not _use_triton(input, size, alpha, k):
        return _backward(grad_output, input, size, alpha, beta, k, relu)
    from fastcnn_kernels import lrn_launch

    grad_input = torch.empty_like(input)
    if grad_output.stride() != input.stride():
        grad_output = torch.empty_like(input).copy_(grad_output)
    with torch.cuda.device_of(input):
        settings = lrn_launch.Settings(size, alpha, beta, k, relu)
        lrn_launch.backward(grad_output, input, grad_input, settings)
    return grad_input


torch.library.impl(FORWARD, "default", _forward)
torch.library.impl(BACKWARD, "default", _backward)
torch.library.impl(FORWARD, "cuda", _forward_cuda)
torch.library.impl(BACKWARD, "cuda", _backward_cuda)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.size, ctx.alpha, ctx.beta, ctx.k, ctx.relu = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    (input,) = ctx.saved_tensors
    grad = torch.ops.fastcnn.local_response_norm_backward(
        grad_output, input, ctx.size, ctx.alpha, ctx.beta, ctx.k, ctx.relu
    )
    return grad, None, None, None, None, None


torch.library.register_autograd(FORWARD, _gradient, setup_context=_keep)


def _second_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of sum(grad * backward(grad_output, input)), for gradient penalties."""
    grad_output, input = ctx.saved_tensors
    before, after, scale, beta = ctx.size // 2, (ctx.size - 1) // 2, ctx.alpha / ctx.size, ctx.beta
    x = _arithmetic(input, relu=ctx.relu)
    v = grad.to(x.dtype).masked_fill(x == 0, 0) if ctx.relu else grad.to(x.dtype)
    g = grad_output.to(x.dtype)
    d = _divisor(x, ctx.size, ctx.alpha, ctx.k)
    power = d.pow(-beta)
    slope = -2 * scale * beta * power / d
    cross = _window_sums(x * v, before, after)
    to_grad_output = power * v + slope * x * cross

    def mirrored(values: Tensor) -> Tensor:
        return _window_sums(values, after, before)

    curve = -2 * scale * (beta + 1) * slope / d
    to_input = (
        x * mirrored(slope * g * v + curve * g * x * cross) + slope * g * cross + v * mirrored(slope * g * x)
    )
    if ctx.relu:
        to_input = to_input.masked_fill(x == 0, 0)
    return to_grad_output.to(grad_output.dtype), to_input.to(input.dtype), None, None, None, None, None


torch.library.register_autograd(BACKWARD, _second_gradient, setup_context=_keep)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, relu: bool = False
) -> Tensor:
    """Local response normalization over channels (Krizhevsky et al. 2012, section 3.3).

    output = input / (k + alpha / size * sum of input ** 2 over `size` neighboring channels) ** beta, as
    `torch.nn.functional.local_response_norm`; the paper does not divide alpha by the window's size.
    The backward pass computes the sums again and keeps the input alone. Arithmetic is in float32, under
    autocast too, and the result has the input's dtype.

    Args:
        input: [N, C, ...], floating.
        size: channels in the window, 1 or more.
        relu: normalize relu(input).

    Returns:
        A tensor of the input's shape and dtype: in channels-last memory if the input is (4-D), else
        contiguous.

    Raises:
        ValueError: an empty window, or an input that is not [N, C, ...] or not floating.
    """
    if size < 1:
        raise ValueError(f"size {size}: a window has 1 channel or more")
    if input.dim() < 3:
        raise ValueError(f"input {tuple(input.shape)}: expected [N, C, ...] with 3 axes or more")
    if not input.is_floating_point():
        raise ValueError(f"input of {input.dtype}: expected a floating dtype; use input.float()")
    return torch.ops.fastcnn.local_response_norm(input, size, alpha, beta, k, relu)


class LocalResponseNorm(nn.LocalResponseNorm):
    """`local_response_norm` as a layer: an `nn.LocalResponseNorm`, with `relu` of relu(input)."""

    relu = False

    def __init__(
        self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, relu: bool = False
    ) -> None:
        super().__init__(size, alpha, beta, k)
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k, self.relu)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")
