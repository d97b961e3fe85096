"""Non-maximum suppression with outputs of a fixed size, for exported detectors.

`fixed_boxes` returns the boxes of `fastcnn.tasks.detection.task.best_boxes`, padded with zeros. The
suppression itself is torchvision's operator in programs of torch, and NonMaxSuppression in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from fastcnn.tasks.detection.task import CANDIDATES, DUPLICATE_IOU, MAX_BOXES, MIN_SCORE, FixedBoxes

Suppress = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Boxes [N, K, 4], scores [N, K] in descending order, labels [N, K], number of classes -> kept ones, bool
[N, K]."""


def fixed_boxes(boxes: Tensor, scores: Tensor, size: tuple[int, int], suppress: Suppress) -> FixedBoxes:
    """Return the best boxes after non-maximum suppression, clipped to the image.

    Args:
        boxes: [N, Q, 4] in pixels.
        scores: [N, Q, num_classes].
        size: height and width of the images.
    """
    per_image, num_classes = scores.shape[1:]
    best, pair = scores.flatten(1).topk(min(CANDIDATES, per_image * num_classes))
    labels = pair % num_classes
    candidates = boxes.gather(1, (pair // num_classes)[..., None].expand(-1, -1, 4))
    height, width = size
    sides = [candidates[..., i].clamp(0, (width, height)[i % 2]) for i in range(4)]
    candidates = torch.stack(sides, -1)

    kept = suppress(candidates, best, labels, num_classes) & (best > MIN_SCORE)
    kept_scores, order = torch.where(kept, best, 0).topk(min(MAX_BOXES, best.shape[1]))
    real = kept_scores > 0
    rows = candidates.gather(1, order[..., None].expand(-1, -1, 4)) * real[..., None]
    missing = MAX_BOXES - kept_scores.shape[1]
    return FixedBoxes(
        F.pad(rows, (0, 0, 0, missing)),
        F.pad(kept_scores, (0, missing)),
        F.pad(labels.gather(1, order) * real, (0, missing)),
        real.sum(1),
    )


def suppress_torch(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Suppress by torchvision's operator, in one call for all images and classes.

    Offsets keep boxes of different images and classes apart; in float64 they lose no digits.
    """
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    offsets = (image * num_classes + labels).double() * (boxes.amax().double() + 1)
    apart = (boxes.double() + offsets[..., None]).flatten(0, 1)
    kept = nms(apart, scores.double().flatten(), DUPLICATE_IOU)
    return torch.zeros_like(scores).flatten().index_fill(0, kept, 1).view_as(scores) > 0
