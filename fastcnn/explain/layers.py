"""Layers of any network whose outputs are maps: of convolutions, or tokens of transformers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fastcnn.errors import UserError
from fastcnn.models.base import ConvNet

NEAR = 5
"""Number of similar names in an error message."""
BEFORE_ATTENTION = ("ln_1", "norm1")
"""Last parts of the names of the norms before the attention of a block, in fastcnn, torchvision and timm. The
last block's is the last place where all patches have an influence on the class token."""


def as_map(output: object) -> Tensor | None:
    """Return the output of a layer as a map [N, C, h, w]; None if it has no places.

    Tokens [N, L, C] become a square of the last ones; class tokens are dropped. [N, h, w, C] is permuted.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
        return output
    if output.ndim == 4 and output.shape[1] == output.shape[2] > 1:
        return output.permute(0, 3, 1, 2)
    if output.ndim == 3 and output.shape[1] > 3:
        side = math.isqrt(output.shape[1])
        return output[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    return None


@contextmanager
def recorded(network: nn.Module, *, copy: bool = False) -> Iterator[dict[str, Tensor]]:
    """Record the output of each layer that is a map, in the order of the forward pass.

    Args:
        copy: record copies, which later layers do not change in place; they have no gradients.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if as_map(output) is not None:
                assert isinstance(output, Tensor)
                outputs.pop(name, None)
                outputs[name] = output.detach().clone() if copy else output

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in network.named_modules() if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def choose_layer(network: nn.Module, outputs: dict[str, Tensor], layer: str | None, *, cam: bool) -> str:
    """Return the layer to explain: the given one, or the last stage.

    Args:
        outputs: of `recorded`.
        cam: for gradients, which reach the last tokens of a transformer through its class token alone.

    Raises:
        UserError: no such layer, or none with a map.
    """
    if layer is not None:
        if layer in outputs:
            return layer
        near = difflib.get_close_matches(layer, outputs, n=NEAR, cutoff=0.3) or list(outputs)[-NEAR:]
        raise UserError(f"--layer {layer}: no layer with a feature map; use one such as {', '.join(near)}")
    if not outputs:
        raise UserError("the network has no layer with a feature map, so there is none to show")
    before_attention = [name for name in outputs if name.rpartition(".")[2] in BEFORE_ATTENTION]
    if cam and before_attention and outputs[before_attention[-1]].ndim == 3:
        return before_attention[-1]
    if isinstance(network, ConvNet) and network.stages[-1].name in outputs:
        return network.stages[-1].name
    return list(outputs)[-1]
