"""Test-time augmentation: the mean of the logits over several views of each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcnn.config.settings import Views
from fastcnn.models.base import logits_of


def mean_over_views(model: nn.Module, images: Tensor, views: Views) -> object:
    """What `model` says of images: its outputs, or logits [N, num_classes] that are a mean over views.

    They are made of the uint8 images on the device and have their shape and memory format: the model's graph
    is the same.

    Args:
        images: uint8 [N, C, H, W], as a loader yields them.
        views: "flip": the image and its mirror image. "translate": half of that, and half the mean over both
            of these for the image moved up and left by a pixel, and down and right, where what is missing at
            the border is reflected ("94% on CIFAR-10 in 3.29 seconds", Jordan 2024, section 3.5).
    """
    if views == "none":
        return model(images)
    logits = _over_mirror(model, images)
    if views == "flip":
        return logits
    moved = _over_mirror(model, _moved(images, 1)) + _over_mirror(model, _moved(images, -1))
    return (logits + moved / 2) / 2


def _over_mirror(model: nn.Module, images: Tensor) -> Tensor:
    mirrored = images.movedim(1, -1).flip(2).movedim(-1, 1)
    return (logits_of(model(images)).float() + logits_of(model(mirrored)).float()) / 2


def _moved(images: Tensor, by: int) -> Tensor:
    """Up and left by a number of pixels, or down and right where it is negative."""
    pixels = images.movedim(1, -1)  # contiguous, so that the memory format stays, for grey images too
    for dim in (1, 2):
        last = pixels.shape[dim] - 1
        place = (torch.arange(last + 1, device=images.device) + by).abs()
        pixels = pixels.index_select(dim, last - (last - place).abs())
    return pixels.movedim(-1, 1)
