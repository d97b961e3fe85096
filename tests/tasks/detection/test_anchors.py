"""Anchors found by k-means."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from fastcnn.data.targets import Boxes
from fastcnn.errors import UserError
from fastcnn.tasks.detection.anchors import box_sides, kmeans_anchors, shape_iou

CLUSTERS = np.array([[8.0, 10.0], [40.0, 20.0], [90.0, 120.0]])


def around_clusters(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return CLUSTERS[rng.integers(3, size=count)] * rng.uniform(0.9, 1.1, (count, 2))


def test_clusters_are_found_whatever_the_seed():
    for seed in range(5):
        anchors, score = kmeans_anchors(around_clusters(3000), 3, seed)
        np.testing.assert_allclose(anchors, CLUSTERS, rtol=0.02)
        assert score == pytest.approx(shape_iou(around_clusters(3000), anchors).max(1).mean())
        assert score > 0.9


def test_more_anchors_fit_better_and_come_sorted_by_area():
    sizes = np.random.default_rng(0).uniform(5, 200, (2000, 2))
    scores = []
    for count in (1, 3, 9):
        anchors, score = kmeans_anchors(sizes, count)
        assert anchors.shape == (count, 2)
        assert (np.diff(anchors.prod(1)) >= 0).all()
        scores.append(score)
    assert scores == sorted(scores)
    random = max(shape_iou(sizes, sizes[i : i + 9]).max(1).mean() for i in range(0, 900, 9))
    assert scores[-1] > random


def test_the_same_seed_gives_the_same_anchors():
    sizes = around_clusters(500)
    (first, _), (again, _) = kmeans_anchors(sizes, 9, seed=3), kmeans_anchors(sizes, 9, seed=3)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("distinct", [1, 2, 8])
def test_fewer_distinct_boxes_than_anchors_are_all_found(distinct):
    sizes = np.repeat(np.arange(1.0, 1 + 2 * distinct).reshape(-1, 2) * 7, 4, axis=0)
    anchors, score = kmeans_anchors(sizes, 9)
    assert anchors.shape == (9, 2)
    assert {tuple(size) for size in sizes} == {tuple(anchor) for anchor in anchors}
    assert score == 1


def test_a_million_boxes_take_seconds():
    start = time.perf_counter()
    anchors, _ = kmeans_anchors(around_clusters(1_000_000), 3)
    assert time.perf_counter() - start < 20
    np.testing.assert_allclose(anchors, CLUSTERS, rtol=0.02)


def test_no_boxes_is_the_user_s_mistake():
    with pytest.raises(UserError, match="--anchors"):
        kmeans_anchors(np.zeros((0, 2)), 9)


def test_no_torch_is_needed():
    code = "import sys, fastcnn.tasks.detection.anchors; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_sides_are_those_in_samples_without_crowds_and_unreadable_images():
    boxes = Boxes.of_images(
        [
            np.array([[0, 0, 0, 20, 10, 0], [1, 5, 5, 6, 6, 1]]),
            np.array([[0, 0, 0, 0, 0, 0]]),
            np.zeros((0, 6)),
        ]
    )
    sides = box_sides(boxes, np.array([[100, 200], [0, 0], [9, 9]]), 50)
    np.testing.assert_array_equal(sides, [[5, 2.5]])
