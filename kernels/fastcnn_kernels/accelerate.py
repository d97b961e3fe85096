"""Replaces a model's slow layers by ours, in place, where ours are correct and faster.

    from fastcnn_kernels import accelerate, restore
    print(accelerate(model, images))   # images: a batch as in training, on the model's device
    restore(model)

Only the class of a layer changes, so parameters, state-dict keys, hooks and optimizers stay valid.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fastcnn_kernels._trial import Input, Measure, Times, Trial, microseconds, try_layer
from fastcnn_kernels.depthwise_conv import DepthwiseConv2d
from fastcnn_kernels.lrn import LocalResponseNorm
from fastcnn_kernels.support import why_no_kernel, why_not_triton

SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: DepthwiseConv2d,
    nn.LocalResponseNorm: LocalResponseNorm,
}
MARK = "_swapped_by_accelerate"
"""Attribute of swapped layers; layers that were built as ours lack it. It also makes torch.compile recompile:
2.11 keeps the old graph if only the class changes."""
MODEL = "(model)"
"""The name of a layer that is the model itself."""
SHORT = {"forward": "fwd", "backward": "bwd", "input_grad": "dgrad", "weight_grad": "wgrad"}
COLUMNS = 110
"""Width of a printed report."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Outcome of one layer."""

    name: str
    kind: str
    """For example depthwise 5x5 s2 C=96 (a stride of 2, 96 channels), or LRN 5 (a window of 5)."""
    input: tuple[int, ...] | None
    """Shape of its input with the sample."""
    swapped: bool
    why: str
    microseconds: tuple[float, float] | None = None
    """Forward and backward, by ours and by PyTorch."""

    @property
    def speedup(self) -> float | None:
        return None if self.microseconds is None else self.microseconds[1] / self.microseconds[0]


@dataclass(frozen=True)
class Report:
    """A row for each layer; prints as a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        if not self.rows:
            return "no depthwise convolution and no LocalResponseNorm in this model: nothing to swap"
        lines = [("layer", "kind", "input", "swapped", "gain", "why")]
        for row in self.rows:
            shape = "-" if row.input is None else "x".join(map(str, row.input))
            gain = "-" if row.speedup is None else f"{row.speedup:.2f}x"
            lines.append((row.name or MODEL, row.kind, shape, "yes" if row.swapped else "no", gain, row.why))
        widths = [max(map(len, column)) for column in list(zip(*lines))[:-1]]
        left = sum(widths) + 2 * len(widths)
        text = []
        for *cells, why in lines:
            first = "".join(cell.ljust(width + 2) for cell, width in zip(cells, widths))
            room = max(24, COLUMNS - left)
            text += textwrap.wrap(why, left + room, initial_indent=first, subsequent_indent=" " * left)
        return "\n".join([*text, "", self._summary()])

    def _summary(self) -> str:
        counts = []
        for family in ("depthwise", "LRN"):
            swapped = [row.swapped for row in self.rows if row.kind.startswith(family)]
            if swapped:
                counts.append(f"{sum(swapped)} of {len(swapped)} {family} layers")
        summary = f"{' and '.join(counts)} swapped"
        times = [row.microseconds for row in self.rows if row.swapped and row.microseconds]
        if times:
            ours, theirs = (sum(side) for side in zip(*times))
            summary += (
                f"; those measured take {ours:,.0f} us instead of {theirs:,.0f} us ({theirs / ours:.2f}x)"
            )
        return summary


def accelerate(
    model: nn.Module, sample: Tensor | tuple[Any, ...] | None = None, *, _measure: Measure | None = None
) -> Report:
    """Replace `nn.LocalResponseNorm` and depthwise `nn.Conv2d` layers by ours, in place.

    Each replacement is checked first, forward and backward, on random numbers: its error against float64 may
    be twice PyTorch's plus one rounding. A layer that fails keeps its class, with a warning. With a sample
    the checks use the shapes of the layers' inputs in the model. On CUDA both sides are timed: the faster
    one is kept, and the times are stored for later runs. Call it under the autocast of the training. Layers
    replaced by an earlier call stay replaced.

    Args:
        model: on its device and in its memory format; it may be compiled or wrapped.
        sample: input of the model, a tensor or a tuple of arguments. The model is called once, in eval mode
            and without gradients; flags, statistics and random states are restored.

    Returns:
        The report, with a row for each layer. It is not printed.

    Raises:
        ValueError: a sample of another type, or on another device than the model.
    """
    found = {layer: name.replace("_orig_mod.", "") for name, layer in model.named_modules() if _kind(layer)}
    reasons = {layer: _why_not(layer, _like(layer, model).device) for layer in found}
    eligible = [layer for layer, why_not in reasons.items() if why_not is None]
    if sample is None:
        inputs = {layer: [_small_input(layer, _like(layer, model))] for layer in eligible}
    else:
        inputs = _inputs_of(model, _arguments(model, sample), eligible)
    # Try each distinct layer and input once.
    known: dict[object, Trial] = {}
    rows = []
    for layer, name in found.items():
        trials = []
        for input in inputs.get(layer, []):
            measure = None if sample is None else _measure or (microseconds if input.on_cuda else None)
            # The key holds all inputs of a trial; extra_repr has every setting of these layers.
            parameters = tuple((p.dtype, p.stride()) for p in layer.parameters())
            key = type(layer), layer.extra_repr(), parameters, input
            if key not in known:
                known[key] = try_layer(layer, SWAPS[type(layer)], input, measure)
            trials.append(known[key])
        shape = inputs[layer][0].shape if trials and sample is not None else None
        row = _row(name, layer, trials, shape=shape, why_not=reasons[layer], sampled=sample is not None)
        rows.append(row)
        if any(trial.broken for trial in trials):
            warnings.warn(f"{name or MODEL}: kept nn.{type(layer).__name__}: {row.why}", stacklevel=2)
        if row.swapped and MARK not in vars(layer):
            layer.__class__ = SWAPS[type(layer)]
            vars(layer)[MARK] = True
    return Report(tuple(rows))


def restore(model: nn.Module) -> int:
    """Revert the replacements of `accelerate`.

    Returns:
        The number of reverted layers.
    """
    originals = {ours: theirs for theirs, ours in SWAPS.items()}
    swapped = [m for m in model.modules() if MARK in vars(m) and type(m) in originals]
    for layer in swapped:
        layer.__class__ = originals[type(layer)]
        delattr(layer, MARK)
    return len(swapped)


def _row(
    name: str,
    layer: nn.Module,
    trials: list[Trial],
    *,
    shape: tuple[int, ...] | None,
    why_not: str | None,
    sampled: bool,
) -> Row:
    """Decide on a layer by its trials, one for each distinct input."""

    def row(why: str, *, swapped: bool, times: Times | None = None) -> Row:
        return Row(name=name, kind=_kind(layer), input=shape, swapped=swapped, why=why, microseconds=times)

    why_not = why_not or next((trial.why_not for trial in trials if trial.why_not), None)
    if why_not is None and not trials:
        why_not = "the sample does not reach it"
    if why_not is not None:
        return row(why_not, swapped=MARK in vars(layer))
    if not trials[0].passes:
        return row(f"not measured: no {'CUDA device' if sampled else 'sample'}", swapped=True)
    passes = {step: _sum(trial.passes[step] for trial in trials) for step in trials[0].passes}
    gains = ", ".join(f"{SHORT[step]} {theirs / ours:.1f}x" for step, (ours, theirs) in passes.items())
    ours, theirs = total = _sum(trial.total for trial in trials)
    if ours < theirs:
        return row(gains, swapped=True, times=total)
    return row(f"PyTorch is faster: {gains}", swapped=False, times=total)


def _sum(times: Iterable[Times]) -> Times:
    ours, theirs = map(sum, zip(*times))
    return ours, theirs


# Layers


def _kind(layer: nn.Module) -> str:
    """Kind of a layer in the report; empty if we have no such layer."""
    if isinstance(layer, nn.LocalResponseNorm):
        return f"LRN {layer.size}"
    if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
        kernel, stride = ("x".join(map(str, pair)) for pair in (layer.kernel_size, layer.stride))
        stride = str(layer.stride[0]) if len(set(layer.stride)) == 1 else stride
        return f"depthwise {kernel} s{stride} C={layer.in_channels}"
    return ""


def _why_not(layer: nn.Module, device: torch.device) -> str | None:
    """Reason to keep a layer whatever its input; None if there is none."""
    if MARK in vars(layer):
        return "swapped before"
    if is_parametrized(layer):
        return f"its {' and '.join(layer.parametrizations)} is parametrized"  # type: ignore[arg-type]
    if type(layer) not in SWAPS:
        return f"its class is {type(layer).__name__}, which may compute something else"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if device.type == "meta":
        return "on the meta device nothing can be checked"
    if device.type == "cuda" and (why := why_not_triton(device)):
        return why
    if isinstance(layer, nn.Conv2d):
        if layer.out_channels != layer.in_channels:
            return f"{layer.out_channels // layer.in_channels} outputs for each channel"
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None and layer._parameters.get(name) is None:
                return f"its {name} is computed by a hook"
        if layer.padding_mode != "zeros":
            return f"padding mode {layer.padding_mode!r}"
        return why_no_kernel(layer.kernel_size, layer.stride, layer.dilation)
    return None


# Inputs


def _like(layer: nn.Module, model: nn.Module) -> Tensor:
    """A tensor of the layer's dtype and device; for LRN, which has no parameters, of the model's."""
    return next(chain(layer.parameters(), model.parameters()), torch.empty(0))


def _small_input(layer: nn.Module, like: Tensor) -> Input:
    if isinstance(layer, nn.Conv2d):
        channels, side = layer.in_channels, 2 * layer.kernel_size[0] + 1
    else:
        assert isinstance(layer, nn.LocalResponseNorm)
        channels, side = 2 * layer.size, 5
    return Input((2, channels, side, side), like.dtype, like.device, channels_last=True)


def _arguments(model: nn.Module, sample: object) -> tuple[Any, ...]:
    if not isinstance(sample, Tensor | tuple):
        raise ValueError(
            f"sample: expected a tensor or a tuple of the model's arguments, not a {type(sample).__name__}"
        )
    arguments = sample if isinstance(sample, tuple) else (sample,)
    devices = {p.device for p in model.parameters()}
    for argument in arguments:
        if isinstance(argument, Tensor) and devices and argument.device not in devices:
            device = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"sample is on {argument.device} and the model on {device}: move one of them")
    return arguments


def _inputs_of(
    model: nn.Module, arguments: tuple[Any, ...], layers: list[nn.Module]
) -> dict[nn.Module, list[Input]]:
    """Distinct inputs of each layer in a call of the model."""
    inputs: dict[nn.Module, list[Input]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        input = Input(tuple(x.shape), x.dtype, x.device, channels_last)
        if input not in inputs[layer]:
            inputs[layer].append(input)

    # A frozen ScriptModule has no training flag.
    training = {module: module.training for module in model.modules() if hasattr(module, "training")}
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    gpus = list({p.device for p in model.parameters() if p.is_cuda})
    try:
        model.eval()
        # Eager, since compiled code skips the hooks.
        with torch.no_grad(), torch.random.fork_rng(gpus), torch.compiler.set_stance("force_eager"):
            model(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in training.items():
            module.training = flag
    return inputs
