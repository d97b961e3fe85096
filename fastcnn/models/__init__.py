"""Networks by name, one file per family.

python -c "from fastcnn.models import build; print(build('resnet18', num_classes=10))"
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from fastcnn.errors import UserError
from fastcnn.models import (
    airbench,
    alexnet,
    cifar_resnet,
    convnext,
    densenet,
    efficientnet,
    external,
    googlenet,
    lenet,
    mobilenet,
    resnet,
    unet,
    vgg,
    vit,
    yolo,
)
from fastcnn.models.base import ConvNet, Outputs, Stage

__all__ = ["DETECTION", "MODELS", "SEGMENTATION", "ConvNet", "Outputs", "Stage", "build", "constructor"]

MODELS: dict[str, Callable[..., ConvNet]] = {
    "lenet5": lenet.lenet5,
    "lenet5_relu": lenet.lenet5_relu,
    "alexnet": alexnet.alexnet,
    "alexnet_torchvision": alexnet.alexnet_torchvision,
    "vgg11": vgg.vgg11,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg13": vgg.vgg13,
    "vgg13_bn": vgg.vgg13_bn,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19": vgg.vgg19,
    "vgg19_bn": vgg.vgg19_bn,
    "vgg11_cifar": vgg.vgg11_cifar,
    "vgg13_cifar": vgg.vgg13_cifar,
    "vgg16_cifar": vgg.vgg16_cifar,
    "vgg19_cifar": vgg.vgg19_cifar,
    "vgg16_cifar_wide": vgg.vgg16_cifar_wide,
    "googlenet": googlenet.googlenet,
    "inception_v1": googlenet.inception_v1,
    "inception_v1_bn": googlenet.inception_v1_bn,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet50_blur": resnet.resnet50_blur,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "resnext101_32x8d": resnet.resnext101_32x8d,
    "resnext101_64x4d": resnet.resnext101_64x4d,
    "wide_resnet50_2": resnet.wide_resnet50_2,
    "wide_resnet101_2": resnet.wide_resnet101_2,
    "resnet20": cifar_resnet.resnet20,
    "resnet32": cifar_resnet.resnet32,
    "resnet44": cifar_resnet.resnet44,
    "resnet56": cifar_resnet.resnet56,
    "resnet110": cifar_resnet.resnet110,
    "resnet18_cifar": cifar_resnet.resnet18_cifar,
    "resnet50_short": cifar_resnet.resnet50_short,
    "airbench": airbench.airbench,
    "airbench_small": airbench.airbench_small,
    "densenet121": densenet.densenet121,
    "densenet161": densenet.densenet161,
    "densenet169": densenet.densenet169,
    "densenet201": densenet.densenet201,
    "mobilenet_v1": mobilenet.mobilenet_v1,
    "mobilenet_v2": mobilenet.mobilenet_v2,
    "mobilenet_v3_large": mobilenet.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet.mobilenet_v3_small,
    "efficientnet_b0": efficientnet.efficientnet_b0,
    "efficientnet_b1": efficientnet.efficientnet_b1,
    "efficientnet_b2": efficientnet.efficientnet_b2,
    "efficientnet_b3": efficientnet.efficientnet_b3,
    "efficientnet_b4": efficientnet.efficientnet_b4,
    "efficientnet_b5": efficientnet.efficientnet_b5,
    "efficientnet_b6": efficientnet.efficientnet_b6,
    "efficientnet_b7": efficientnet.efficientnet_b7,
    "convnext_tiny": convnext.convnext_tiny,
    "convnext_small": convnext.convnext_small,
    "convnext_base": convnext.convnext_base,
    "convnext_large": convnext.convnext_large,
    "vit_s_16": vit.vit_s_16,
    "vit_b_16": vit.vit_b_16,
    "vit_b_32": vit.vit_b_32,
    "vit_l_16": vit.vit_l_16,
}

SEGMENTATION: dict[str, Callable[..., ConvNet]] = {
    "unet": unet.unet,
    "unet_bilinear": unet.unet_bilinear,
    "unet_small": unet.unet_small,
    "unet_paper": unet.unet_paper,
}
"""Networks with logits for each pixel, [N, num_classes, H, W]."""

DETECTION: dict[str, Callable[..., ConvNet]] = {"yolo": yolo.yolo, "yolov1": yolo.yolov1}
"""Networks with boxes as outputs: `yolo.AnchorOutputs`, `yolo.GridOutputs`."""

ON_A_BACKBONE: dict[str, Callable[..., ConvNet]] = {
    "unet": unet.unet_on,
    "yolo": yolo.yolo,
    "yolov1": yolo.yolov1,
}
"""Constructors that take a backbone of `MODELS`, by the prefix of names such as `unet/resnet50`."""


def constructor(name: str) -> Callable[..., ConvNet]:
    """Return the constructor of a network.

    Raises:
        UserError: unknown network; the message suggests the closest name.
    """
    prefix, slash, backbone = name.partition("/")
    if slash and prefix in ON_A_BACKBONE:
        return partial(ON_A_BACKBONE[prefix], backbone=_known(MODELS, backbone, f"{prefix}/"))
    if external.is_external(name):
        return external.constructor(name)
    return _known(MODELS | SEGMENTATION | DETECTION, name)


def _known(
    networks: dict[str, Callable[..., ConvNet]], name: str, prefix: str = ""
) -> Callable[..., ConvNet]:
    if name not in networks:
        near = difflib.get_close_matches(name.lower().replace("-", ""), networks, n=1)
        hint = f"did you mean {prefix}{near[0]}? " if near else ""
        raise UserError(f"--arch {prefix}{name}: no such network; {hint}`fastcnn models` lists them")
    return networks[name]


def build(name: str, num_classes: int | None = None, in_chans: int = 3, **options: Any) -> ConvNet:
    """Build a freshly initialized network.

    Args:
        name: key of `MODELS`, `SEGMENTATION` or `DETECTION`, PREFIX/NAME with a prefix of `ON_A_BACKBONE`, or
            the name of an external network (`fastcnn.models.external`).
        num_classes: number of classes; None: as published.
        in_chans: input channels.
        options: more keyword arguments of the constructor, such as `drop_rate`.

    Raises:
        UserError: unknown network, or unknown option.
    """
    make = constructor(name)
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise UserError(f"{name}: no option {option!r}; it has {', '.join(known)}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    return make(in_chans=in_chans, **options)
