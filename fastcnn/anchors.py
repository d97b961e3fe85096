"""Anchors of a data set: the shapes that its boxes cluster around."""

from __future__ import annotations

import numpy as np

from fastcnn.errors import UserError

BOXES_AT_MOST = 100_000
"""More are sampled."""
ROUNDS = 100
"""Of k-means, at most."""


def kmeans_anchors(sizes: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """k-means with 1 - IoU as the distance, of boxes in one place (Redmon, Farhadi, "YOLO9000", CVPR 2017,
    section 2). Clusters start far from one another (Arthur, Vassilvitskii, "k-means++", 2007); the best ones
    of all rounds are taken, since in this distance a mean need not be the nearest.

    Args:
        sizes: [K, 2] widths and heights in pixels, all positive.
        count: anchors; where there are fewer distinct boxes, some are alike.

    Returns:
        Anchors [count, 2], sorted by area, and the mean IoU of a box with the nearest.

    Raises:
        UserError: no boxes.
    """
    if not len(sizes):
        raise UserError("--anchors: there are no boxes to find anchors for; write width and height of each")
    rng = np.random.default_rng(seed)
    sizes = np.asarray(sizes, dtype=np.float64)
    if len(sizes) > BOXES_AT_MOST:
        sizes = sizes[rng.choice(len(sizes), BOXES_AT_MOST, replace=False)]
    anchors = _scattered(sizes, count, rng)
    best, best_score, nearest = anchors, -1.0, np.full(len(sizes), -1)
    for _ in range(ROUNDS):
        ious = shape_iou(sizes, anchors)
        before, nearest = nearest, ious.argmax(1)
        score = float(ious.max(1).mean())
        if score > best_score:
            best, best_score = anchors, score
        if (nearest == before).all():
            break
        members = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, axis, minlength=count) for axis in sizes.T], axis=1)
        anchors = np.where(members[:, None] > 0, sums / members.clip(1)[:, None], anchors)
    return best[np.argsort(best.prod(1), kind="stable")], best_score


def shape_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[K, 2] and [L, 2] widths and heights to the IoU [K, L] of such boxes with one centre."""
    shared = np.minimum(a[:, None, 0], b[:, 0]) * np.minimum(a[:, None, 1], b[:, 1])
    return shared / (a.prod(1)[:, None] + b.prod(1) - shared)


def _scattered(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the boxes, each chosen by its distance from those before it."""
    chosen = sizes[rng.integers(len(sizes))][None]
    distance = 1 - shape_iou(sizes, chosen)[:, 0]
    while len(chosen) < count:
        total = distance.sum()
        next_one = rng.choice(len(sizes), p=distance / total if total > 0 else None)
        chosen = np.concatenate([chosen, sizes[next_one][None]])
        distance = np.minimum(distance, 1 - shape_iou(sizes, chosen[-1:])[:, 0])
    return chosen
