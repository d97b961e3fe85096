"""Create a network with its head, from settings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastcnn import models
from fastcnn.config import has_anchors, task_of
from fastcnn.models.parts import reset_classifier, set_drop_rates


def build_network(
    arch: str,
    num_classes: int,
    in_chans: int,
    head: str,
    head_hidden: int,
    anchors: Sequence[float] | str = "auto",
    strides: Sequence[int] | str = "auto",
    drop: float | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """A fresh network with the classifier of `--head`, or the boxes of `--anchors` and `--strides`.

    Args:
        drop, drop_path: rates of dropout and of stochastic depth, spread over the layers by the network's
            constructor if it takes them, else by `set_drop_rates`; None: the network's own. They change no
            key of the state dict.

    Raises:
        UserError: no such network, or it cannot have such a classifier, such boxes or such rates.
    """
    options: dict[str, Any] = {}
    if task_of(arch) == "detection" and strides != "auto":
        options["strides"] = strides
    if has_anchors(arch) and anchors != "auto":
        options["anchors"] = anchors
    rates = {"drop_rate": drop, "drop_path_rate": drop_path}
    taken = inspect.signature(models.constructor(arch)).parameters
    options |= {name: rate for name, rate in rates.items() if name in taken and rate is not None}
    network: nn.Module = models.build(arch, num_classes, in_chans, **options)
    set_drop_rates(network, arch, *(None if name in options else rate for name, rate in rates.items()))
    if head == "mlp":
        reset_classifier(network, num_classes, head_hidden)
    return network
