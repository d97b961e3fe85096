"""Networks of parametrized tests: one of each structure by default, the others marked slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

STRUCTURES = (
    *("lenet5", "alexnet", "alexnet_torchvision", "vgg11_bn", "vgg11_cifar", "googlenet", "inception_v1"),
    *("resnet18", "resnext50_32x4d", "resnet20", "airbench_small", "densenet121"),
    *("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_s_16"),
)
"""Every other network of `fastcnn.models` is a deeper, wider or slightly changed one of these."""
FAMILIES = ("lenet5", "alexnet_torchvision", "resnet18", "mobilenet_v2", "convnext_tiny", "vit_s_16")
"""Networks for tests that compute or compile, at seconds per network."""


def each(values: Iterable[Any], default: Iterable[Any] = STRUCTURES) -> list[Any]:
    """Return a pytest parameter for each value, marked slow if not in `default`."""
    kept = set(default)
    return [pytest.param(value, marks=() if value in kept else pytest.mark.slow) for value in values]
