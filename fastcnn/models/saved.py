"""Content of checkpoints, checked once when it is read: types, settings, sizes, and whose code it names.

    content = torch.load(path, weights_only=True)
    check_content(content)
    check_trusted(content["arch"], arch, advice)
    check_network(content)

All raise ValueError with the reason alone; the caller names the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fastcnn.config import NetworkSettings, to_plain
from fastcnn.config.auto import from_saved
from fastcnn.models.create import build_network
from fastcnn.models.external import is_external

FORMAT = 2
NETWORK = ("arch", "num_classes", "in_chans", "head", "head_hidden", "anchors", "strides")
"""Settings that decide the tensors of a network."""
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
"""Keys of `torch.amp.GradScaler.state_dict`."""

State = dict[str, Tensor]


class RankState(TypedDict):
    """State that differs between ranks."""

    buffers: list[State]
    random: State
    metrics: Tensor


class EmaState(TypedDict):
    updates: int
    waited: int
    average: State


class AverageState(TypedDict):
    epochs: int
    weights: State


class OptimizerState(TypedDict):
    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


class Position(TypedDict):
    epoch: int
    consumed: int


class Content(TypedDict):
    """A checkpoint."""

    format: int
    fastcnn: str
    arch: str
    num_classes: int
    in_chans: int
    img_size: int
    val_img_size: int
    class_names: list[str]
    multi_label: bool
    mean: list[float]
    std: list[float]
    config: dict[str, Any]
    ranks: list[RankState]
    chosen: list[str]
    best: dict[str, float]
    since_best: int
    average: AverageState
    loader: Position
    order: dict[str, int | str]
    model: State
    weights: State
    ema: EmaState | None
    optimizer: OptimizerState
    scaler: dict[str, float]
    step: int
    epoch: float


def check_content(content: dict[str, Any]) -> None:
    """Check the types, settings and numbers of a checkpoint; complete what older versions did not write.

    Args:
        content: as read, without values of unbounded size (`fastcnn.runtime.tensor_file`). Top-level keys
            of newer versions are ignored.

    Raises:
        ValueError: a key is missing, or a value has the wrong type or is out of range.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    _complete(content)
    known = {key: value for key, value in content.items() if key in Content.__annotations__}
    try:
        check_type(known, Content, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        reason = str(error).replace("dict is missing required key(s):", "it lacks")
        reason = re.sub(
            r" did not match any element in the union:.*", " has the wrong type", reason, flags=re.S
        )
        raise ValueError(" ".join(reason.split())) from error
    if re.fullmatch(r"[\w./:-]{1,200}", content["arch"], re.ASCII) is None:
        raise ValueError("its arch is no name of a network")

    # Settings, and the values that are saved a second time beside them.
    config = from_saved(content["config"])
    content["config"] = to_plain(config)
    for name in ("arch", "num_classes", "in_chans", "img_size", "val_img_size"):
        if content[name] != getattr(config, name):
            raise ValueError(f"{name} is {content[name]}, and {getattr(config, name)} in its settings")
    if len(content["class_names"]) > content["num_classes"]:
        raise ValueError("more names than classes")
    for name in ("mean", "std"):
        if len(content[name]) != content["in_chans"] or not all(map(math.isfinite, content[name])):
            raise ValueError(f"{name} is not a number for each channel")
    if min(content["std"]) <= 0:
        raise ValueError("std is not above 0")

    # Progress.
    counts = [content["step"], content["epoch"], *content["loader"].values()]
    if not all(0 <= count < 2**53 for count in counts):
        raise ValueError("step, epoch or the loader's position is out of range")
    if content["best"] and not {"samples", "bad", "epoch"} <= content["best"].keys():
        raise ValueError("best lacks samples, bad or epoch")
    if config.model_ema and content["ema"] is None:
        raise ValueError("ema is missing, and its settings have one")
    if "training images" not in content["order"]:
        raise ValueError("order lacks the training images")
    if content["scaler"] and not content["scaler"].keys() >= set(SCALER):
        raise ValueError("scaler is incomplete")
    for rank in content["ranks"]:
        _check_random(rank["random"])


def _complete(content: dict[str, Any]) -> None:
    """Add the keys that older versions did not write."""
    content.setdefault("val_img_size", content.get("img_size"))
    content.setdefault("multi_label", False)
    content.setdefault("since_best", 0)
    content.setdefault("average", {"epochs": 0, "weights": {}})
    for key, name, value in (("ema", "waited", 0), ("order", "--sampler", "shuffle")):
        if isinstance(content.get(key), dict):
            content[key].setdefault(name, value)
    if isinstance(content.get("config"), dict):
        content["config"].setdefault("val_img_size", content["val_img_size"])


def check_trusted(arch: str, trusted: str | None, advice: str) -> None:
    """Check that a network out of a file is not code, unless the user wrote the same name.

    Args:
        arch: name in the file.
        trusted: name that the user wrote; None: none.
        advice: how to write it.

    Raises:
        ValueError: `arch` is MODULE:FACTORY, and the user did not write it.
    """
    if ":" in arch and arch != trusted:
        module = arch.partition(":")[0]
        raise ValueError(f"its network {arch} is code of the module {module}; if you trust it, {advice}")


def network_settings(content: dict[str, Any]) -> NetworkSettings:
    """Return the settings of a checkpoint's network."""
    config = from_saved(content["config"])
    return NetworkSettings(**{name: getattr(config, name) for name in NETWORK})


def check_network(content: dict[str, Any]) -> None:
    """Compare the sizes of a checkpoint's network with its tensors before anything is allocated.

    Args:
        content: checked by `check_content` and `check_trusted`.

    Raises:
        ValueError: the network's settings and the tensors do not fit.
    """
    settings = network_settings(content)
    largest = max((side for value in content["weights"].values() for side in value.shape), default=0)
    if int(settings.num_classes) > largest:
        raise ValueError(f"{settings.num_classes:,} classes, and no tensor has so many rows")
    shapes = _shapes(settings)
    check_states(content, content["model"] if shapes is None else shapes)


def check_states(content: dict[str, Any], own: Mapping[str, Tensor]) -> None:
    """Compare all tensors of a checkpoint's network with a state dict of it.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or kind.
    """
    states = {"model": content["model"], "weights": content["weights"]}
    if content["average"]["weights"]:
        states["average"] = content["average"]["weights"]
    for name, state in states.items():
        _compare(name, state, own)
        if state.keys() != own.keys():
            raise ValueError(f"{name} lacks tensors of {content['arch']}")
    if content["ema"] is not None:
        _compare("ema", content["ema"]["average"], content["model"])
        floats = {name for name, value in content["model"].items() if value.is_floating_point()}
        if content["ema"]["average"].keys() != floats:
            raise ValueError("ema lacks tensors of the model")
    for rank in content["ranks"]:
        for buffers in rank["buffers"]:
            _compare("ranks", buffers, content["model"])


def _shapes(settings: NetworkSettings) -> Mapping[str, Tensor] | None:
    """Return the state dict of a network without memory; None if it cannot be built so.

    A network MODULE:FACTORY is not: the user's code may keep what it returned for later calls.
    """
    if ":" in settings.arch:
        return None
    try:
        with torch.device("meta"):
            network: nn.Module = build_network(settings)
        return network.state_dict()
    except ValueError:
        raise
    except Exception as error:  # a network from elsewhere may compute with its tensors
        if not is_external(settings.arch):
            raise ValueError(f"its settings fit no {settings.arch}") from error
        return None


def _compare(name: str, state: State, own: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a tensor that `own` does not have, or has in another shape or kind."""
    for key, value in state.items():
        if key not in own:
            raise ValueError(f"{name} has {key[:80]!r}, which the network does not have")
        if value.shape != own[key].shape:
            raise ValueError(
                f"{name}: {key} is {list(value.shape)}, and {list(own[key].shape)} by its settings"
            )
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise ValueError(f"{name}: {key} has values of another kind")


def _check_random(states: State) -> None:
    if "cpu" not in states:
        raise ValueError("ranks lack random states")
    for device, state in states.items():
        if state.dtype != torch.uint8 or state.ndim != 1:
            raise ValueError("a random state is no bytes")
        if device == "cpu":
            try:
                torch.Generator().set_state(state)
            except (RuntimeError, TypeError) as error:
                raise ValueError("a random state is invalid") from error
