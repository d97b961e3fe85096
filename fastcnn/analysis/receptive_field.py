"""Receptive fields of the layers of any network.

    from fastcnn.analysis.receptive_field import receptive_fields
    network = build("resnet50").to("meta")
    fields = receptive_fields(network, torch.empty(1, 3, 224, 224, device="meta"))
    print(fields["layer4"])  # 427/32/-213: size, stride and offset in pixels

A forward pass is traced operation by operation, with its branches, padding and slices. On the meta device it
takes no memory. After an operation without a rule the field is undefined. The definition is that of Araujo,
Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019: padding belongs to
the field. Batch norm counts as in evaluation mode, with constant statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from fastcnn.analysis.receptive_field_rules import (
    CONSTANT,
    POINTWISE,
    RULES,
    Field,
    Local,
    NoWindowError,
    Undefined,
    Whole,
    Window,
    pointwise,
    union,
    unknown,
)

__all__ = ["Field", "FieldTracker", "Local", "Undefined", "Whole", "Window", "receptive_fields"]


def receptive_fields(network: nn.Module, image: Tensor) -> dict[str, Field]:
    """Return the receptive field of each module's output by its path; "" is the network.

    With several calls the last one counts, with several output tensors the first. Modules without a call, or
    with an output that does not depend on the image, are omitted.

    Args:
        network: on the device of the image. In training mode its running statistics change.
        image: [N, C, H, W], such as `torch.empty(1, 3, 224, 224, device="meta")`.
    """
    fields: dict[str, Field] = {}
    tracker = FieldTracker(image)

    def keep(name: str, output: object) -> None:
        field = tracker.field(output)
        if field is not None:
            fields[name] = field

    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: keep(name, output))
        for name, module in network.named_modules()
    ]
    try:
        with tracker, torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return fields


class FieldTracker(TorchFunctionMode):
    """Mode that tracks the receptive field of every tensor computed from `image`, [N, C, H, W]."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._fields = WeakTensorKeyDictionary()
        self._fields[image] = Local((Window(1, 0, 0), Window(1, 0, 0)))

    def field(self, output: object) -> Field | None:
        """Return the field of the first tensor in `output`; None if it does not depend on the image."""
        tensor = first_tensor(output)
        return None if tensor is None else self._fields.get(tensor)

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        owner = func.__self__ if func.__name__ == "__get__" else func  # a property, such as `x.data`
        name = getattr(owner, "__name__", "property")
        inputs = [(t, self._fields[t]) for t in _tensors((args, kwargs)) if t in self._fields]
        results = [args[0]] if name == "__setitem__" else _tensors(output)
        if inputs and results and name not in CONSTANT:
            field = _after(name, args, kwargs, inputs, results[0])
            for result in results:
                self._fields[result] = field
        return output


def _after(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Sequence[tuple[Tensor, Field]],
    output: Tensor,
) -> Field:
    """Return the field of an operation's output; `inputs` are its tensors that depend on the image."""
    for _, field in inputs:
        if isinstance(field, Undefined):
            return field
    maps = [(tensor, field) for tensor, field in inputs if isinstance(field, Local)]
    if not maps:
        return Whole()
    plain = name.strip("_")  # of add_, __add__ and add
    rule, names = RULES.get(name, (pointwise if plain in POINTWISE else unknown, ""))
    call = dict(zip(names.split(), args)) | kwargs
    call |= {"name": name, "args": args, "input": maps[0][0], "output": output}
    try:
        result = rule(union([field for _, field in maps]), call)
        if rule is pointwise and any(
            tensor.shape[axis] != output.shape[axis] for tensor, field in maps for axis in field.axes
        ):
            raise NoWindowError("one position for several")
    except NoWindowError as error:
        return Undefined(f"{name}: {error}")
    if len(maps) == len(inputs) or not isinstance(result, Local):
        return result
    return result.with_notes("gate") if plain in ("mul", "rmul", "div") else Whole()


def first_tensor(output: object) -> Tensor | None:
    """Return the first tensor of a module's output, such as logits before those of auxiliary classifiers."""
    return next(iter(_tensors(output)), None)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
