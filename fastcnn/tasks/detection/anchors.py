"""Anchors of a data set: the shapes that its boxes cluster around."""

from __future__ import annotations

import numpy as np

from fastcnn.errors import UserError

BOXES_AT_MOST = 20_000
"""More are sampled."""
STARTS = 8
"""From different boxes, of which the best result is taken."""
ROUNDS = 100
"""Of k-means from one start, at most."""


def kmeans_anchors(sizes: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """k-means with 1 - IoU as the distance, of boxes in one place (Redmon, Farhadi, "YOLO9000", CVPR 2017,
    section 2). Clusters start far from one another (Arthur, Vassilvitskii, "k-means++", 2007). The best ones
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
    found = [_kmeans(sizes, _scattered(sizes, count, rng)) for _ in range(STARTS)]
    anchors, score = max(found, key=lambda result: result[1])
    return anchors[np.argsort(anchors.prod(1), kind="stable")], score


def _kmeans(sizes: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, float]:
    best, best_score, nearest = anchors, -1.0, np.full(len(sizes), -1)
    for _ in range(ROUNDS):
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
    """[K, 2] and [L, 2] widths and heights to the IoU [K, L] of such boxes with one centre."""
    shared = np.minimum(a[:, None, 0], b[:, 0]) * np.minimum(a[:, None, 1], b[:, 1])
    return shared / (a.prod(1)[:, None] + b.prod(1) - shared)


def _scattered(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the boxes, each chosen at random by its squared distance from those before it."""
    chosen = sizes[rng.integers(len(sizes))][None]
    distance = (1 - shape_iou(sizes, chosen)[:, 0]) ** 2
    while len(chosen) < count:
        total = distance.sum()
        next_one = rng.choice(len(sizes), p=distance / total if total > 0 else None)
        chosen = np.concatenate([chosen, sizes[next_one][None]])
        distance = np.minimum(distance, (1 - shape_iou(sizes, chosen[-1:])[:, 0]) ** 2)
    return chosen
