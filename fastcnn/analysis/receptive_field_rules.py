"""Receptive field rule of each PyTorch operation, for `fastcnn.analysis.receptive_field`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

Sides = int | Sequence[int]
"""One value for both axes, or (vertical, horizontal)."""


class Window(NamedTuple):
    """Pixels along one axis: output i depends on stride * i + first to stride * i + last."""

    stride: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.last - self.first + 1

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> Window:
        """Return the window after a convolution."""
        first = self.first - self.stride * padding
        last = self.last + self.stride * (dilation * (kernel - 1) - padding)
        return Window(self.stride * stride, first, last)

    def back_through(self, kernel: int, stride: int, padding: int, dilation: int) -> Window:
        """Return the window after a transposed convolution; each output depends on a part of it."""
        if self.stride % stride:
            raise NoWindowError(f"{stride} positions for a stride of {self.stride} px")
        finer = self.stride // stride
        return Window(
            finer, self.first - finer * (dilation * (kernel - 1) - padding), self.last + finer * padding
        )


@dataclass(frozen=True)
class Local:
    """Field of a map: each position depends on a window of the image."""

    windows: tuple[Window, Window]
    """Vertical and horizontal."""
    axes: tuple[int, int] = (-2, -1)
    """Axes of the tensor along those of the image; twice the same if both were flattened into one."""
    notes: tuple[str, ...] = ()
    """Properties that the figures do not include. The output depends on the whole image by a factor ("gate",
    as with squeeze-and-excitation), or by statistics over all positions ("norm"). "up": after upsampling,
    each position depends on a part of its window, and its neighbor on another."""

    def __str__(self) -> str:
        """Return size, stride and offset (first pixel of output 0), such as "299/32/-134 + gate"."""
        pairs = zip(*((window.size, window.stride, window.first) for window in self.windows))
        figures = "/".join(str(v) if v == h else f"{v}x{h}" for v, h in pairs)
        return " + ".join((figures, *self.notes))

    def through(self, kernel: Sides = 1, stride: Sides = 1, padding: Sides = 0, dilation: Sides = 1) -> Local:
        """Return the field after a convolution or pooling."""
        vertical, horizontal = _by_axis(kernel, stride, padding, dilation)
        windows = self.windows[0].through(*vertical), self.windows[1].through(*horizontal)
        return replace(self, windows=windows)

    def back_through(self, kernel: Sides, stride: Sides, padding: Sides = 0, dilation: Sides = 1) -> Local:
        """Return the field after a transposed convolution."""
        vertical, horizontal = _by_axis(kernel, stride, padding, dilation)
        windows = self.windows[0].back_through(*vertical), self.windows[1].back_through(*horizontal)
        upsampled = vertical[1] > 1 or horizontal[1] > 1
        return replace(self, windows=windows).with_notes(*["up"] * upsampled)

    def along(self, axes: Sequence[int]) -> Local:
        """Return the field for other axes of the tensor."""
        return replace(self, axes=(axes[0], axes[1]))

    def with_notes(self, *words: str) -> Local:
        """Return the field with more notes."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *words))))


def _by_axis(*settings: Sides) -> tuple[tuple[int, ...], tuple[int, ...]]:
    vertical, horizontal = zip(*((v, v) if isinstance(v, int) else v for v in settings))
    return vertical, horizontal


@dataclass(frozen=True)
class Whole:
    """Field of a tensor: each element depends on the whole image."""

    def __str__(self) -> str:
        return "whole image"


@dataclass(frozen=True)
class Undefined:
    """No field of one size and stride, because of the operation in `reason`."""

    reason: str

    def __str__(self) -> str:
        return f"not defined ({self.reason})"


Field = Local | Whole | Undefined


class NoWindowError(Exception):
    """Raised by a rule without a result, with the reason."""


Call = dict[str, Any]
"""Arguments of an operation by the names in `RULES`. In addition "name" is its name, "args" all positional
arguments, "input" the first tensor that depends on the image, "output" the first output tensor."""


def union(fields: Sequence[Local]) -> Local:
    """Return the smallest field that contains those of all branches."""
    one, *others = fields
    for other in others:
        if one.axes != other.axes:
            raise NoWindowError("branches with positions along different axes")
        windows = []
        for a, b in zip(one.windows, other.windows):
            if a.stride != b.stride:
                raise NoWindowError(f"branches of strides {a.stride} and {b.stride}")
            windows.append(Window(a.stride, min(a.first, b.first), max(a.last, b.last)))
        one = replace(one, windows=(windows[0], windows[1])).with_notes(*other.notes)
    return one


# Rules: from the union of the input fields to the output field


def unknown(field: Local, call: Call) -> Field:
    """Reject an operation without a rule."""
    raise NoWindowError("no rule for it")


def pointwise(field: Local, call: Call) -> Field:
    """Keep the field of the inputs."""
    return field


def _statistics(field: Local, call: Call) -> Field:
    return field.with_notes("norm")


def _convolution(field: Local, call: Call) -> Field:
    kernel, padding, dilation = call["weight"].shape[2:], call.get("padding", 0), call.get("dilation", 1)
    if isinstance(padding, str):
        each = (dilation, dilation) if isinstance(dilation, int) else dilation
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(kernel, each)]
    return _on_map(field).through(kernel, call.get("stride", 1), padding, dilation)


def _transposed_convolution(field: Local, call: Call) -> Field:
    kernel, stride, padding = call["weight"].shape[2:], call.get("stride", 1), call.get("padding", 0)
    return _on_map(field).back_through(kernel, stride, padding, call.get("dilation", 1))


def _interpolate(field: Local, call: Call) -> Field:
    """Apply the rule of a transposed convolution with constant weights."""
    before, after = call["input"].shape[2:], call["output"].shape[2:]
    mode = call.get("mode", "nearest")
    if any(m % n for n, m in zip(before, after)):
        raise NoWindowError(f"from {tuple(before)} to {tuple(after)} positions")
    factors = [m // n for n, m in zip(before, after)]
    if mode == "nearest":
        return _on_map(field).back_through(factors, factors)
    if mode != "bilinear" or call.get("align_corners"):
        raise NoWindowError(f"no rule for mode {mode}, or for aligned corners")
    return _on_map(field).back_through([2 * f - f % 2 for f in factors], factors, [f // 2 for f in factors])


def _pool(field: Local, call: Call) -> Field:
    kernel = call["kernel_size"]
    stride = call.get("stride") or kernel
    return _on_map(field).through(kernel, stride, call.get("padding", 0), call.get("dilation", 1))


def _adaptive_pool(field: Local, call: Call) -> Field:
    field = _on_map(field)
    before, after = call["input"].shape[-2:], call["output"].shape[-2:]
    if after == (1, 1):
        return Whole()
    if any(n % m for n, m in zip(before, after)):
        raise NoWindowError(f"windows of several sizes, from {tuple(before)} to {tuple(after)} positions")
    kernel = [n // m for n, m in zip(before, after)]
    return field.through(kernel, kernel)


def _on_map(field: Local) -> Local:
    if field.axes != (-2, -1):
        raise NoWindowError("not along the image's axes")
    return field


def _pad(field: Local, call: Call) -> Field:
    before = [*call["pad"][::2], *[0] * call["input"].ndim]  # from the last axis to the first
    return field.through(padding=[before[-axis - 1] for axis in field.axes])


def _index(field: Local, call: Call) -> Field:
    input, index = call["input"], call["index"]
    entries = list(index) if isinstance(index, tuple) else [index]
    if not all(entry is None or entry is ... or isinstance(entry, int | slice) for entry in entries):
        raise NoWindowError("computed positions")

    # Expand the ellipsis, so that each axis of the input has an entry.
    position = entries.index(...) if ... in entries else len(entries)
    indexed = sum(entry is not None and entry is not ... for entry in entries)
    entries[position : position + 1] = [slice(None)] * (input.ndim - indexed)

    # New axis and slice of each remaining axis of the input.
    kept: dict[int, tuple[int, slice]] = {}
    axis, place = -input.ndim, -call["output"].ndim
    for entry in entries:
        if isinstance(entry, slice):
            kept[axis] = place, entry
        axis += entry is not None
        place += not isinstance(entry, int)
    if any(axis not in kept for axis in field.axes):
        raise NoWindowError("one position of many")
    result = field.along([kept[axis][0] for axis in field.axes])
    if _tokens(field):
        return result
    ranges = [range(input.shape[axis])[kept[axis][1]] for axis in field.axes]
    return result.through(stride=[r.step for r in ranges], padding=[-r.start for r in ranges])


def _reshape(field: Local, call: Call) -> Field:
    """Handle operations that keep the order of the elements: an axis stays, or joins a longer one."""
    old, new = call["input"].shape, call["output"].shape
    places, stay = [], []
    for axis, from_end in zip(field.axes, (False, True)):  # from both ends, to distinguish axes of size 1
        outer, size = math.prod(old[:axis]), old[axis]
        order = reversed(range(len(new))) if from_end else range(len(new))
        spans = [(i, math.prod(new[:i]), new[i]) for i in order]
        same = [i for i, before, length in spans if (before, length) == (outer, size)]
        around = [i for i, before, length in spans if before <= outer and outer * size <= before * length]
        places += (same or around or [-1])[:1]
        stay.append(bool(same))
    if -1 in places or (places[0] != places[1] and not all(stay)):
        raise NoWindowError("an axis of the image is cut, or joined to another")
    return field.along([place - len(new) for place in places])


def _rearrange(field: Local, call: Call) -> Field:
    """Apply the operation to a tensor with a distinct size per axis, to read the new axes from its shape."""
    sizes = range(2, 2 + call["input"].ndim)
    moved = getattr(torch.empty(*sizes, device="meta"), call["name"])(*call["args"][1:]).shape
    return field.along([moved.index(sizes[axis]) - len(sizes) for axis in field.axes])


def _concatenate(field: Local, call: Call) -> Field:
    ndim = call["output"].ndim
    if call.get("dim", 0) % ndim - ndim in field.axes and not _tokens(field):
        raise NoWindowError("maps side by side")
    return field


def _tokens(field: Local) -> bool:
    """Return True if positions are tokens along one axis, whose windows do not depend on their order."""
    return field.axes[0] == field.axes[1]


def _reduce(field: Local, call: Call) -> Field:
    """Handle reductions over axes."""
    ndim, dim = call["input"].ndim, call.get("dim")
    dims = range(ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    reduced = {d % ndim - ndim for d in dims}
    if reduced.issuperset(field.axes):
        return Whole()
    if not reduced.isdisjoint(field.axes):
        raise NoWindowError("over one of the image's two axes")
    if call.get("keepdim"):
        return field
    return field.along([axis + sum(d > axis for d in reduced) for axis in field.axes])


def _whole_over(dim: int) -> Callable[[Local, Call], Field]:
    """Return the rule of operations that mix all entries of one axis."""
    return lambda field, call: _reduce(field, {**call, "dim": dim, "keepdim": True})


def _normalize(field: Local, call: Call) -> Field:
    """Handle elementwise operations with statistics over some axes."""
    dims = call["dim"] if "dim" in call else [-1 - i for i in range(len(call["normalized_shape"]))]
    everywhere = isinstance(_reduce(field, {**call, "dim": dims, "keepdim": True}), Whole)
    return _statistics(field, call) if everywhere else field


def _split(field: Local, call: Call) -> Field:
    result = _reduce(field, {"dim": 0, **call, "keepdim": call["name"] != "unbind"})
    if isinstance(result, Whole):
        raise NoWindowError("a part of the positions")
    return result


POINTWISE = {
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("sigmoid", "tanh", "softplus", "hardtanh", "hardsigmoid", "hardswish", "threshold", "clamp"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "div", "rdiv", "addcmul", "lerp", "where"),
    *("abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "reciprocal", "pow", "maximum", "minimum"),
    *("dropout", "dropout2d", "feature_dropout", "alpha_dropout", "batch_norm", "local_response_norm"),
    *("to", "type_as", "float", "half", "bfloat16", "double"),
    *("contiguous", "clone", "detach", "data", "requires_grad", "expand", "expand_as"),
}
"""Operations with the field of their inputs at each position; `add` includes `add_` and `__add__`."""

CONSTANT = {
    *("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"),
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
}
"""Operations that depend on the shape of a tensor only."""

RULES: dict[str, tuple[Callable[[Local, Call], Field], str]] = {
    "conv2d": (_convolution, "input weight bias stride padding dilation"),
    "depthwise_conv2d": (_convolution, "input weight bias stride padding dilation"),
    "conv_transpose2d": (
        _transposed_convolution,
        "input weight bias stride padding output_padding groups dilation",
    ),
    "interpolate": (_interpolate, "input size scale_factor mode align_corners"),
    "max_pool2d": (_pool, "input kernel_size stride padding dilation"),
    "avg_pool2d": (_pool, "input kernel_size stride padding"),
    "adaptive_avg_pool2d": (_adaptive_pool, ""),
    "adaptive_max_pool2d": (_adaptive_pool, ""),
    "pad": (_pad, "input pad"),
    "__getitem__": (_index, "input index"),
    "cat": (_concatenate, "tensors dim"),
    "chunk": (_split, "input chunks dim"),
    "split": (_split, "input size dim"),
    "unbind": (_split, "input dim"),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), (_reduce, "input dim keepdim")),
    "norm": (_reduce, "input p dim keepdim"),
    **dict.fromkeys(("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze"), (_reshape, "")),
    **dict.fromkeys(("permute", "transpose", "movedim", "swapaxes"), (_rearrange, "")),
    "linear": (_whole_over(-1), ""),
    "scaled_dot_product_attention": (_whole_over(-2), ""),
    "multi_head_attention_forward": (_whole_over(0), ""),
    "softmax": (_normalize, "input dim"),
    "layer_norm": (_normalize, "input normalized_shape"),
    "group_norm": (_statistics, ""),
    "instance_norm": (_statistics, ""),
}
"""Rules of all other operations, with the names of their relevant positional arguments."""
