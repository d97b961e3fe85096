"""Trial of one of our layers in place of PyTorch's on one input: errors and times of both."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcnn_kernels import depthwise_conv as depthwise
from fastcnn_kernels import dispatch
from fastcnn_kernels.support import Geometry

WARM_UP, ROUNDS = 3, 20
ROUND_CYCLES = 1_000_000
"""Clock cycles, about half a millisecond, in which the host queues a round's launches."""
INPUT, UPSTREAM, PARAMETERS = 0, 1, 2
"""Seeds. They differ, since equal numbers would hide exchanged tensors."""
CHECKED = 32
"""Images that are checked against float64, which is slow; all images are timed."""
SUMS = 2e-6
"""Relative error of long float32 sums."""

Run = Callable[[], object]
Times = tuple[float, float]
"""Microseconds of ours and of PyTorch's."""
Measure = Callable[[Run, Run], Times]


class Input(NamedTuple):
    """Shape, dtype, device and layout of a layer's input."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def random(self, scale: float) -> Tensor:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        empty = torch.empty(self.shape, dtype=self.dtype, device=self.device, memory_format=memory_format)
        return _random_like(empty, INPUT, scale)


class Trial(NamedTuple):
    """Result of a trial."""

    why_not: str | None = None
    broken: bool = False
    """Ours is wrong or failed, and is not just unsupported."""
    passes: Mapping[str, Times] = {}
    """Times of each pass; empty if not measured."""
    total: Times = (0.0, 0.0)
    """Times over all passes. Ours counts each pass on the side that will run it."""


def try_layer(layer: nn.Module, ours: type[nn.Module], input: Input, measure: Measure | None) -> Trial:
    """Time `layer` as one of the class `ours`, if `measure` is given, then check its results.

    Nothing is raised: any error, such as too little memory, becomes the reason to keep the layer.
    """
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            # Large enough for a normalization to have an effect, small enough for its squares in float16.
            x = input.random(max(layer.alpha, 1e-3) ** -0.5 if isinstance(layer, nn.LocalResponseNorm) else 1)
            with torch.cuda.device_of(x):
                if x.is_cuda and isinstance(layer, nn.Conv2d) and (why_not := _why_no_triton(layer, x)):
                    return Trial(why_not)
                passes = {} if measure is None else _times(layer, ours, x, measure)
                why_not = _difference(layer, ours, x[:CHECKED] if x.dim() == 4 else x)
    except Exception as error:
        message = str(error).strip().partition("\n")[0]
        return Trial(f"{type(error).__name__}: {message}", broken=True)
    split = isinstance(layer, nn.Conv2d)  # `dispatch` runs each of its passes on the faster side
    total = (
        sum(min(mine, theirs) if split else mine for mine, theirs in passes.values()),
        sum(theirs for _, theirs in passes.values()),
    )
    return Trial(why_not, why_not is not None, passes, total)


def microseconds(ours: Run, theirs: Run) -> Times:
    """Median GPU times of both, measured in turn."""
    for _ in range(WARM_UP):  # compiles
        ours(), theirs()
    marks: list[list[Any]] = [[], []]
    for _ in range(ROUNDS):
        torch.cuda._sleep(ROUND_CYCLES)  # the host runs ahead, so its time does not count
        for run, mark in zip((ours, theirs), marks):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            mark.append((start, end))
    torch.cuda.synchronize()
    mine, other = (statistics.median(1000 * start.elapsed_time(end) for start, end in mark) for mark in marks)
    return mine, other


# Times


def _times(layer: nn.Module, ours: type[nn.Module], x: Tensor, measure: Measure) -> dict[str, Times]:
    if not isinstance(layer, nn.Conv2d):
        mine, theirs = (_passes(_twin(layer, cls), x) for cls in (ours, type(layer)))
        return {name: measure(mine[name], theirs[name]) for name in mine}
    x = depthwise.autocast_input(x)
    times = {name: measure(*sides) for name, sides in _depthwise_passes(layer, x).items()}
    gpu = torch.cuda.get_device_name(x.device) if x.is_cuda else str(x.device)
    dtype, (batch, *size) = str(x.dtype).removeprefix("torch."), x.shape
    (stride, _), padding, _ = _geometry(layer)
    sizes = *size, *padding
    layers = {name: dispatch.Layer(name, dtype, layer.kernel_size[0], stride, *sizes) for name in times}
    dispatch.record(gpu, [(layers[name], batch, *sides) for name, sides in times.items()])
    return times


def _passes(layer: nn.Module, x: Tensor) -> dict[str, Run]:
    leaf = x.detach().requires_grad_()
    output = layer.forward(leaf)
    upstream = _random_like(output, UPSTREAM)
    return {
        "forward": lambda: layer.forward(x),
        "backward": lambda: torch.autograd.grad(output, leaf, upstream, retain_graph=True),
    }


def _depthwise_passes(layer: nn.Conv2d, x: Tensor) -> dict[str, tuple[Run, Run]]:
    """Triton's and PyTorch's implementation of each pass."""

    def triton(name: str) -> Any:
        from fastcnn_kernels import depthwise_conv_launch  # only here, since it needs Triton

        return getattr(depthwise_conv_launch, name)

    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    geometry = _geometry(layer)
    sides: dict[str, Any] = {"stride": geometry[0], "padding": geometry[1]}
    y = depthwise.pytorch_forward(x, weight, bias, *geometry)
    grad, dx, dw = _random_like(y, UPSTREAM), torch.empty_like(x), torch.empty_like(weight)
    db = None if bias is None else torch.empty_like(bias)
    return {
        "forward": (
            lambda: triton("forward")(x, weight, bias, y, **sides),
            lambda: depthwise.pytorch_forward(x, weight, bias, *geometry),
        ),
        "input_grad": (
            lambda: triton("input_grad")(grad, weight, dx, **sides),
            lambda: depthwise.pytorch_input_grad(grad, weight, x.shape, *geometry),
        ),
        "weight_grad": (
            lambda: triton("weight_grad")(grad, x, dw, db, **sides),
            lambda: depthwise.pytorch_weight_grad(grad, x, weight, bias is not None, *geometry),
        ),
    }


def _why_no_triton(layer: nn.Conv2d, x: Tensor) -> str | None:
    from fastcnn_kernels import depthwise_conv_launch as launch

    if x.dim() != 4:
        return f"an input of {tuple(x.shape)}"
    return launch.why_not([depthwise.autocast_input(x)], layer.weight, x.shape, _geometry(layer))


def _geometry(layer: nn.Conv2d) -> Geometry:
    padding, more = depthwise.explicit_padding(layer.padding, layer.kernel_size, layer.stride, layer.dilation)
    assert more == (0, 0)  # as with every kernel that runs on Triton
    return depthwise.pair(layer.stride), padding, depthwise.pair(layer.dilation)


# Errors


def _difference(layer: nn.Module, ours: type[nn.Module], x: Tensor) -> str | None:
    """Describe the first result whose error against float64 exceeds its bound; None if there is none.

    The bound is twice PyTorch's error plus a rounding of the result. Errors are norms of whole tensors,
    relative to the norm of the exact tensor.
    """
    exact = _outcome(layer, type(layer), x, torch.float64)
    theirs, mine = (_outcome(layer, cls, x) for cls in (type(layer), ours))
    for what, correct in exact.items():
        if mine[what].shape != correct.shape:
            return f"the {what} is of {tuple(mine[what].shape)} and not {tuple(correct.shape)}"
        size = torch.linalg.vector_norm(correct).item() or 1.0
        error, allowed = (
            torch.linalg.vector_norm(result[what].double() - correct).item() / size
            for result in (mine, theirs)
        )
        rounding = torch.finfo(mine[what].dtype).eps / 2 + SUMS
        if not error <= 2 * allowed + rounding:  # NaN too
            return f"the {what} differs from float64 by {error:.2g} (eager {allowed:.2g})"
    return None


def _outcome(
    layer: nn.Module, cls: type[nn.Module], x: Tensor, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Output and gradients of `layer` as one of the class `cls`."""
    twin = _twin(layer, cls, dtype)
    x = x.detach().to(dtype or x.dtype).requires_grad_()
    output = twin.forward(x)
    leaves = {"input": x, **dict(twin.named_parameters())}
    gradients = torch.autograd.grad(output, list(leaves.values()), _random_like(output, UPSTREAM))
    return {"output": output.detach()} | {f"gradient of the {k}": g for k, g in zip(leaves, gradients)}


def _twin(layer: nn.Module, cls: type[nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of `layer` as one of the class `cls`, with random parameters.

    It shares the layer's hooks, so only its `forward` may be called.
    """
    twin = copy.copy(layer)
    twin.__class__ = cls
    parameters = {
        name: nn.Parameter(_random_like(parameter.detach(), seed).to(dtype or parameter.dtype))
        for seed, (name, parameter) in enumerate(layer.named_parameters(recurse=False), PARAMETERS)
    }
    twin._parameters = {**layer._parameters, **parameters}  # a bias may be None
    return twin


def _random_like(tensor: Tensor, seed: int, scale: float = 1.0) -> Tensor:
    """Normal random numbers rounded to bfloat16, so that they are the same in every dtype."""
    generator = torch.Generator(tensor.device).manual_seed(seed)
    numbers = scale * torch.randn(
        tensor.shape, generator=generator, device=tensor.device, dtype=torch.float32
    )
    return torch.empty_like(tensor).copy_(numbers.bfloat16())
