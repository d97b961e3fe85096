"""Boxes against formulas for two of them."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou, complete_box_iou_loss

from fastcnn.tasks.detection import boxes


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(2, count, 2, generator=generator) * 50
    return torch.cat([corner, corner + sides + 0.5], 1)


def complete_iou_of_two(a: list[float], b: list[float]) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    overlap = wide * high / union
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return overlap - distance / diagonal - (v / (1 - overlap + v) * v if v else 0)


def test_complete_iou_is_that_of_the_paper_and_of_torchvision():
    a, b = random_boxes(200, 0), random_boxes(200, 1)
    expected = [complete_iou_of_two(x, y) for x, y in zip(a.tolist(), b.tolist())]
    assert boxes.complete_iou(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    mine, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    (1 - boxes.complete_iou(mine, b)).sum().backward()
    complete_box_iou_loss(theirs, b, reduction="sum").backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_a_box_is_wholly_itself():
    a = random_boxes(20, 0)
    torch.testing.assert_close(boxes.complete_iou(a, a), torch.ones(20))
    torch.testing.assert_close(boxes.iou(a[:, None], a), box_iou(a, a))


def test_boxes_without_area_have_finite_values_and_gradients():
    a = torch.tensor([[5.0, 5, 5, 5], [5, 5, 9, 5], [0, 0, 0, 0]], requires_grad=True)
    for b in (torch.zeros(4), torch.tensor([5.0, 5, 5, 5]), torch.tensor([0.0, 0, 20, 20])):
        values = boxes.complete_iou(a, b)
        (gradient,) = torch.autograd.grad(values.sum(), a)
        assert values.isfinite().all()
        assert gradient.isfinite().all()


def test_centre_and_sides_are_a_box():
    box = boxes.from_center(torch.tensor([10.0, 20]), torch.tensor([4.0, 6]))
    assert box.tolist() == [8, 17, 12, 23]
    assert boxes.areas(box).item() == 24
