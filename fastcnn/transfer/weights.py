"""Initial weights from torchvision, timm or a file.

python -m fastcnn.train --arch resnet50 --pretrained --data photos
python -m fastcnn.train --arch resnet50 --weights mine.safetensors --data photos
"""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcnn import files
from fastcnn.config import backbone_of
from fastcnn.errors import UserError
from fastcnn.models.external import WITH_AUXILIARIES, import_timm, is_external, timm_config
from fastcnn.models.saved import check_content
from fastcnn.runtime.tensor_file import check_regular, read_tensor_file

SAME_IN_TORCHVISION = (
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "googlenet"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3"),
    *("efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7"),
    *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    *("vit_b_16", "vit_b_32", "vit_l_16"),
)
TORCHVISION = {"alexnet_torchvision": "alexnet"} | {name: name for name in SAME_IN_TORCHVISION}
"""Names of networks in torchvision, for those with published weights there."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """State dict, with its metadata as far as known."""

    state: dict[str, Tensor]
    origin: str
    """Source, for messages."""
    mean: tuple[float, ...] | None = None
    """Mean of the training images for each channel, of values from 0 to 1; `std` is their deviation."""
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    """Names of the classes."""
    arch: str | None = None
    """Name of the network."""


def has_pretrained(arch: str) -> bool:
    """Return True if torchvision has weights for an own network, or for its backbone."""
    return backbone_of(arch) in TORCHVISION


def download_pretrained(arch: str) -> Weights:
    """Load the default weights of torchvision or timm for a network or its backbone, from cache or download.

    Raises:
        UserError: no such weights, or the download fails.
    """
    arch = backbone_of(arch)
    if arch.startswith("timm/"):
        return _timm_weights(arch)
    if arch.startswith("torchvision/"):
        return torchvision_weights(arch.partition("/")[2])
    if is_external(arch):
        raise UserError(f"--pretrained: nothing is known about weights of {arch}; use --weights FILE")
    if not has_pretrained(arch):
        raise UserError(
            f"--pretrained: torchvision has no weights for {arch}; omit it, or use --weights FILE"
        )
    return torchvision_weights(TORCHVISION[arch])


def torchvision_weights(name: str) -> Weights:
    """Load the default weights of a network of torchvision by its name there."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state = weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, HTTPException) as error:
        raise UserError(
            f"--pretrained: {weights.url} cannot be downloaded ({getattr(error, 'reason', error)}); "
            f"put it at {file}, or use --weights FILE"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # incomplete file
        raise UserError(f"--pretrained: {weights.url} or {file} is damaged; remove the file") from error
    preset = weights.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if name in WITH_AUXILIARIES:  # weights and normalization of TensorFlow, as torchvision's transform_input
        mean = std = (0.5, 0.5, 0.5)
    return Weights(state=_with_new_names(state), origin=f"torchvision's {weights}", mean=mean, std=std)


def _timm_weights(arch: str) -> Weights:
    config = timm_config(arch)
    try:
        network = import_timm(arch).create_model(arch.partition("/")[2], pretrained=True)
    except OSError as error:  # base class of the errors of huggingface_hub and urllib
        reason = str(error).splitlines()[0]
        url = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise UserError(
            f"--pretrained: {url} cannot be downloaded ({reason}); fetch it another way, "
            "and use --weights FILE"
        ) from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--pretrained: timm: {reason}; omit it, or use --weights FILE") from error
    return Weights(
        state=network.state_dict(),
        origin=f"timm's {arch}",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def read_weights(path: str) -> Weights:
    """Read weights of a `.pth`, `.pt` or `.safetensors` file, without running code from it.

    The file is a checkpoint of fastcnn, one without the state of its training, a state dict, or a dict with
    one under "state_dict" or "model", as other programs save it.

    Raises:
        UserError: missing file, or no weights in it.
    """
    content = _read(files.expand_user(path, "--weights"), f"--weights {path}")
    mean = std = class_names = arch = None
    if isinstance(content, dict) and {"fastcnn", "weights"} <= content.keys():
        try:
            if "optimizer" in content:
                check_content(content)
            else:
                _check_stripped(content)
        except ValueError as error:
            raise UserError(f"--weights {path}: damaged or incomplete: {error}; use another") from error
        state, mean, std = content["weights"], tuple(content["mean"]), tuple(content["std"])
        class_names, arch = tuple(content["class_names"]), content["arch"]
    else:
        state = content
        for key in ("model", "state_dict"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                state = content[key]
    if not _is_state_dict(state):
        raise UserError(
            f"--weights {path}: no state dict in it; save one with torch.save(model.state_dict(), FILE)"
        )
    return Weights(
        state=_with_new_names(state),
        origin=path,
        mean=mean,
        std=std,
        class_names=class_names,
        arch=arch,
    )


def _check_stripped(content: dict[str, Any]) -> None:
    """Check what is read of a checkpoint without the state of its training.

    Raises:
        ValueError: a key is missing, or a value has the wrong type or is out of range.
    """
    kinds = {"arch": str, "class_names": list, "mean": list, "std": list}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"it lacks {name}, or it has the wrong type")
    if not all(isinstance(name, str) for name in content["class_names"]):
        raise ValueError("a class name is no text")
    if not all(isinstance(v, float) and math.isfinite(v) for v in (*content["mean"], *content["std"])):
        raise ValueError("mean or std is not a number for each channel")
    if min(content["std"], default=0) <= 0 or len(content["mean"]) != len(content["std"]):
        raise ValueError("std is not above 0 for each channel")


def _read(path: Path, source: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            check_regular(path)
            return load_file(path)
        return read_tensor_file(path)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}; use the path of a file of weights") from error
    except Exception as error:  # readers may raise anything for invalid bytes
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is not None:
            raise UserError(
                f"{source}: holds {code[1]}, and reading that would run code; "
                "save the tensors alone with torch.save(model.state_dict(), FILE)"
            ) from error
        raise UserError(f"{source}: not a file of weights; use a .pth, .pt or .safetensors file") from error


def _is_state_dict(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and len(state) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    )


def _with_new_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DDP and torch.compile, and convert old names of torchvision's DenseNets."""
    state = dict(state)
    while state and all(name.startswith(("module.", "_orig_mod.")) for name in state):
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name): v
        for name, v in state.items()
    }
