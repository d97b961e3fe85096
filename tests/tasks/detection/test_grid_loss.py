"""The loss of `YOLOv1` against loops over images, cells and boxes; boxes from outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

import random_boxes
from fastcnn.models.yolo import GridOutputs
from fastcnn.tasks.detection.grid_loss import decode, grid_loss

GRID, BOXES, CLASSES, HEIGHT, WIDTH = 4, 2, 3, 48, 72


def random_outputs(seed: int, count: int = 3) -> GridOutputs:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, GRID, GRID, BOXES * 5 + CLASSES, generator=generator) * 0.5 + 0.4
    return GridOutputs(raw, (HEIGHT, WIDTH))


def random_targets(seed: int, count: int = 3, most: int = 9, crowds: float = 0.3) -> Tensor:
    """Some cells hold several."""
    return random_boxes.random_targets(seed, count, 2, most, CLASSES, crowds)


def box_of(raw: list[float], row: int, column: int) -> list[float]:
    x, y = (column + raw[0]) * WIDTH / GRID, (row + raw[1]) * HEIGHT / GRID
    w, h = raw[2] ** 2 * WIDTH, raw[3] ** 2 * HEIGHT
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def share_within(box: list[float], crowd: list[float]) -> float:
    wide = max(0.0, min(box[2], crowd[2]) - max(box[0], crowd[0]))
    high = max(0.0, min(box[3], crowd[3]) - max(box[1], crowd[1]))
    return wide * high / ((box[2] - box[0]) * (box[3] - box[1]))


def slow_loss(outputs: GridOutputs, targets: Tensor, mask: Tensor) -> float:
    """Equation 3, cell by cell."""
    total = 0.0
    for n in range(len(targets)):
        if not mask[n]:
            continue
        rows = [row for row in targets[n].tolist() if row[0] >= 0]
        for i in range(GRID):
            for j in range(GRID):
                raw = outputs.raw[n, i, j].tolist()
                guesses = [raw[5 * b : 5 * b + 5] for b in range(BOXES)]
                boxes = [box_of(guess, i, j) for guess in guesses]
                holder = None
                for label, left, top, right, bottom, crowd in rows:
                    column = min(int((left + right) / 2 / (WIDTH / GRID)), GRID - 1)
                    row = min(int((top + bottom) / 2 / (HEIGHT / GRID)), GRID - 1)
                    if not crowd and (row, column) == (i, j) and holder is None:
                        holder = (label, [left, top, right, bottom])
                responsible, overlap = -1, 0.0
                if holder is not None:
                    label, truth = holder
                    overlaps = box_iou(torch.tensor(boxes), torch.tensor([truth]))[:, 0].tolist()
                    responsible, overlap = overlaps.index(max(overlaps)), max(overlaps)
                    x, y, w, h, _ = guesses[responsible]
                    total += 5 * (x - ((truth[0] + truth[2]) / 2 / (WIDTH / GRID) - j)) ** 2
                    total += 5 * (y - ((truth[1] + truth[3]) / 2 / (HEIGHT / GRID) - i)) ** 2
                    total += 5 * (w - math.sqrt((truth[2] - truth[0]) / WIDTH)) ** 2
                    total += 5 * (h - math.sqrt((truth[3] - truth[1]) / HEIGHT)) ** 2
                    for c in range(CLASSES):
                        total += (raw[5 * BOXES + c] - (1 if c == label else 0)) ** 2
                for b in range(BOXES):
                    if b == responsible:
                        total += (guesses[b][4] - overlap) ** 2
                    elif not any(crowd and share_within(boxes[b], box) > 0.5 for _, *box, crowd in rows):
                        total += 0.5 * guesses[b][4] ** 2
    return total / max(int(mask.sum()), 1)


@pytest.mark.parametrize("seed", range(8))
def test_the_loss_is_equation_3(seed):
    outputs, targets = random_outputs(seed), random_targets(seed)
    mask = torch.tensor([True, True, seed % 2 == 0])
    loss = grid_loss(outputs, targets, mask, CLASSES)
    assert loss.item() == pytest.approx(slow_loss(outputs, targets, mask), rel=1e-4)


def test_without_boxes_all_learn_that_there_is_nothing():
    outputs, targets = random_outputs(0), random_targets(0)
    targets[..., 0] = -1
    confidence = outputs.raw[..., : BOXES * 5].unflatten(-1, (BOXES, 5))[..., 4]
    expected = 0.5 * confidence.square().sum() / 3
    torch.testing.assert_close(
        grid_loss(outputs, targets, torch.ones(3, dtype=torch.bool), CLASSES), expected
    )
    assert grid_loss(outputs, targets, torch.zeros(3, dtype=torch.bool), CLASSES) == 0


def test_masked_images_do_not_train_and_gradients_are_finite():
    outputs, targets = random_outputs(1), random_targets(1)
    targets[2, 0] = torch.tensor([1, WIDTH, HEIGHT, WIDTH, HEIGHT, 0])  # without area, past the last cell
    raw = outputs.raw.requires_grad_()
    grid_loss(outputs, targets, torch.tensor([True, False, True]), CLASSES).backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert (raw.grad.abs().sum((1, 2, 3)) > 0).tolist() == [True, False, True]


def test_outputs_that_are_made_from_truths_decode_to_them_and_have_no_loss():
    truths = [(2, 0, 1, [20.0, 3, 30, 12]), (0, 2, 3, [50.0, 20, 72, 48]), (1, 2, 0, [0.0, 20, 30, 36])]
    outputs = GridOutputs(torch.zeros(1, GRID, GRID, BOXES * 5 + CLASSES), (HEIGHT, WIDTH))
    targets = torch.zeros(1, 4, 6)
    targets[..., 0] = -1
    for m, (label, row, column, (left, top, right, bottom)) in enumerate(truths):
        targets[0, m] = torch.tensor([label, left, top, right, bottom, 0])
        x, y = (left + right) / 2 / (WIDTH / GRID), (top + bottom) / 2 / (HEIGHT / GRID)
        assert (int(y), int(x)) == (row, column)
        cell = outputs.raw[0, row, column]
        sides = [math.sqrt((right - left) / WIDTH), math.sqrt((bottom - top) / HEIGHT)]
        cell[5:10] = torch.tensor([x - column, y - row, *sides, 1])  # the second box
        cell[10 + label] = 1
    boxes, scores = decode(outputs, CLASSES)
    assert boxes.shape == (1, GRID * GRID * BOXES, 4)
    found = [
        (int(scores[0, q].argmax()), boxes[0, q].tolist()) for q in range(32) if scores[0, q].max() > 0.9
    ]
    expected = sorted((label, box) for label, _, _, box in truths)
    assert [label for label, _ in sorted(found)] == [label for label, _ in expected]
    for (_, box), (_, truth) in zip(sorted(found), expected):
        assert box == pytest.approx(truth, abs=1e-3)
    assert grid_loss(outputs, targets, torch.ones(1, dtype=torch.bool), CLASSES).item() < 1e-6


def test_scores_are_products_of_numbers_from_0_to_1():
    outputs = random_outputs(3)
    outputs.raw[..., 4], outputs.raw[..., -1] = -0.5, -0.5
    _, scores = decode(outputs, CLASSES)
    assert 0 <= scores.min() < scores.max() <= 1
    assert scores[..., -1].max() == 0
