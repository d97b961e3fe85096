"""Summary of a network: shape, cost and receptive field of each layer.

    from fastcnn.analysis.summary import summarize
    from fastcnn.analysis.tables import layer_table
    summary = summarize(network.to("meta").eval(), torch.empty(1, 3, 224, 224, device="meta"))
    print(*layer_table(summary), sep="\n")

The command is `fastcnn summary`, for networks by name.
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

from fastcnn.analysis.receptive_field import Field, FieldTracker, Undefined, first_tensor
from fastcnn_kernels.depthwise_conv import FLOPS


@dataclass(kw_only=True)
class Layer:
    """Call of a module."""

    name: str
    """Attribute path of the module; "" for the network itself."""
    kind: str
    """Class of the module."""
    depth: int
    """Number of enclosing calls."""
    parameters: int
    """Number of parameters in the module; 0 for all calls but the first."""
    multiply_adds: int = 0
    """Multiply-adds of convolutions and matrix products, by `FlopCounterMode`."""
    saved_bytes: int = 0
    """Bytes that the call adds to autograd's saved tensors, without parameters and buffers."""
    shape: tuple[int, ...] = ()
    """Shape of the first tensor in the output."""
    field: Field | None = None
    """Receptive field; None if the output does not depend on the image."""
    milliseconds: tuple[float, float] | None = None
    """Forward and backward time."""


@dataclass
class Summary:
    """Layers of a network, and totals."""

    layers: list[Layer]
    """Layers in the order of their calls. The first one is the network, with the totals."""
    uncalled: dict[str, int]
    """Parameter counts of modules without calls, such as auxiliary classifiers in evaluation mode."""
    parameter_bytes: int
    undefined: dict[str, str]
    """Reasons for undefined receptive fields, each with the first layer that has one."""


def summarize(network: nn.Module, image: Tensor) -> Summary:
    """Summarize a network by a forward pass.

    On the meta device the pass takes no computation and no memory. Attention is then a plain matrix product,
    which saves more tensors than fused kernels. On the CPU, torch 2.11 does not count attention.

    Args:
        network: on the device of the image, in either mode.
        image: [N, C, H, W].
    """
    recorder = _Recorder(network, image)
    saving = saved_tensors_hooks(recorder.save, lambda tensor: tensor)
    watching = module_calls(network, recorder.enter, recorder.leave)
    with torch.enable_grad(), saving, recorder.counter, recorder.tracker, watching:
        network(image)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    return Summary(recorder.layers, _uncalled(network, recorder.called), size, recorder.undefined)


class _Recorder:
    """Layers of one forward pass, recorded by hooks on module calls and saved tensors."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        self.counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
        self.tracker = FieldTracker(image)
        self.layers: list[Layer] = []
        self.called: set[str] = set()
        self.undefined: dict[str, str] = {}
        self._active: list[Layer] = []
        tensors = (*network.parameters(), *network.buffers())
        self._storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}

    def enter(self, name: str, module: nn.Module, args: object) -> None:
        layer = Layer(
            name=name,
            kind=type(module).__name__,
            depth=len(self._active),
            parameters=0 if name in self.called else _count(module),
            multiply_adds=-self._multiply_adds(),
        )
        self.called.add(name)
        self.layers.append(layer)
        self._active.append(layer)

    def leave(self, name: str, module: nn.Module, output: object) -> None:
        layer = self._active.pop()
        layer.multiply_adds += self._multiply_adds()
        tensor = first_tensor(output)
        if tensor is not None:
            layer.shape, layer.field = tuple(tensor.shape), self.tracker.field(tensor)
        if isinstance(layer.field, Undefined):
            self.undefined.setdefault(layer.field.reason, name)

    def save(self, tensor: Tensor) -> Tensor:
        """Count the storage of a tensor that autograd saves, once, for all active calls."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = storage  # kept alive, so that its address is not reused
            for layer in self._active:
                layer.saved_bytes += storage.nbytes()
        return tensor

    def _multiply_adds(self) -> int:
        return self.counter.get_total_flops() // 2


@contextmanager
def module_calls(
    network: nn.Module,
    enter: Callable[[str, nn.Module, object], None],
    leave: Callable[[str, nn.Module, object], None],
) -> Iterator[None]:
    """Call `enter` and `leave` around each module call, with its path, the module, and its input or output.

    Dropout layers with rate 0 are skipped.
    """
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout | StochasticDepth) and module.p == 0:
            continue

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


def _uncalled(network: nn.Module, called: set[str]) -> dict[str, int]:
    """Return the parameter counts of the outermost modules with parameters and without calls inside.

    A module without calls of its children, such as `nn.MultiheadAttention`, counts as using their parameters.
    """
    ancestors = {name[:i] for name in called for i, letter in enumerate(name) if letter == "."}
    uncalled: dict[str, int] = {}

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = prefix + name
            if path in ancestors:
                visit(child, f"{path}.")
            elif path not in called and _count(child):
                uncalled[path] = _count(child)

    if called - {""}:
        visit(network, "")
    return uncalled
