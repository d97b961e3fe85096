"""Boxes of a fixed size are those of the detection task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcnn.exporter.suppression import fixed_boxes, suppress_torch
from fastcnn.tasks.detection.task import Detection, best_boxes


@pytest.mark.parametrize("count", [7, 400])
def test_the_boxes_are_those_of_the_task(count):
    """With few predictions the rows are padded, with many of them candidates are cut."""
    torch.manual_seed(0)
    corners = torch.rand(3, count, 2) * 50
    boxes = torch.cat([corners - 5, corners + 5 + torch.rand(3, count, 2) * 20], -1)
    scores = torch.rand(3, count, 4) ** 4
    scores[1] = 0  # an image without boxes
    expected = best_boxes(boxes, scores, (64, 48))
    found = fixed_boxes(boxes, scores, (64, 48), suppress_torch)
    assert [tuple(part.shape) for part in found] == [(3, 100, 4), (3, 100), (3, 100), (3,)]
    assert found.counts.tolist() == [len(rows) for rows in expected]
    assert found.counts[1] == 0
    for rows, others in zip(Detection(4).predict(found), expected, strict=True):
        np.testing.assert_array_equal(rows, others)
