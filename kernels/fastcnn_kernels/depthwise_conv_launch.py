"""Launches of the kernels in `_depthwise_conv_triton`: choice of kernel, patches and number of programs."""

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
from fastcnn_kernels.support import Geometry, Pair, run_kernel, why_no_kernel

WARPS = 4
LANES = 32 * WARPS
"""Lanes of a program."""
LANES_IN_FLIGHT = {3: 132 * 512, 5: 132 * 1024, 7: 132 * 1024}
"""Lanes over which the first stage of the weight gradient splits the images, by kernel size.

About the lanes that a large GPU holds; twice as many where arithmetic dominates, so that its multiprocessors
finish together."""
IMAGES_PER_LANE = 8
"""Minimum number of images of a lane in that stage, which limits the partial sums."""
TAP_ROWS = {3: ((0, 3),), 5: ((0, 5),), 7: ((0, 4), (4, 7))}
"""Kernel rows that each launch of that stage keeps in registers; 7 x 7 takes two launches."""


@dataclass(frozen=True)
class Launch:
    """A kernel with its compile-time arguments."""

    kernel: Any
    constants: dict[str, Any]

    @functools.cached_property
    def patches(self) -> int:
        """Patches of one image."""
        return self.constants["ROWS"].patches() * self.constants["COLUMNS"].patches()

    def programs(self, patches: int) -> int:
        """Number of programs for this many patches, in all channels."""
        constants = self.constants
        groups, chunk = constants["CHANNELS"] // constants["GROUP"], constants["CHUNK"]
        return cdiv(patches * chunk, constants["LANES"]) * (groups // chunk)

    def run(self, grid: tuple[int, ...], *arguments: object) -> None:
        # Triton 3.9 warns unless enable_fp_fusion is explicit.
        run_kernel(self.kernel, grid, *arguments, **self.constants, num_warps=WARPS, enable_fp_fusion=True)


class Shape(NamedTuple):
    """Shape of a layer, as far as its kernels are compiled for it."""

    channels: int
    in_size: Pair
    out_size: Pair
    kernel: int
    stride: int
    padding: Pair


@functools.cache
def taps_launch(kernel: int, *, flip: bool) -> Launch:
    return Launch(kernels.taps_kernel, {"TAPS": kernel**2, "FLIP": flip, "BLOCK": LANES})


@functools.cache
def forward_launch(shape: Shape, *, bias: bool, lanes: int) -> Launch:
    axes = cut(
        "forward",
        shape.out_size,
        shape.in_size,
        kernel=shape.kernel,
        stride=shape.stride,
        padding=shape.padding,
    )
    return _convolution(axes, shape.channels, bias=bias, lanes=lanes)


@functools.cache
def input_grad_launch(shape: Shape, *, lanes: int) -> Launch:
    if shape.stride == 1:  # a convolution with flipped taps, mostly the program of the forward pass
        kind = "forward"
        padding = (shape.kernel - 1 - shape.padding[0], shape.kernel - 1 - shape.padding[1])
    else:
        kind, padding = "input_grad", shape.padding
    axes = cut(kind, shape.in_size, shape.out_size, kernel=shape.kernel, stride=shape.stride, padding=padding)
    return _convolution(axes, shape.channels, bias=False, lanes=lanes)


@functools.cache
def weight_grad_launches(shape: Shape, *, bias: bool, lanes: int) -> list[Launch]:
    """Launches of the first stage, one for each group of kernel rows."""
    rows, columns = cut(
        "weight_grad",
        shape.in_size,
        shape.out_size,
        kernel=shape.kernel,
        stride=shape.stride,
        padding=shape.padding,
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
    """Number of parts into which the first stage divides the images: the partial sums of a patch."""
    lanes = launch.programs(launch.patches) * launch.constants["LANES"]
    return max(
        1, min(cdiv(LANES_IN_FLIGHT[launch.constants["ROWS"].kernel], lanes), batch // IMAGES_PER_LANE)
    )


@functools.cache
def reduce_launch(kernel: int, *, bias: bool, many: bool) -> Launch:
    """Launch of the second stage; with many partial sums its few programs read larger blocks."""
    constants = {"TAPS": kernel**2, "HAS_BIAS": bias, "ROWS": 1024 if many else 128, "COLUMNS": 8}
    return Launch(kernels.reduce_kernel, constants)


def _convolution(axes: tuple[Axis, Axis], channels: int, *, bias: bool, lanes: int) -> Launch:
    rows, columns = axes
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
    geometry: Geometry,
) -> str | None:
    """Reason why the kernels cannot do a pass of a layer that reads `tensors`; None if they can."""
    stride, padding, dilation = geometry
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
    # Both maps fit into the padded one, and a lane takes at least one pixel in all channels of its group.
    batch, channels, height, width = input_size
    image = channels * (height + 2 * padding[0]) * (width + 2 * padding[1])
    if image >= 2**31 or batch * image // _group(channels) >= 2**31 - LANES:
        return f"an input of {tuple(input_size)}, whose offsets or lanes take more than 32 bits"
    return None


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, *, stride: Pair, padding: Pair
) -> None:
    """Write the convolution of `input` to `output`, both in channels-last memory."""
    shape = _shape(input.shape, weight, output.shape, stride, padding)
    launch = forward_launch(shape, bias=bias is not None, lanes=LANES)
    batch = input.shape[0]
    taps = _taps(weight, flip=False)
    grid = (launch.programs(batch * launch.patches),)
    launch.run(grid, input, taps, taps if bias is None else bias.contiguous(), output, batch)


def input_grad(
    grad_output: Tensor, weight: Tensor, grad_input: Tensor, *, stride: Pair, padding: Pair
) -> None:
    """Write the gradient of the input to `grad_input`, both in channels-last memory."""
    shape = _shape(grad_input.shape, weight, grad_output.shape, stride, padding)
    launch = input_grad_launch(shape, lanes=LANES)
    batch = grad_input.shape[0]
    taps = _taps(weight, flip=stride == (1, 1))
    launch.run((launch.programs(batch * launch.patches),), grad_output, taps, taps, grad_input, batch)


def weight_grad(
    grad_output: Tensor,
    input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    *,
    stride: Pair,
    padding: Pair,
) -> None:
    """Write the gradients of weight and bias, with the same bits each time."""
    shape = _shape(input.shape, grad_weight, grad_output.shape, stride, padding)
    launches = weight_grad_launches(shape, bias=grad_bias is not None, lanes=LANES)
    patches, has_bias = launches[0].patches, launches[0].constants["HAS_BIAS"]
    programs, batch = launches[0].programs(patches), input.shape[0]
    parts, taps = splits(launches[0], batch), shape.kernel**2
    # First stage: partial sums of each patch over a part of the images.
    partial = input.new_empty(parts * patches, taps + has_bias, shape.channels, dtype=torch.float32)
    for launch in launches:
        launch.run((programs, parts), input, grad_output, partial, batch, parts)
    # Second stage: add the partial sums.
    reduce = reduce_launch(shape.kernel, bias=has_bias, many=parts * patches > 512)
    grid = cdiv(shape.channels, reduce.constants["COLUMNS"]), taps + has_bias
    bias = grad_bias if has_bias else grad_weight
    reduce.run(grid, partial, grad_weight, bias, parts * patches, shape.channels)
    if grad_bias is not None and not has_bias:
        grad_bias.copy_(grad_output.sum((0, 2, 3), dtype=torch.float32))


def _taps(weight: Tensor, *, flip: bool) -> Tensor:
    """Copy the weight [C, 1, K, K] to float32 taps [K * K, C], flipped for the gradient of the input."""
    channels, kernel = weight.shape[0], weight.shape[2]
    result = weight.new_empty(kernel**2, channels, dtype=torch.float32)
    launch = taps_launch(kernel, flip=flip)
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
