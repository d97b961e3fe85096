"""How the kernels of `_depthwise_conv_triton` are launched: which one, in what patches, how many programs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from fastcnn_kernels import _depthwise_conv_triton as kernels
from fastcnn_kernels._patches import Axis, chunk, cut
from fastcnn_kernels._support import run_kernel, why_no_kernel

WARPS = 4
LANES = 32 * WARPS
"""Of a program."""
LANES_IN_FLIGHT = {3: 132 * 512, 5: 132 * 1024, 7: 132 * 1024}
"""Of the weight's gradient's first stage: images are split over so many. About what a large GPU holds; twice
that where arithmetic takes longest, so that all its multiprocessors end together."""
IMAGES_PER_LANE = 8
"""At least, however, so that partial sums stay few."""
TAP_ROWS = {3: ((0, 3),), 5: ((0, 5),), 7: ((0, 4), (4, 7))}
"""Rows of the kernel that one launch of that stage keeps in registers: those of 7 x 7 take two."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Launch:
    """A kernel and all that it is compiled for."""

    kernel: Any
    constants: dict[str, Any]

    @functools.cached_property
    def patches(self) -> int:
        """Of one image."""
        return self.constants["ROWS"].patches() * self.constants["COLUMNS"].patches()

    def programs(self, patches: int) -> int:
        """How many it takes for so many patches of all channels."""
        constants = self.constants
        groups, chunk = constants["CHANNELS"] // constants["GROUP"], constants["CHUNK"]
        return cdiv(patches * chunk, constants["LANES"]) * (groups // chunk)

    def run(self, grid: tuple[int, ...], *arguments: object) -> None:
        # Triton 3.9 warns where the fusing of multiplication and addition is left to its default.
        run_kernel(self.kernel, grid, *arguments, **self.constants, num_warps=WARPS, enable_fp_fusion=True)


class Shape(NamedTuple):
    """What the kernels of a layer are compiled for."""

    channels: int
    in_size: Pair
    out_size: Pair
    kernel: int
    stride: int
    padding: Pair


@functools.cache
def taps_launch(kernel: int, flip: bool) -> Launch:
    return Launch(kernels.taps_kernel, {"TAPS": kernel**2, "FLIP": flip, "BLOCK": LANES})


@functools.cache
def forward_launch(shape: Shape, bias: bool, lanes: int) -> Launch:
    rows, columns = cut("forward", shape.out_size, shape.in_size, shape.kernel, shape.stride, shape.padding)
    return _convolution(rows, columns, shape.channels, bias, lanes)


@functools.cache
def input_grad_launch(shape: Shape, lanes: int) -> Launch:
    if shape.stride == 1:  # a convolution with the taps turned round, mostly the forward's own program
        padding = (shape.kernel - 1 - shape.padding[0], shape.kernel - 1 - shape.padding[1])
        axes = cut("forward", shape.in_size, shape.out_size, shape.kernel, 1, padding)
    else:
        axes = cut("input_grad", shape.in_size, shape.out_size, shape.kernel, shape.stride, shape.padding)
    return _convolution(*axes, shape.channels, False, lanes)


@functools.cache
def weight_grad_launches(shape: Shape, bias: bool, lanes: int) -> list[Launch]:
    """The first stage: a launch for each group of the kernel's rows."""
    rows, columns = cut(
        "weight_grad", shape.in_size, shape.out_size, shape.kernel, shape.stride, shape.padding
    )
    constants = {"ROWS": rows, "COLUMNS": columns, **_channels(shape.channels)}
    bias = bias and rows.owns_all() and columns.owns_all()
    return [
        Launch(
            kernels.correlate_kernel,
            {**constants, "FIRST": first, "LAST": last, "HAS_BIAS": bias, "LANES": lanes},
        )
        for first, last in TAP_ROWS[shape.kernel]
    ]


def splits(launch: Launch, batch: int) -> int:
    """Into how many parts that stage divides the images: so many partial sums has each patch."""
    lanes = launch.programs(launch.patches) * launch.constants["LANES"]
    return max(
        1, min(cdiv(LANES_IN_FLIGHT[launch.constants["ROWS"].kernel], lanes), batch // IMAGES_PER_LANE)
    )


@functools.cache
def reduce_launch(kernel: int, bias: bool, many: bool) -> Launch:
    """The second stage. Few programs must read fast where partial sums are many."""
    constants = {"TAPS": kernel**2, "HAS_BIAS": bias, "ROWS": 1024 if many else 128, "COLUMNS": 8}
    return Launch(kernels.reduce_kernel, constants)


def _convolution(rows: Axis, columns: Axis, channels: int, bias: bool, lanes: int) -> Launch:
    constants = {"ROWS": rows, "COLUMNS": columns, **_channels(channels), "HAS_BIAS": bias, "LANES": lanes}
    return Launch(kernels.convolve_kernel, constants)


def _channels(channels: int) -> dict[str, int]:
    group = _group(channels)
    return {"CHANNELS": channels, "GROUP": group, "CHUNK": chunk(channels // group)}


def _group(channels: int) -> int:
    return 2 if channels % 2 == 0 else 1


def why_not(
    tensors: Sequence[Tensor],
    weight: Tensor,
    input_size: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> str | None:
    """Why the kernels cannot do this pass of a layer, which reads `tensors`; None if they can."""
    if why := why_no_kernel(tuple(weight.shape[2:]), stride, dilation):
        return why
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{dtype}"
    if weight.dtype not in (torch.float32, dtype) or not weight.is_contiguous():
        return f"a weight of {weight.dtype} with strides {weight.stride()} for {dtype}"
    for tensor in tensors:
        if tensor.dtype != dtype:
            return f"tensors of {dtype} and {tensor.dtype}"
        if tensor.device != weight.device:
            return f"tensors on {tensor.device} and {weight.device}"
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            return "a tensor that is not in channels-last memory"
        if tensor.data_ptr() % 4:  # pairs of half precision are read as words
            return "a tensor that begins between two words of memory"
    # Either map fits into the padded one, and a lane takes a pixel at least in all channels of its group.
    batch, channels, height, width = input_size
    image = channels * (height + 2 * padding[0]) * (width + 2 * padding[1])
    if image >= 2**31 or batch * image // _group(channels) >= 2**31 - LANES:
        return f"an input of {tuple(input_size)}, whose offsets or lanes take more than 32 bits"
    return None


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, stride: Pair, padding: Pair
) -> None:
    """Writes the convolution of `input` to `output`, both in channels-last memory."""
    launch = forward_launch(
        _shape(input.shape, weight, output.shape, stride, padding), bias is not None, LANES
    )
    batch = input.shape[0]
    taps = _taps(weight, flip=False)
    grid = (launch.programs(batch * launch.patches),)
    launch.run(grid, input, taps, taps if bias is None else bias.contiguous(), output, batch)


def input_grad(grad_output: Tensor, weight: Tensor, grad_input: Tensor, stride: Pair, padding: Pair) -> None:
    """Writes the gradient of the input to `grad_input`, both in channels-last memory."""
    launch = input_grad_launch(_shape(grad_input.shape, weight, grad_output.shape, stride, padding), LANES)
    batch = grad_input.shape[0]
    taps = _taps(weight, flip=stride == (1, 1))
    launch.run((launch.programs(batch * launch.patches),), grad_output, taps, taps, grad_input, batch)


def weight_grad(
    grad_output: Tensor,
    input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    stride: Pair,
    padding: Pair,
) -> None:
    """Writes the gradients of the weight and of the bias, the same bits each time."""
    shape = _shape(input.shape, grad_weight, grad_output.shape, stride, padding)
    launches = weight_grad_launches(shape, grad_bias is not None, LANES)
    patches, has_bias = launches[0].patches, launches[0].constants["HAS_BIAS"]
    programs, batch = launches[0].programs(patches), input.shape[0]
    parts, taps = splits(launches[0], batch), shape.kernel**2
    partial = input.new_empty(parts * patches, taps + has_bias, shape.channels, dtype=torch.float32)
    for launch in launches:
        launch.run((programs, parts), input, grad_output, partial, batch, parts)
    reduce = reduce_launch(shape.kernel, has_bias, parts * patches > 512)
    grid = cdiv(shape.channels, reduce.constants["COLUMNS"]), taps + has_bias
    bias = grad_bias if has_bias else grad_weight
    reduce.run(grid, partial, grad_weight, bias, parts * patches, shape.channels)
    if grad_bias is not None and not has_bias:
        grad_bias.copy_(grad_output.sum((0, 2, 3), dtype=torch.float32))


def _taps(weight: Tensor, flip: bool) -> Tensor:
    channels, kernel = weight.shape[0], weight.shape[2]
    result = weight.new_empty(kernel**2, channels, dtype=torch.float32)
    launch = taps_launch(kernel, flip)
    launch.run((cdiv(result.numel(), launch.constants["BLOCK"]),), weight, result, channels)
    return result


def _shape(
    in_shape: Sequence[int], weight: Tensor, out_shape: Sequence[int], stride: Pair, padding: Pair
) -> Shape:
    return Shape(
        in_shape[1],
        (in_shape[2], in_shape[3]),
        (out_shape[2], out_shape[3]),
        weight.shape[2],
        stride[0],
        padding,
    )
