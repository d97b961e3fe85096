"""The networks: a literal name -> constructor dict, one file per family.

python -c "from fastcnn.models import build; print(build('resnet18', num_classes=10))"
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from fastcnn.errors import UserError
from fastcnn.models import lenet, resnet
from fastcnn.models.base import ConvNet, Outputs, Stage

__all__ = ["MODELS", "ConvNet", "Outputs", "Stage", "build", "constructor"]

MODELS: dict[str, Callable[..., ConvNet]] = {
    "lenet5": lenet.lenet5,
    "lenet5_relu": lenet.lenet5_relu,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet44": resnet.resnet44,
    "resnet56": resnet.resnet56,
    "resnet110": resnet.resnet110,
}


def constructor(name: str) -> Callable[..., ConvNet]:
    """The constructor of a network; ValueError that names the nearest for an unknown one."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower().replace("-", ""), MODELS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"--arch {name}: no such network; {hint}write one of {', '.join(MODELS)}")
    return MODELS[name]


def build(name: str, num_classes: int | None = None, in_chans: int = 3, **options: Any) -> ConvNet:
    """A freshly initialized network.

    Args:
        name: a key of `MODELS`.
        num_classes: size of the logits; None: as published.
        in_chans: channels of the images.
        options: further keywords of the network's constructor, such as `drop_rate`.

    Raises:
        ValueError: no such network, or no such option of it.
    """
    make = constructor(name)
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise UserError(f"{name}: no option {option!r}; it has {', '.join(known)}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    return make(in_chans=in_chans, **options)
