"""Anchors by k-means over the boxes of a data set."""

from __future__ import annotations

import numpy as np

from fastcnn.data.targets import Boxes
from fastcnn.errors import UserError

MAX_BOXES = 20_000
"""Larger sets of boxes are sampled."""
STARTS = 8
"""Number of initializations; the best result is used."""
MAX_ROUNDS = 100
"""Maximum number of k-means iterations from one initialization."""


def box_sides(boxes: Boxes, sizes: np.ndarray, size: int) -> np.ndarray:
    """Return widths and heights [K, 2] of boxes in samples whose longer side is `size` pixels.

    Crowds and boxes of unreadable images are left out.

    Args:
        sizes: height and width of the images, [N, 2]; 0 if unreadable.
    """
    longest = np.repeat(sizes.max(axis=1), np.diff(boxes.first))
    counted = (longest > 0) & (boxes.values[:, 5] == 0)
    sides = boxes.values[counted, 3:5] - boxes.values[counted, 1:3]
    return sides * (size / longest[counted])[:, None]


def kmeans_anchors(sizes: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """Cluster boxes by k-means with the distance 1 - IoU.

    The IoU is that of boxes with one center (Redmon, Farhadi, "YOLO9000", CVPR 2017, section 2). The
    initialization is k-means++ (Arthur, Vassilvitskii 2007). The result is the best of all iterations: with
    this distance, means may be worse than the anchors before.

    Args:
        sizes: [K, 2] widths and heights in pixels, all positive.
        count: number of anchors; with fewer distinct boxes, some are equal.

    Returns:
        Anchors [count, 2], sorted by area, and the mean IoU of the boxes with their nearest anchors.

    Raises:
        UserError: no boxes.
    """
    if not len(sizes):
        raise UserError(
            "--anchors: no readable training image has boxes to find anchors for; correct images or labels"
        )
    rng = np.random.default_rng(seed)
    sizes = np.asarray(sizes, dtype=np.float64)
    if len(sizes) > MAX_BOXES:
        sizes = sizes[rng.choice(len(sizes), MAX_BOXES, replace=False)]
    results = [_kmeans(sizes, _scattered(sizes, count, rng)) for _ in range(STARTS)]
    anchors, score = max(results, key=lambda result: result[1])
    return anchors[np.argsort(anchors.prod(1), kind="stable")], score


def _kmeans(sizes: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, float]:
    best, best_score, nearest = anchors, -1.0, np.full(len(sizes), -1)
    for _ in range(MAX_ROUNDS):
        ious = shape_iou(sizes, anchors)
        before, nearest = nearest, ious.argmax(1)
        score = float(ious.max(1).mean())
        if score > best_score:
            best, best_score = anchors, score
        if (nearest == before).all():
            break
        members = np.bincount(nearest, minlength=len(anchors))
        sums = np.stack([np.bincount(nearest, axis, minlength=len(anchors)) for axis in sizes.T], axis=1)
        anchors = np.where(members[:, None] > 0, sums / members.clip(1)[:, None], anchors)
    return best, best_score


def shape_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU [K, L] of boxes with one center, from widths and heights [K, 2] and [L, 2]."""
    shared = np.minimum(a[:, None, 0], b[:, 0]) * np.minimum(a[:, None, 1], b[:, 1])
    return shared / (a.prod(1)[:, None] + b.prod(1) - shared)


def _scattered(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample `count` boxes by k-means++: with probabilities by the squared distance to earlier ones."""
    chosen = sizes[rng.integers(len(sizes))][None]
    distance = (1 - shape_iou(sizes, chosen)[:, 0]) ** 2
    while len(chosen) < count:
        total = distance.sum()
        next_one = rng.choice(len(sizes), p=distance / total if total > 0 else None)
        chosen = np.concatenate([chosen, sizes[next_one][None]])
        distance = np.minimum(distance, (1 - shape_iou(sizes, chosen[-1:])[:, 0]) ** 2)
    return chosen
