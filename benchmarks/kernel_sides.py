"""Sides of `bench_kernels.py`: for each pass of a layer ours, eager PyTorch's and the compiled one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn_kernels.depthwise_conv import depthwise_conv2d
from fastcnn_kernels.layers import Depthwise, Norm
from fastcnn_kernels.lrn import local_response_norm

PASSES = {Depthwise: ("forward", "input_grad", "weight_grad"), Norm: ("forward", "backward")}
WHOLE = ("layer forward", "layer training")

Run = Callable[[], Any]
Side = Callable[[Tensor, Tensor], Run]
"""Prepares a call from input and upstream gradient."""


def out_size(layer: Depthwise | Norm) -> int:
    return math.ceil(layer.size / layer.stride) if isinstance(layer, Depthwise) else layer.size


def floor_bytes(layer: Depthwise | Norm, step: str, batch: int, itemsize: int) -> int:
    """Lower bound of a pass's bytes: each tensor moves once; the weight is too small to count."""
    image = batch * layer.channels * itemsize
    both = image * (layer.size**2 + out_size(layer) ** 2)  # input and output, or their gradients
    if isinstance(layer, Depthwise):
        return both * (3 if step == "layer training" else 1)
    return both // 2 * {"backward": 3, "layer training": 5}.get(step, 2)


def sides_of(layer: Depthwise | Norm, step: str, weight: Tensor) -> dict[str, Side]:
    if step in WHOLE:
        return _whole(layer, step, weight)
    return _convolution(layer, step, weight) if isinstance(layer, Depthwise) else _norm(layer, step)


def _convolution(layer: Depthwise, step: str, weight: Tensor) -> dict[str, Side]:
    ops, aten = torch.ops.fastcnn, torch.ops.aten
    geometry = [layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1]
    rest = (*geometry, False, [0, 0], layer.channels)  # transposed, output padding, groups
    no_bias = False

    def ours(x: Tensor, dy: Tensor) -> Run:
        return {
            "forward": lambda: ops.depthwise_conv2d(x, weight, None, *geometry),
            "input_grad": lambda: ops.depthwise_conv2d_input_grad(dy, weight, x.shape, *geometry),
            "weight_grad": lambda: ops.depthwise_conv2d_weight_grad(dy, x, weight, no_bias, *geometry)[0],
        }[step]

    def eager(x: Tensor, dy: Tensor) -> Run:
        w = weight.to(x.dtype)
        if step == "forward":
            return lambda: aten.convolution(x, w, None, *rest)
        which = ("input_grad", "weight_grad").index(step)
        mask = [which == 0, which == 1, False]
        return lambda: aten.convolution_backward(dy, x, w, None, *rest, mask)[which]

    return {"ours": ours, "eager": eager}


def _norm_settings(layer: Norm) -> tuple[int, float, float, float]:
    return layer.window, 1e-4, 0.75, 1.0  # PyTorch's defaults


def _norm(layer: Norm, step: str) -> dict[str, Side]:
    settings = _norm_settings(layer)

    def ours(x: Tensor, dy: Tensor) -> Run:
        if step == "forward":
            return lambda: torch.ops.fastcnn.local_response_norm(x, *settings, relu=False)
        return lambda: torch.ops.fastcnn.local_response_norm_backward(dy, x, *settings, relu=False)

    def eager(x: Tensor, dy: Tensor) -> Run:
        if step == "forward":
            return lambda: F.local_response_norm(x, *settings)
        leaf = x.detach().requires_grad_()
        y = F.local_response_norm(leaf, *settings)
        return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]

    return {"ours": ours, "eager": eager}


def _whole(layer: Depthwise | Norm, step: str, weight: Tensor) -> dict[str, Side]:
    def ours(x: Tensor, w: Tensor) -> Tensor:
        if isinstance(layer, Norm):
            return local_response_norm(x, *_norm_settings(layer))
        return depthwise_conv2d(x, w, None, layer.stride, layer.kernel // 2)

    def eager(x: Tensor, w: Tensor) -> Tensor:
        if isinstance(layer, Norm):
            return F.local_response_norm(x, *_norm_settings(layer))
        return F.conv2d(x, w, None, layer.stride, layer.kernel // 2, groups=layer.channels)

    def side(function: Callable[[Tensor, Tensor], Tensor], *, narrow: bool) -> Side:
        """`narrow`: the weight is in the input's dtype, as PyTorch needs it."""

        def prepare(x: Tensor, dy: Tensor) -> Run:
            w = weight.to(x.dtype) if narrow else weight
            if step == "layer forward":
                return lambda: function(x, w)
            leaf, w = x.detach().requires_grad_(), w.detach().requires_grad_()
            wanted = (leaf,) if isinstance(layer, Norm) else (leaf, w)
            return lambda: torch.autograd.grad(function(leaf, w), wanted, dy)

        return prepare

    torch._dynamo.reset()  # else the ninth layer exceeds the recompilation limit
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    return {
        "ours": side(ours, narrow=False),
        "eager": side(eager, narrow=True),
        "compiled": side(compiled, narrow=True),
    }
