"""A trained network out of a plain state dict, with everything else from flags and data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from fastcnn.config import Config, has_anchors
from fastcnn.config.auto import resolve
from fastcnn.data.sources.dataset import Source
from fastcnn.errors import UserError
from fastcnn.inference.trained import Trained, complete_names
from fastcnn.inference.validation import open_judged
from fastcnn.models.create import build_network
from fastcnn.models.parts import classifier_names
from fastcnn.runtime.distributed import Ranks, local_main_first
from fastcnn.setup.observe import observe_environment
from fastcnn.setup.pixels import resolve_levels, resolve_normalization
from fastcnn.transfer.adapt import load_exactly
from fastcnn.transfer.weights import Weights, download_pretrained, read_weights

BATCH_SIZE = 64
"""Images of a forward pass, unless set."""


def open_weights(flags: Config, ranks: Ranks, device: torch.device) -> tuple[Trained, Source]:
    """Open the weights of `--weights` or `--pretrained` for the network `--arch`. All ranks call it.

    The number of classes is that of the weights, and their names are those of the weights, else of the data.
    Mean and deviation are given, else those of the weights, else of the data set.

    Returns:
        The network, and the data of `--data`.

    Raises:
        UserError: no data is named, or the weights do not fit the network or the data.
    """
    flag = "--pretrained" if flags.weights is None else f"--weights {flags.weights}"
    if "data" not in flags.written:
        raise UserError(f"{flag}: names no data to judge it by; add --data FOLDER")
    if has_anchors(flags.arch) and flags.anchors == "auto":
        raise UserError(f"{flag}: add --anchors W H W H ..., by which {flags.arch} was trained")
    batch_size = BATCH_SIZE if isinstance(flags.batch_size, str) else flags.batch_size
    config = dataclasses.replace(flags, batch_size=batch_size)
    weights = local_main_first(lambda: _read(flags), ranks)
    if weights.arch not in (None, config.arch):
        raise UserError(f"{flag}: weights of {weights.arch}, not of {config.arch}; use its --arch")
    config, _, source = resolve_levels(config, open_judged(config, ranks))
    config, _ = resolve(config, observe_environment(config, source, ranks, device))

    network = build_network(config)
    count = _count_classes(network, weights)
    if flags.num_classes == "auto" and count is not None and count != config.num_classes:
        config = dataclasses.replace(config, num_classes=count)
        network = build_network(config)
    load_exactly(network, weights.state, flag)
    config, mean, std = _normalization(config, weights, source)
    trained = Trained(
        path=Path(weights.origin),
        network=network.eval(),
        config=config,
        mean=mean,
        std=std,
        class_names=_class_names(weights, source, config, flag),
        multi_label=source.multi_label,
    )
    return trained, source


def _read(config: Config) -> Weights:
    return download_pretrained(config.arch) if config.weights is None else read_weights(config.weights)


def _count_classes(network: nn.Module, weights: Weights) -> int | None:
    """Return the number of classes of a network's weights; None if it does not show there."""
    names = classifier_names(network)
    weight = weights.state.get(f"{names[-1]}.weight") if names else None
    if weight is not None:
        return len(weight)
    return None if weights.class_names is None else len(weights.class_names)


def _normalization(
    config: Config, weights: Weights, source: Source
) -> tuple[Config, tuple[float, ...], tuple[float, ...]]:
    """Return the settings, mean and deviation for the channels of the network. All ranks call it."""
    channels = int(config.in_chans)
    config, _, source = resolve_normalization(config, source.with_channels(channels), None)
    mean, std = source.mean, source.std
    if config.mean == "auto" and weights.mean is not None and len(weights.mean) == channels:
        mean = weights.mean
    if config.std == "auto" and weights.std is not None and len(weights.std) == channels:
        std = weights.std
    return config, mean, std


def _class_names(weights: Weights, source: Source, config: Config, flag: str) -> tuple[str, ...]:
    """Return a name for each class of the network."""
    count = int(config.num_classes)
    names = source.class_names if weights.class_names is None else weights.class_names
    if weights.class_names is None and len(names) != count:
        raise UserError(
            f"{flag}: {count:,} classes without names, and --data {config.data} has {len(names):,}; use data "
            "with all classes, whose sorted names are in the order of the network"
        )
    return complete_names(names, count)
