"""Loss of `YOLO`, and decoding of its outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.models.yolo import AnchorOutputs
from fastcnn.tasks.detection.boxes import areas, complete_iou, from_center, intersections, iou

BOX_WEIGHT, OBJECT_WEIGHT, CLASS_WEIGHT = 5.0, 1.0, 1.0
"""Weights of the three parts of the loss, as in the code of Ge et al., "YOLOX", 2021; the paper gives
none."""
IOU_THRESHOLD = 0.5
"""IoU of shapes above which an anchor is assigned to a truth besides the best one (Bochkovskiy et al.,
"YOLOv4", 2020, section 4.3), and IoU above which unassigned predictions are excluded from the objectness loss
(Redmon, Farhadi, "YOLOv3", 2018, section 2.1)."""
TRUTHS_PER_CHUNK = 16
"""Truths of each image that are compared with all predictions at once; limits the memory."""


def decode(outputs: AnchorOutputs) -> tuple[Tensor, Tensor]:
    """Return boxes [N, P, 4] in pixels, and scores [N, P, num_classes]: objectness times probability."""
    raw = outputs.raw.float()
    return _boxes(raw, outputs.cells), raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()


def anchor_loss(outputs: AnchorOutputs, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the box, objectness and class loss divided by the number of assigned predictions, a scalar.

    A truth is assigned to predictions of the cell with its center: to the anchor of the most similar shape,
    and to all anchors above `IOU_THRESHOLD`. A prediction with two truths has box and class losses for both,
    and the objectness target of the one with the larger overlap. Crowds are not assigned.

    Args:
        outputs: outputs for N images.
        targets: [N, M, 6], as in `fastcnn.data.batch.Batch`.
        mask: bool [N]; images with False are excluded.
    """
    raw, truths = outputs.raw.float(), targets[..., 1:5].float()
    real = (targets[..., 0] >= 0) & mask[:, None]
    crowd = targets[..., 5] > 0
    index, trained = _assign(outputs, truths, real & ~crowd)

    # Boxes and classes of the assigned predictions, [N, M * K, ...].
    chosen = raw.gather(1, index[..., None].expand(-1, -1, raw.shape[-1]))
    per_truth = index.shape[1] // truths.shape[1]
    boxes, truth = _boxes(chosen, outputs.cells[index]), truths.repeat_interleave(per_truth, 1)
    box_loss = ((1 - complete_iou(boxes, truth)) * trained).sum()

    one_hot = torch.arange(raw.shape[-1] - 5, device=raw.device) == targets[..., :1]
    classes = one_hot.to(raw.dtype).repeat_interleave(per_truth, 1)
    class_losses = F.binary_cross_entropy_with_logits(chosen[..., 5:], classes, reduction="none")
    class_loss = (class_losses.sum(-1) * trained).sum()

    # Objectness of all predictions, except unassigned ones that overlap a truth.
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
    """Return which boxes overlap a truth, bool [N, P].

    A box [N, P, 4] does if its IoU with a real truth [N, M, 4] exceeds `IOU_THRESHOLD`, or if a larger
    fraction of its area lies in a crowd.
    """
    overlapping = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for low in range(0, truths.shape[1], TRUTHS_PER_CHUNK):
        part = slice(low, low + TRUTHS_PER_CHUNK)
        shared = intersections(boxes[:, :, None], truths[:, None, part])
        own, other = areas(boxes)[:, :, None], areas(truths[:, part])[:, None]
        whole = torch.where(crowd[:, None, part], own, own + other - shared)
        overlapping |= ((shared > IOU_THRESHOLD * whole) & real[:, None, part]).any(-1)
    return overlapping


@torch.no_grad()
def _assign(outputs: AnchorOutputs, truths: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Assign predictions to the truths [N, M, 4].

    Candidates of a truth are the K anchors of all maps, in the cell with its center or the nearest one.

    Returns:
        Indices of the candidates among the P predictions, int64 [N, M * K], truth by truth; and 1 for
        assigned candidates, else 0, float32 [N, M * K].
    """
    per_cell = len(outputs.cells) // sum(rows * columns for rows, columns in outputs.maps)
    number = torch.arange(per_cell, device=truths.device)
    centers, sides = (truths[..., :2] + truths[..., 2:]) / 2, truths[..., 2:] - truths[..., :2]
    indices, similarities, start = [], [], 0
    for rows, columns in outputs.maps:
        first = outputs.cells[start : start + per_cell]
        column, row = (centers / first[0, 2]).long().unbind(-1)
        cell = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
        indices.append(start + cell[..., None] * per_cell + number)
        shared = torch.minimum(sides[:, :, None], first[:, 3:]).prod(-1)
        similarities.append(shared / (sides.prod(-1, keepdim=True) + first[:, 3:].prod(-1) - shared))
        start += rows * columns * per_cell
    shape_iou = torch.cat(similarities, -1)
    best = shape_iou == shape_iou.amax(-1, keepdim=True)
    trained = (best | (shape_iou > IOU_THRESHOLD)) & real[..., None]
    return torch.cat(indices, -1).flatten(1), trained.float().flatten(1)


def _boxes(raw: Tensor, cells: Tensor) -> Tensor:
    """Decode boxes [..., 4] from raw [..., 4 or more].

    The center may be up to half a cell outside of its cell, so that the border of the cell is at a finite
    value (Bochkovskiy et al. 2020, section 4.3, "grid sensitivity"). A side is at most 4 times that of the
    anchor, instead of an exponential. Both are as in YOLOv5.
    """
    center = (2 * raw[..., :2].sigmoid() - 0.5 + cells[..., :2]) * cells[..., 2:3]
    return from_center(center, (2 * raw[..., 2:4].sigmoid()).square() * cells[..., 3:5])
