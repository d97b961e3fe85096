"""The loss of `YOLO` against loops over images, truths and anchors; boxes from outputs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, complete_box_iou_loss

import random_boxes
from fastcnn.models.yolo import AnchorOutputs, cells_of
from fastcnn.tasks.detection import anchor_loss
from fastcnn.tasks.detection.anchor_loss import decode
from networks import each

MAPS, STRIDES = ((6, 9), (3, 5)), (8, 16)  # of images of 48 x 72; the coarse map reaches further
ANCHORS = torch.tensor([[[6.0, 9], [14, 10]], [[18, 30], [40, 28]]])
CLASSES = 3


def random_outputs(seed: int, count: int = 3, scale: float = 1.5) -> AnchorOutputs:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cat([cells_of(*MAPS[i], STRIDES[i], ANCHORS[i]) for i in (0, 1)])
    raw = scale * torch.randn(count, len(cells), 5 + CLASSES, generator=generator)
    return AnchorOutputs(raw, cells, MAPS, (48, 72))


def random_targets(seed: int, count: int = 3, most: int = 19, crowds: float = 0.2) -> Tensor:
    """Small sides, so that cells are shared."""
    return random_boxes.random_targets(seed, count, 1, most, CLASSES, crowds)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def decoded(raw: list[float], cell: list[float]) -> list[float]:
    column, row, stride, width, height = cell
    x, y = ((2 * sigmoid(value) - 0.5 + place) * stride for value, place in zip(raw, (column, row)))
    w, h = ((2 * sigmoid(value)) ** 2 * side for value, side in zip(raw[2:4], (width, height)))
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def shape_iou(a: list[float], b: list[float]) -> float:
    shared = min(a[0], b[0]) * min(a[1], b[1])
    return shared / (a[0] * a[1] + b[0] * b[1] - shared)


def slow_loss(outputs: AnchorOutputs, targets: Tensor, mask: Tensor) -> float:
    """By the definition, prediction by prediction."""
    cells, box_loss, class_loss, object_loss, trained = outputs.cells.tolist(), 0.0, 0.0, 0.0, 0
    ends = {tuple(cell[2:]): [0, 0] for cell in cells}  # the last column and row of each anchor's map
    for cell in cells:
        end = ends[tuple(cell[2:])]
        end[:] = [max(end[0], int(cell[0])), max(end[1], int(cell[1]))]
    for n in range(len(targets)):
        if not mask[n]:
            continue
        truths = [row for row in targets[n].tolist() if row[0] >= 0]
        raw = outputs.raw[n].tolist()
        boxes = torch.tensor([decoded(raw[p], cells[p]) for p in range(len(cells))])
        objects: dict[int, float] = {}
        for label, left, top, right, bottom, crowd in truths:
            if crowd:
                continue
            side, box = [right - left, bottom - top], torch.tensor([[left, top, right, bottom]])
            fits = {key: shape_iou(side, list(key[1:])) for key in ends}
            for key, fit in fits.items():
                if fit < max(fits.values()) and fit <= 0.5:
                    continue
                column = min(int((left + right) / 2 // key[0]), ends[key][0])
                row = min(int((top + bottom) / 2 // key[0]), ends[key][1])
                p = cells.index([column, row, *key])
                trained += 1
                box_loss += complete_box_iou_loss(boxes[p : p + 1], box).item()
                one_hot = [1.0 if label == i else 0.0 for i in range(CLASSES)]
                for value, target in zip(raw[p][5:], one_hot):
                    class_loss -= math.log(sigmoid(value if target else -value))
                objects[p] = max(objects.get(p, 0.0), box_iou(boxes[p : p + 1], box).item())
        for p in range(len(cells)):
            ignored = False
            for _, *corners, crowd in truths:
                box = torch.tensor([corners])
                low, high = torch.maximum(boxes[p, :2], box[0, :2]), torch.minimum(boxes[p, 2:], box[0, 2:])
                shared = (high - low).clamp(min=0).prod()
                share = shared / (boxes[p, 2:] - boxes[p, :2]).prod()
                ignored |= bool((share if crowd else box_iou(boxes[p : p + 1], box)) > 0.5)
            if p in objects or not ignored:
                objectness = torch.tensor([raw[p][4], objects.get(p, 0.0)])
                object_loss += F.binary_cross_entropy_with_logits(*objectness).item()
    return (5 * box_loss + object_loss + class_loss) / max(trained, 1)


@pytest.mark.parametrize("seed", each(range(6), range(3)))
def test_the_loss_is_the_one_that_is_defined(seed):
    outputs, targets = random_outputs(seed), random_targets(seed)
    mask = torch.tensor([True, True, seed % 2 == 0])
    loss = anchor_loss.anchor_loss(outputs, targets, mask)
    assert loss.item() == pytest.approx(slow_loss(outputs, targets, mask), rel=1e-4)


def test_predictions_that_overlap_are_left_out(monkeypatch):
    """Else the comparison with the slow loss would not notice."""
    outputs, targets = random_outputs(0, scale=0.3), random_targets(0)
    mask = torch.ones(3, dtype=torch.bool)
    loss = anchor_loss.anchor_loss(outputs, targets, mask).item()
    assert loss == pytest.approx(slow_loss(outputs, targets, mask), rel=1e-4)
    monkeypatch.setattr(anchor_loss, "overlap_any", lambda boxes, *_: torch.zeros(boxes.shape[:2]) > 0)
    assert anchor_loss.anchor_loss(outputs, targets, mask).item() > loss + 0.01


@pytest.mark.parametrize("rows", [1, 5])
def test_without_boxes_all_predictions_learn_that_there_is_nothing(rows):
    outputs = random_outputs(0)
    targets = torch.zeros(3, rows, 6)
    targets[..., 0] = -1
    mask = torch.tensor([True, False, True])
    expected = F.softplus(outputs.raw[mask][..., 4]).sum()
    torch.testing.assert_close(anchor_loss.anchor_loss(outputs, targets, mask), expected)


def test_masked_images_and_crowds_do_not_train():
    outputs, targets = random_outputs(1), random_targets(1, crowds=0)
    raw, all_real = outputs.raw.requires_grad_(), torch.ones(3, dtype=torch.bool)

    def gradient(targets: Tensor, mask: Tensor = all_real) -> Tensor:
        return torch.autograd.grad(anchor_loss.anchor_loss(outputs, targets, mask), raw)[0].abs()

    masked = gradient(targets, torch.tensor([True, False, True]))
    assert (masked.sum((1, 2)) > 0).tolist() == [True, False, True]
    targets[..., 5] = 1
    of_crowds = gradient(targets)
    assert of_crowds[..., 4].sum() > 0
    assert of_crowds.sum() == of_crowds[..., 4].sum()
    covering = torch.tensor([0.0, -500, -500, 500, 500, 1]).expand(3, 1, 6)
    assert gradient(covering).sum() == 0


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_gradients_are_finite(scale):
    outputs, targets = random_outputs(2, scale=scale), random_targets(2)
    targets[2, 0] = torch.tensor([1, 72, 48, 72, 48, 0])  # without area, past the last cell
    outputs.raw.requires_grad_()
    loss = anchor_loss.anchor_loss(outputs, targets, torch.ones(3, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite()
    assert outputs.raw.grad is not None
    assert outputs.raw.grad.isfinite().all()


def test_the_loss_is_in_float32_whatever_the_outputs_are():
    outputs, targets = random_outputs(3), random_targets(3)
    mask = torch.ones(3, dtype=torch.bool)
    half = outputs._replace(raw=outputs.raw.bfloat16())
    exact = anchor_loss.anchor_loss(half._replace(raw=half.raw.float()), targets, mask)
    assert torch.equal(anchor_loss.anchor_loss(half, targets, mask), exact)
    boxes, scores = decode(half)
    assert boxes.dtype == scores.dtype == torch.float32


def test_outputs_that_are_made_from_truths_decode_to_them_and_have_no_box_loss():
    """The inverse of `decode`, put where the truth's centre is."""
    targets = random_targets(4, crowds=0)
    outputs = random_outputs(4)
    outputs.raw[..., 4] = -20
    trained = []
    for n in (1, 2):
        row = targets[n, 0]
        targets[n, 1:, 0] = -1
        centre, sides = (row[1:3] + row[3:5]) / 2, row[3:5] - row[1:3]
        for p in range(len(outputs.cells)):
            cell = outputs.cells[p]
            offset, shape = centre / cell[2] - cell[:2], (sides / cell[3:]).sqrt()
            fit = shape_iou(sides.tolist(), cell[3:].tolist())
            if not ((offset >= 0) & (offset < 1)).all() or fit < 0.3:
                continue
            outputs.raw[n, p, :2] = torch.logit((offset + 0.5) / 2)
            outputs.raw[n, p, 2:4] = torch.logit(shape / 2)
            outputs.raw[n, p, 4] = 20
            outputs.raw[n, p, 5:] = torch.where(torch.arange(CLASSES) == row[0], 20.0, -20.0)
            trained.append((n, p))
    boxes, scores = decode(outputs)
    assert len(trained) >= 2
    for n, p in trained:
        torch.testing.assert_close(boxes[n, p], targets[n, 0, 1:5], rtol=1e-4, atol=1e-3)
        assert scores[n, p].argmax() == targets[n, 0, 0]
    assert (scores.amax(-1) > 0.9).sum() == len(trained)
    loss = anchor_loss.anchor_loss(outputs, targets, torch.ones(3, dtype=torch.bool))
    assert loss.item() < 1e-2
