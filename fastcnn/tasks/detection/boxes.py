"""Boxes as [..., 4] tensors: left, top, right, bottom in pixels.

No function syncs with the device. Areas are explicit products: the gradient of `prod` counts zeros on the
host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7
"""Added to denominators, for boxes of area 0."""


def from_center(center: Tensor, sides: Tensor) -> Tensor:
    """Return boxes [..., 4] with centers (x, y) and sides (width, height), each [..., 2]."""
    return torch.cat([center - sides / 2, center + sides / 2], -1)


def areas(boxes: Tensor) -> Tensor:
    """Return the areas of boxes, [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """Return the areas of the intersections, [...]; `a` and `b` broadcast."""
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp(min=0) * height.clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union, [...]; `a` and `b` broadcast."""
    shared = intersections(a, b)
    return shared / (areas(a) + areas(b) - shared + EPS)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the complete IoU, [...]: at most 1, with penalties for center distance and aspect ratio.

    Zheng et al., "Distance-IoU Loss", AAAI 2020, equations 8 to 11. torchvision's `complete_box_iou_loss`
    indexes by a mask, which needs a host sync.
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
