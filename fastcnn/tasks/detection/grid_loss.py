"""Loss of `YOLOv1`, and decoding of its outputs (Redmon et al., "You Only Look Once", CVPR 2016)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastcnn.models.yolo import GridOutputs
from fastcnn.tasks.detection.anchor_loss import overlap_any
from fastcnn.tasks.detection.boxes import from_center, iou

COORD_WEIGHT, NO_OBJECT_WEIGHT = 5.0, 0.5
"""Lambda_coord and lambda_noobj of section 2.2."""


def decode(outputs: GridOutputs, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return boxes [N, S * S * B, 4] in pixels, and scores [N, S * S * B, num_classes].

    A score is the confidence times the probability of the class (equation 1).
    """
    boxes, classes = _split(outputs, num_classes)
    scores = boxes[..., 4:].clamp(0, 1) * classes[:, :, None].clamp(0, 1)
    return _pixels(boxes, outputs.size).flatten(1, 2), scores.flatten(1, 2)


def grid_loss(outputs: GridOutputs, targets: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Return equation 3, summed over cells and averaged over images, a scalar.

    A truth is assigned to the cell with its center; if a cell has several, to the first of them in `targets`.
    The box of the cell with the largest overlap is responsible for it, on ties the first. Crowds are not
    assigned. The confidence loss excludes boxes that are mostly in a crowd.

    Args:
        outputs: outputs for N images.
        targets: [N, M, 6], as in `fastcnn.data.batch.Batch`.
        mask: bool [N]; images with False are excluded.
    """
    grid = outputs.raw.shape[1]
    boxes, classes = _split(outputs, num_classes)
    pixels = _pixels(boxes, outputs.size)
    truths, real, crowd = targets[..., 1:5].float(), targets[..., 0] >= 0, targets[..., 5] > 0

    # The truth of each cell.
    centers = (truths[..., :2] + truths[..., 2:]) / 2
    column = (centers[..., 0] * (grid / outputs.size[1])).long().clamp(0, grid - 1)
    row = (centers[..., 1] * (grid / outputs.size[0])).long().clamp(0, grid - 1)
    cells = torch.arange(grid * grid, device=targets.device)
    contains = ((row * grid + column)[..., None] == cells) & (real & ~crowd)[..., None]  # [N, M, S * S]
    has_truth = contains.any(1)
    first = contains.to(torch.uint8).argmax(1)  # the first of equal values
    truth = truths.gather(1, first[..., None].expand(-1, -1, 4))  # [N, S * S, 4]
    label = targets[..., 0].gather(1, first)

    # Regression targets.
    with torch.no_grad():
        overlap = iou(pixels, truth[:, :, None])  # [N, S * S, B]
        best = overlap.argmax(-1, keepdim=True) == torch.arange(overlap.shape[-1], device=targets.device)
        responsible = best & has_truth[..., None]
        in_crowd = overlap_any(pixels.flatten(1, 2), truths, real & crowd, crowd).view_as(responsible)
        confidence = overlap * responsible
        confidence_weight = torch.where(responsible, 1.0, NO_OBJECT_WEIGHT * ~in_crowd)
        coordinates = _unit(truth, outputs.size, grid)[:, :, None]
        one_hot = torch.arange(num_classes, device=targets.device) == label[..., None]

    box_loss = ((boxes[..., :4] - coordinates).square().sum(-1) * responsible).sum((1, 2))
    confidence_loss = ((boxes[..., 4] - confidence).square() * confidence_weight).sum((1, 2))
    class_loss = ((classes - one_hot.float()).square().sum(-1) * has_truth).sum(1)
    losses = COORD_WEIGHT * box_loss + confidence_loss + class_loss
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def _split(outputs: GridOutputs, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return boxes [N, S * S, B, 5] and classes [N, S * S, num_classes]."""
    raw = outputs.raw.float().flatten(1, 2)
    return raw[..., :-num_classes].unflatten(-1, (-1, 5)), raw[..., -num_classes:]


def _corners(grid: int, device: torch.device) -> Tensor:
    """Return column and row of each cell, [S * S, 2]."""
    number = torch.arange(grid * grid, device=device)
    return torch.stack([number % grid, number // grid], -1).float()


def _pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert x, y and square roots of the sides to boxes [N, S * S, B, 4] in pixels."""
    grid = math.isqrt(boxes.shape[1])
    center = (boxes[..., :2] + _corners(grid, boxes.device)[:, None]) / grid
    height, width = size
    scale = boxes.new_ones(4)
    scale[0::2], scale[1::2] = width, height
    return from_center(center, boxes[..., 2:4].square()) * scale


def _unit(truth: Tensor, size: tuple[int, int], grid: int) -> Tensor:
    """Convert boxes [N, S * S, 4] in pixels, one per cell, to x, y and square roots of the sides."""
    height, width = size
    left, top, right, bottom = truth.unbind(-1)
    x, y = (left + right) / 2 * (grid / width), (top + bottom) / 2 * (grid / height)
    corner = _corners(grid, truth.device)
    sides = torch.stack([(right - left) / width, (bottom - top) / height], -1)
    return torch.cat([torch.stack([x, y], -1) - corner, sides.clamp(min=0).sqrt()], -1)
