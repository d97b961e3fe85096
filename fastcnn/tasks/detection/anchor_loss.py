"""What `YOLO` learns and what its outputs mean as boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.models.yolo import AnchorOutputs
from fastcnn.tasks.detection.boxes import areas, complete_iou, from_centre, intersections, iou

BOX_WEIGHT, OBJECT_WEIGHT, CLASS_WEIGHT = 5.0, 1.0, 1.0
"""Of the three parts of the loss, as in Ge et al., "YOLOX", 2021 (its code; the paper names none)."""
IOU_THRESHOLD = 0.5
"""IoU above which anchors of the truth's shape are trained beside the best one (Bochkovskiy et al., "YOLOv4",
2020, section 4.3), and above which predictions that no truth trains are left alone (Redmon, Farhadi,
"YOLOv3", 2018, section 2.1)."""
TRUTHS_AT_ONCE = 16
"""Truths of each image that all predictions are compared with together: bounds the memory."""


def decode(outputs: AnchorOutputs) -> tuple[Tensor, Tensor]:
    """Boxes [N, P, 4] in pixels, and scores [N, P, num_classes]: objectness times probability."""
    raw = outputs.raw.float()
    return _boxes(raw, outputs.cells), raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()


def anchor_loss(outputs: AnchorOutputs, targets: Tensor, mask: Tensor) -> Tensor:
    """Box, objectness and class loss over the number of trained predictions, a scalar.

    Each truth trains, in the cell that holds its centre, the anchor of the most similar shape and all others
    that are similar enough. Where two truths train one prediction, it learns of both, and its objectness from
    the one that it overlaps more. Crowds train nothing.

    Args:
        outputs: of N images.
        targets: [N, M, 6], as `fastcnn.data.batch.Batch` has them.
        mask: bool [N]; other images count for nothing.
    """
    raw, truths = outputs.raw.float(), targets[..., 1:5].float()
    real = (targets[..., 0] >= 0) & mask[:, None]
    crowd = targets[..., 5] > 0
    index, trained = _assign(outputs, truths, real & ~crowd)

    chosen = raw.gather(1, index[..., None].expand(-1, -1, raw.shape[-1]))
    per_truth = index.shape[1] // truths.shape[1]
    boxes, truth = _boxes(chosen, outputs.cells[index]), truths.repeat_interleave(per_truth, 1)
    box_loss = ((1 - complete_iou(boxes, truth)) * trained).sum()

    one_hot = torch.arange(raw.shape[-1] - 5, device=raw.device) == targets[..., :1]
    classes = one_hot.to(raw.dtype).repeat_interleave(per_truth, 1)
    class_losses = F.binary_cross_entropy_with_logits(chosen[..., 5:], classes, reduction="none")
    class_loss = (class_losses.sum(-1) * trained).sum()

    with torch.no_grad():
        none = raw.new_zeros(raw.shape[:2])
        objects = none.scatter_reduce(1, index, iou(boxes, truth) * trained, "amax")
        positive = none.scatter_reduce(1, index, trained, "amax") > 0
        overlapping = overlap_any(_boxes(raw, outputs.cells), truths, real, crowd)
        counted = (positive | ~overlapping) & mask[:, None]
    object_losses = F.binary_cross_entropy_with_logits(raw[..., 4], objects, reduction="none")
    object_loss = (object_losses * counted).sum()

    loss = BOX_WEIGHT * box_loss + OBJECT_WEIGHT * object_loss + CLASS_WEIGHT * class_loss
    return loss / trained.sum().clamp(min=1)


@torch.no_grad()
def overlap_any(boxes: Tensor, truths: Tensor, real: Tensor, crowd: Tensor) -> Tensor:
    """Return the boxes that count as found, bool [N, P].

    A box [N, P, 4] counts if its IoU with a real truth [N, M, 4] exceeds `IOU_THRESHOLD`, or if a larger
    share of its area than that lies in a crowd.
    """
    found = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for low in range(0, truths.shape[1], TRUTHS_AT_ONCE):
        part = slice(low, low + TRUTHS_AT_ONCE)
        shared = intersections(boxes[:, :, None], truths[:, None, part])
        own, other = areas(boxes)[:, :, None], areas(truths[:, part])[:, None]
        whole = torch.where(crowd[:, None, part], own, own + other - shared)
        found |= ((shared > IOU_THRESHOLD * whole) & real[:, None, part]).any(-1)
    return found


@torch.no_grad()
def _assign(outputs: AnchorOutputs, truths: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Which predictions the truths [N, M, 4] might train: truth by truth, the K anchors of all maps in the
    cell that holds its centre, or in the nearest one.

    Returns:
        Their places among the P predictions, int64 [N, M * K], and 1 for those that it does train, else 0,
        float32 [N, M * K].
    """
    per_cell = len(outputs.cells) // sum(rows * columns for rows, columns in outputs.maps)
    number = torch.arange(per_cell, device=truths.device)
    centres, sides = (truths[..., :2] + truths[..., 2:]) / 2, truths[..., 2:] - truths[..., :2]
    places, alike, start = [], [], 0
    for rows, columns in outputs.maps:
        first = outputs.cells[start : start + per_cell]
        column, row = (centres / first[0, 2]).long().unbind(-1)
        cell = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
        places.append(start + cell[..., None] * per_cell + number)
        shared = torch.minimum(sides[:, :, None], first[:, 3:]).prod(-1)
        alike.append(shared / (sides.prod(-1, keepdim=True) + first[:, 3:].prod(-1) - shared))
        start += rows * columns * per_cell
    shape_iou = torch.cat(alike, -1)
    best = shape_iou == shape_iou.amax(-1, keepdim=True)
    trained = (best | (shape_iou > IOU_THRESHOLD)) & real[..., None]
    return torch.cat(places, -1).flatten(1), trained.float().flatten(1)


def _boxes(raw: Tensor, cells: Tensor) -> Tensor:
    """[..., 4] from raw [..., 4 or more]. The centre may leave its cell by half of it, so that the cell's
    border needs no infinite value (Bochkovskiy et al. 2020, section 4.3, "grid sensitivity"); a side is 4
    times the anchor's at most, in place of an exponential (both as in YOLOv5)."""
    centre = (2 * raw[..., :2].sigmoid() - 0.5 + cells[..., :2]) * cells[..., 2:3]
    return from_centre(centre, (2 * raw[..., 2:4].sigmoid()).square() * cells[..., 3:5])
