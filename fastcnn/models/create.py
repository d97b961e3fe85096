"""Create a network with its head, from settings."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fastcnn import models
from fastcnn.config import NetworkSettings, has_anchors, task_of
from fastcnn.models.parts import reset_classifier, set_drop_rates


def build_network(settings: NetworkSettings) -> nn.Module:
    """Build a freshly initialized network with its head.

    The constructor spreads `drop` and `drop_path` over the layers if it takes them, else `set_drop_rates`
    does. They change no key of the state dict.

    Args:
        settings: with numbers for `num_classes` and `in_chans`.

    Raises:
        UserError: unknown network, or one without such a head, such anchors, strides or rates.
    """
    arch, num_classes = settings.arch, int(settings.num_classes)
    options: dict[str, Any] = {}
    if task_of(arch) == "detection" and settings.strides != "auto":
        options["strides"] = settings.strides
    if has_anchors(arch) and settings.anchors != "auto":
        options["anchors"] = settings.anchors

    rates = {"drop_rate": settings.drop, "drop_path_rate": settings.drop_path}
    accepted = inspect.signature(models.constructor(arch)).parameters
    options |= {name: rate for name, rate in rates.items() if name in accepted and rate is not None}
    network: nn.Module = models.build(arch, num_classes, int(settings.in_chans), **options)
    set_drop_rates(network, arch, *(None if name in options else rate for name, rate in rates.items()))

    if settings.head == "mlp":
        reset_classifier(network, num_classes, settings.head_hidden)
    return network
