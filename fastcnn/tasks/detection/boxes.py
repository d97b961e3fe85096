"""Boxes as [..., 4] tensors: left, top, right, bottom in pixels.

Nothing here waits for a device. Sides are multiplied by hand, since the gradient of `prod` has the host count
zeros.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7
"""Keeps quotients finite for boxes without area."""


def from_centre(centre: Tensor, sides: Tensor) -> Tensor:
    """[..., 4] from centres (x, y) and sides (width, height), each [..., 2]."""
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)


def areas(boxes: Tensor) -> Tensor:
    """[...]"""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """Areas that boxes share, [...]; `a` and `b` broadcast."""
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp(min=0) * height.clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, [...]; `a` and `b` broadcast."""
    shared = intersections(a, b)
    return shared / (areas(a) + areas(b) - shared + EPS)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less a penalty for the distance of the centres and for other proportions, [...], 1 at most: CIoU
    (Zheng et al., "Distance-IoU Loss", AAAI 2020, equations 8 to 11).

    torchvision's `complete_box_iou_loss` indexes by a mask, for which the host would wait for the device.
    """
    overlap = iou(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = apart.square().sum(-1) / (hull.square().sum(-1) + EPS)
    proportion = 4 / math.pi**2 * (_angle(a) - _angle(b)).square()
    with torch.no_grad():
        weight = proportion / (1 - overlap + proportion + EPS)
    return overlap - distance - weight * proportion


def _angle(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.atan(sides[..., 0] / (sides[..., 1] + EPS))
