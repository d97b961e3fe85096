"""Networks of timm, torchvision and users, by the names of `--arch`. They keep their state-dict keys.

python -m fastcnn.train --arch timm/efficientnet_b0
python -m fastcnn.train --arch torchvision/regnet_y_400mf
python -m fastcnn.train --arch my_networks:tiny    # tiny(num_classes=10, in_chans=3) of my_networks.py
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcnn.errors import UserError
from fastcnn.models.base import Outputs, logits_of

WITH_AUXILIARIES = ("googlenet", "inception_v3")
"""Networks of torchvision that return a named tuple in training mode."""

OWN_PREFIXES = ("unet", "yolo", "yolov1")
"""Prefixes of own networks such as `unet/resnet18`: the keys of `models.ON_A_BACKBONE`."""


class ImageSizes(NamedTuple):
    """Image sizes of a network, sides in pixels; the attributes of `ConvNet`."""

    default_image_size: int = 224
    fixed_image_size: bool = False
    minimum_image_size: int = 1
    image_size_multiple: int = 1

    @classmethod
    def of(cls, network: object) -> ImageSizes:
        """Read the attributes of these names of a network or its factory; others keep their default."""
        return cls(**{name: getattr(network, name) for name in cls._fields if hasattr(network, name)})


def is_external(arch: str) -> bool:
    """Return True for names of networks outside of fastcnn."""
    return ":" in arch or ("/" in arch and arch.partition("/")[0] not in OWN_PREFIXES)


def constructor(arch: str) -> Callable[..., Any]:
    """Return a factory of the network `arch`, with parameters `num_classes` and `in_chans`.

    Raises:
        UserError: unknown network, or its package is not installed. The factory raises it if a user's factory
            does not return a module.
    """
    package, _ = _parts(arch)
    if package == "timm":
        timm_config(arch)
        return partial(_build_timm, arch)
    if package == "torchvision":
        torchvision_builder(arch)
        return partial(_build_torchvision, arch)
    _own_factory(arch)
    return partial(_build_own, arch)


def image_sizes(arch: str) -> ImageSizes:
    """Return the image sizes of a network, as far as known without building it.

    A user's factory may have attributes of these names; subclasses of `ConvNet` do.

    Raises:
        UserError: as `constructor`.
    """
    package, _ = _parts(arch)
    if package == "timm":
        config = timm_config(arch)
        smallest = config.min_input_size[-1] if config.min_input_size else 1
        return ImageSizes(config.input_size[-1], config.fixed_input_size, smallest)
    if package == "torchvision":
        from torchvision.models import get_model_weights

        if arch.startswith("torchvision/vit_"):  # built for one size, whatever the size of the best weights
            return ImageSizes(fixed_image_size=True)
        (size,) = get_model_weights(torchvision_builder(arch)).DEFAULT.transforms().crop_size
        return ImageSizes(size)
    return ImageSizes.of(_own_factory(arch))


def check_outputs(network: nn.Module, arch: str, num_classes: int, in_chans: int, size: int) -> None:
    """Check the shape of the logits for one black image.

    Raises:
        UserError: the network fails on such an image, or does not return one logit per class.
    """
    shape = f"{in_chans} x {size} x {size}"
    training = network.training
    try:
        with torch.no_grad():
            logits = logits_of(network.eval()(torch.zeros(1, in_chans, size, size)))
    except Exception as error:  # third-party code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--arch {arch}: cannot take images of {shape}: {reason}; use another --img-size or --in-chans"
        ) from error
    network.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        given = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"--arch {arch}: makes {given} of an image of {shape}, not logits [1, {num_classes}]; "
            "let it have a parameter num_classes"
        )


def with_sync_bn(network: nn.Module, arch: str) -> nn.Module:
    """Convert batch norm to synchronized batch norm.

    Raises:
        UserError: a batch norm layer has its own `forward`, which the conversion would drop.
    """
    if arch.startswith("timm/"):  # some of timm's batch norm layers include the activation
        return import_timm(arch).layers.convert_sync_batchnorm(network)
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and type(module).forward is not _BatchNorm.forward:
            raise UserError(f"--sync-bn: {name} of {arch} is a {type(module).__name__}; omit it")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def timm_config(arch: str) -> Any:
    """Return timm's description of a network and its weights, `timm.models.PretrainedCfg`."""
    _, name = _parts(arch)
    timm = import_timm(arch)
    if not timm.is_model(name):
        raise _unknown(arch, f"timm has no {name}", name, timm.list_models())
    try:
        return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:  # an unknown tag, as in resnet18.TAG
        known = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
        raise _unknown(arch, f"timm has no {name}", name, known) from error


def torchvision_builder(arch: str) -> Callable[..., nn.Module]:
    """Return torchvision's factory of a classification network."""
    from torchvision import models

    _, name = _parts(arch)
    known = models.list_models(module=models)  # classification networks only
    if name not in known:
        raise _unknown(arch, f"torchvision has no {name}", name, known)
    return models.get_model_builder(name)


def import_timm(arch: str) -> Any:
    """Import timm.

    Raises:
        UserError: timm is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UserError(f"--arch {arch}: timm is not installed; pip install timm") from error


def _build_timm(
    arch: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
) -> nn.Module:
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}  # timm ignores None
    timm = import_timm(arch)
    try:
        return timm.create_model(_parts(arch)[1], num_classes=num_classes, in_chans=in_chans, **rates)
    except TypeError as error:  # some networks take only one of the rates
        for name, flag in (("drop_rate", "--drop"), ("drop_path_rate", "--drop-path")):
            if rates[name] is not None and f"argument '{name}'" in str(error):
                raise UserError(f"{flag} {rates[name]:g}: {arch} takes no such rate; omit it") from error
        raise


def _build_torchvision(arch: str, num_classes: int = 1000, in_chans: int = 3) -> nn.Module:
    auxiliaries = _parts(arch)[1] in WITH_AUXILIARIES
    options = {"init_weights": True} if auxiliaries else {}  # torchvision warns without it
    network = torchvision_builder(arch)(num_classes=num_classes, **options)
    if in_chans != 3:
        _replace_first_convolution(network, in_chans)
    if auxiliaries:
        network.register_forward_hook(as_outputs)
    return network


def _build_own(arch: str, num_classes: int = 1000, in_chans: int = 3) -> nn.Module:
    factory = _own_factory(arch)
    settings = {"num_classes": num_classes, "in_chans": in_chans}
    known = inspect.signature(factory).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    network = factory(**{name: value for name, value in settings.items() if takes_all or name in known})
    if not isinstance(network, nn.Module):
        raise UserError(f"--arch {arch}: returns a {type(network).__name__}; let it return an nn.Module")
    return network


def _parts(arch: str) -> tuple[str, str]:
    """Split timm/NAME, torchvision/NAME or MODULE:FACTORY."""
    if ":" in arch:
        module, _, name = arch.partition(":")
        return module, name
    package, _, name = arch.partition("/")
    if package not in ("timm", "torchvision"):
        raise UserError(f"--arch {arch}: use timm/NAME, torchvision/NAME or package.module:factory")
    return package, name


def _own_factory(arch: str) -> Callable[..., Any]:
    module, name = _parts(arch)
    if os.getcwd() not in sys.path:  # as under `python -m`; the command `fastcnn` has its own folder first
        sys.path.insert(0, os.getcwd())
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, and one of its imports is missing
        raise UserError(f"--arch {arch}: no module {error.name}, here or installed") from error
    factory = getattr(imported, name, None)
    if not callable(factory):
        callables = [key for key, value in vars(imported).items() if callable(value)]
        raise _unknown(arch, f"{module} has no function {name}", name, callables)
    return factory


def _unknown(arch: str, problem: str, name: str, known: Iterable[str]) -> UserError:
    near = difflib.get_close_matches(name, list(known), n=3)
    return UserError(f"--arch {arch}: {problem}" + (f"; did you mean {' or '.join(near)}?" if near else ""))


def _replace_first_convolution(network: nn.Module, in_chans: int) -> None:
    """Replace the first convolution by one for `in_chans` channels; torchvision has no option for it."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        in_chans,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)


def as_outputs(module: nn.Module, args: Any, output: Any) -> Outputs | None:
    """Convert torchvision's named tuple to `Outputs`, as a forward hook."""
    if isinstance(output, Tensor):
        return None  # evaluation mode: no change
    aux = (getattr(output, name) for name in sorted(output._fields) if name != "logits")
    return Outputs(output.logits, tuple(logits for logits in aux if logits is not None))
