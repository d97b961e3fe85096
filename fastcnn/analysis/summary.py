"""What each layer of a network costs and sees.

    from fastcnn.analysis.summary import summarize
    from fastcnn.analysis.tables import layer_table
    summary = summarize(network.to("meta").eval(), torch.empty(1, 3, 224, 224, device="meta"))
    print(*layer_table(summary), sep="\n")

`fastcnn summary` is the command, for networks by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from fastcnn.analysis.receptive_field import Field, Following, Undefined, first_tensor
from fastcnn_kernels.depthwise_conv import FLOPS


@dataclass(kw_only=True)
class Layer:
    """One call of a module."""

    name: str
    """Attribute path; "" is the network itself."""
    kind: str
    """Its class."""
    depth: int
    """Calls that it is inside of."""
    parameters: int
    """Of the module and those in it; 0 for all calls but the first."""
    multiply_adds: int = 0
    """Of convolutions and products of matrices, as `FlopCounterMode` counts them."""
    kept: int = 0
    """Bytes that autograd keeps for the backward pass from here on, besides parameters and buffers."""
    shape: tuple[int, ...] = ()
    """Of the first tensor that it returns."""
    field: Field | None = None
    """Its receptive field; None if it does not depend on the image."""
    milliseconds: tuple[float, float] | None = None
    """Forward and backward."""


@dataclass
class Summary:
    layers: list[Layer]
    """In the order of their calls; the first one is the network, with the totals."""
    idle: dict[str, int]
    """Parameters of the modules that were not called, such as auxiliary classifiers in evaluation."""
    parameter_bytes: int
    undefined: dict[str, str]
    """Why receptive fields are not defined, and the first layer to return such a map."""


def summarize(network: nn.Module, image: Tensor) -> Summary:
    """Runs a network forward and counts.

    Args:
        network: on the image's device, in either mode. On the meta device nothing is computed and no memory
            taken; attention is then a plain product of matrices, which keeps more than fused kernels do. On
            the CPU, torch 2.11 does not count attention.
        image: [N, C, H, W].
    """
    layers: list[Layer] = []
    running: list[Layer] = []
    called: set[str] = set()
    undefined: dict[str, str] = {}
    counter, following = FlopCounterMode(display=False, custom_mapping=FLOPS), Following(image)
    tensors = (*network.parameters(), *network.buffers())
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}

    def counted() -> int:
        return counter.get_total_flops() // 2

    def enter(name: str, module: nn.Module, args: object) -> None:
        layer = Layer(
            name=name,
            kind=type(module).__name__,
            depth=len(running),
            parameters=0 if name in called else _count(module),
            multiply_adds=-counted(),
        )
        called.add(name)
        layers.append(layer)
        running.append(layer)

    def leave(name: str, module: nn.Module, output: object) -> None:
        layer = running.pop()
        layer.multiply_adds += counted()
        tensor = first_tensor(output)
        if tensor is not None:
            layer.shape, layer.field = tuple(tensor.shape), following.field(tensor)
        if isinstance(layer.field, Undefined):
            undefined.setdefault(layer.field.reason, name)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = storage  # held, so that no other one gets its address
            for layer in running:
                layer.kept += storage.nbytes()
        return tensor

    watching = saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), watching, counter, following, calls(network, enter, leave):
        network(image)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    return Summary(layers, _idle(network, called), size, undefined)


@contextmanager
def calls(
    network: nn.Module,
    enter: Callable[[str, nn.Module, object], None],
    leave: Callable[[str, nn.Module, object], None],
) -> Iterator[None]:
    """Reports each call of a module that does something: its path, itself, its input, its output."""
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout | StochasticDepth) and module.p == 0:
            continue  # it waits for a rate

        def before(module: nn.Module, args: object, name: str = name) -> None:
            enter(name, module, args)

        def after(module: nn.Module, args: object, output: object, name: str = name) -> None:
            leave(name, module, output)

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _idle(network: nn.Module, called: set[str]) -> dict[str, int]:
    """The outermost modules with parameters in which nothing was called.

    A module that calls no other, as `nn.MultiheadAttention`, is taken to use the parameters itself.
    """
    around = {name[:i] for name in called for i, letter in enumerate(name) if letter == "."}
    idle: dict[str, int] = {}

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = prefix + name
            if path in around:
                visit(child, f"{path}.")
            elif path not in called and _count(child):
                idle[path] = _count(child)

    if called - {""}:
        visit(network, "")
    return idle
