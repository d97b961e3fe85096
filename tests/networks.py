"""Which networks a test goes through in the default run: one of each structure; the others are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

STRUCTURES = (
    *(
        "lenet5",
        "lenet5_relu",
        "alexnet",
        "alexnet_torchvision",
        "vgg11_bn",
        "vgg11_cifar",
        "vgg16_cifar_wide",
    ),
    *("googlenet", "inception_v1", "resnet18", "resnet50", "resnet50_blur", "resnext50_32x4d", "resnet20"),
    *("resnet18_cifar", "resnet50_short", "airbench_small", "densenet121", "mobilenet_v1", "mobilenet_v2"),
    *("mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_s_16"),
)
"""Every other network of `fastcnn.models` is a deeper or wider one of these."""
FAMILIES = ("lenet5", "alexnet_torchvision", "resnet18", "mobilenet_v2", "convnext_tiny", "vit_s_16")
"""Where a test computes with numbers or compiles, which takes seconds a network."""


def each(names: Iterable[str], default: Iterable[str] = STRUCTURES) -> list[Any]:
    """A parameter for each name, slow where it is not in `default`."""
    kept = set(default)
    return [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]
