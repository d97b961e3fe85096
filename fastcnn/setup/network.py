"""Create the network of a run: layers, initial weights and frozen part."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.config import Config
from fastcnn.data.loaders.first_images import first_images
from fastcnn.data.sources.dataset import Source
from fastcnn.data.transforms.transform import Transform
from fastcnn.models.create import build_network
from fastcnn.models.external import check_outputs, is_external
from fastcnn.runtime.distributed import Ranks, from_main, local_main_first
from fastcnn.transfer.adapt import load_weights
from fastcnn.transfer.freeze import frozen_layers
from fastcnn.transfer.weights import download_pretrained, read_weights

FIRST_IMAGES, FIRST_PIXELS = 5000, 5000 * 64**2
"""Max images, and max pixels in total, for the initialization from training images."""


def create_network(config: Config) -> tuple[nn.Module, list[str]]:
    """Return a network with random weights, the same on every rank, and the layers to freeze."""
    torch.manual_seed(config.seed)
    network = build_network(config)
    if is_external(config.arch):
        shape = int(config.num_classes), int(config.in_chans)
        check_outputs(network, config.arch, *shape, int(config.img_size))
    return network, frozen_layers(network, config.freeze, config.freeze_until)


def load_initial_weights(
    network: nn.Module, config: Config, source: Source, ranks: Ranks
) -> tuple[Source, list[str]]:
    """Load the weights of `--pretrained` or `--weights`. All ranks call it.

    Returns:
        The data, with the normalization of the weights if known, and lines for the log.
    """
    if config.weights is not None:
        flag, file = f"--weights {config.weights}", config.weights
        weights = local_main_first(lambda: read_weights(file), ranks)
    else:
        flag = "--pretrained"
        weights = local_main_first(lambda: download_pretrained(config.arch), ranks)
    if weights.arch not in (None, config.arch):  # the weights may still fit
        flag += f", of {weights.arch}"
    other_classes = weights.class_names is not None and weights.class_names != tuple(source.class_names)
    backbone = getattr(network, "backbone", None)
    if backbone is None or any(name.startswith("backbone.") for name in weights.state):
        adapted = load_weights(network, weights.state, flag, other_classes=other_classes)
    else:  # weights of a classifier, without its last layers
        adapted = load_weights(backbone, backbone.without_head(weights.state), flag)
    remarks = [f"starting from {weights.origin}", *adapted]
    if weights.mean is None or weights.std is None:
        return source, remarks
    mean, std = weights.mean, weights.std
    if len(mean) != source.channels:  # gray images with weights for RGB, or vice versa
        mean, std = (((sum(values) / len(values),) * source.channels) for values in (mean, std))
    if config.mean == "auto":
        source = dataclasses.replace(source, mean=mean)
    if config.std == "auto":
        source = dataclasses.replace(source, std=std)
    return source, remarks


def initialize_from_images(network: nn.Module, config: Config, source: Source, transform: Transform) -> None:
    """Initialize from training images all networks and backbones with a method `init_from_images`.

    The method takes normalized images, float [N, C, H, W], and sets parameters and buffers. All ranks get the
    result of rank 0.
    """
    for part in (part for part in network.modules() if hasattr(part, "init_from_images")):

        def compute(part: Any = part) -> dict[str, Tensor]:
            count = min(FIRST_IMAGES, max(1, FIRST_PIXELS // int(config.img_size) ** 2))
            images = first_images(
                source.train,
                transform,
                mean=source.mean,
                std=source.std,
                count=count,
                workers=int(config.workers),
            )
            part.init_from_images(images)
            return part.state_dict()

        part.load_state_dict(from_main(compute))
