"""The loss and the metrics of segmentation, against slow and obvious ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcnn.config import LossSettings
from fastcnn.data.batch import Batch
from fastcnn.data.targets import IGNORE
from fastcnn.errors import UserError
from fastcnn.tasks.build import build_task
from fastcnn.tasks.segmentation import Segmentation

sklearn_metrics = pytest.importorskip("sklearn.metrics")
CPU = torch.device("cpu")
CLASSES = 5


def case(seed: int, size: int = 6, out: int | None = None) -> tuple[Tensor, Batch]:
    """Random logits and a batch of 3, of which some pixels, classes and maybe a sample do not count."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, CLASSES, out or size, out or size, generator=rng)
    shown = torch.randint(1, CLASSES + 1, (), generator=rng).item()
    targets = torch.randint(0, int(shown), (3, size, size), generator=rng, dtype=torch.uint8)
    targets[torch.rand(targets.shape, generator=rng) < 0.2] = IGNORE
    mask = torch.tensor([True, True, bool(seed % 2)])
    return logits, Batch(torch.zeros(3, 3, size, size, dtype=torch.uint8), targets, mask)


def pixels(logits: Tensor, batch: Batch) -> list[tuple[list[float], int]]:
    """Probabilities and class of each pixel that counts, one after the other."""
    shift = (batch.targets.shape[1] - logits.shape[2]) // 2
    found = []
    for n in range(len(logits)):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                target = int(batch.targets[n, y + shift, x + shift])
                if batch.mask[n] and target != IGNORE:
                    powers = [math.exp(v) for v in logits[n, :, y, x].tolist()]
                    found.append(([p / sum(powers) for p in powers], target))
    return found


def slow_cross_entropy(counted: list[tuple[list[float], int]], weights: list[float]) -> float:
    total = sum(-weights[target] * math.log(p[target]) for p, target in counted)
    return total / sum(weights[target] for _, target in counted)


def slow_dice(counted: list[tuple[list[float], int]]) -> float:
    losses = []
    for c in range(CLASSES):
        truth = [float(target == c) for _, target in counted]
        if any(truth):
            found = [p[c] for p, _ in counted]
            common = sum(f * t for f, t in zip(found, truth))
            losses.append(1 - 2 * common / (sum(found) + sum(truth)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5, 3.0, 0.1)])
@pytest.mark.parametrize("out", [6, 4], ids=["whole", "valid convolutions"])
def test_losses_are_their_definitions(seed, weights, out):
    logits, batch = case(seed, out=out)
    counted = pixels(logits, batch)
    crossed = slow_cross_entropy(counted, list(weights or [1.0] * CLASSES))
    expected = {"ce": crossed, "dice": slow_dice(counted), "ce-dice": crossed + slow_dice(counted)}
    for kind, value in expected.items():
        loss = Segmentation(CLASSES, kind, weights).loss(logits, batch, train=True)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_metrics_are_sklearns_over_several_batches(seed):
    metrics = Segmentation(CLASSES).metrics(CPU, train=False)
    truth: list[int] = []
    found: list[int] = []
    for part in range(3):
        logits, batch = case(100 * seed + part)
        metrics.update(torch.tensor(2.0), logits, batch)
        counted = pixels(logits, batch)
        truth += [target for _, target in counted]
        found += [int(np.argmax(p)) for p, _ in counted]
    result = metrics.compute()
    assert result["miou"] == pytest.approx(100 * sklearn_metrics.jaccard_score(truth, found, average="macro"))
    assert result["dice"] == pytest.approx(100 * sklearn_metrics.f1_score(truth, found, average="macro"))
    assert result["pixel_acc"] == pytest.approx(100 * sklearn_metrics.accuracy_score(truth, found))
    assert result["loss"] == pytest.approx(2.0)
    assert result["samples"] == sum(2 + (100 * seed + part) % 2 for part in range(3))


def test_sums_of_two_ranks_are_those_of_one():
    task = Segmentation(CLASSES)
    whole, first, second = (task.metrics(CPU) for _ in range(3))
    for part, metrics in ((0, first), (1, second)):
        logits, batch = case(part)
        for each in (whole, metrics):
            each.update(task.loss(logits, batch, train=False), logits, batch)
    first.add(second.state())
    assert first.compute() == whole.compute()
    first.reset()
    assert first.compute()["samples"] == 0


def test_a_batch_without_a_pixel_that_counts_has_no_loss_and_no_gradient():
    logits, batch = case(0)
    logits.requires_grad_()
    batch.targets.fill_(IGNORE)
    task = Segmentation(CLASSES)
    loss = task.loss(logits, batch, train=True)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    metrics = task.metrics(CPU)
    metrics.update(loss, logits, batch)
    assert metrics.compute()["miou"] == 0


def test_weights_are_one_for_each_class(wording):
    with pytest.raises(UserError, match="^--class-weights:") as caught:
        build_task("unet", LossSettings(class_weights=(1.0, 2.0)), CLASSES)
    wording(caught.value)


def test_predictions_are_class_numbers_and_said_in_shares():
    task = Segmentation(3)
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2, 0, 0] = logits[0, 1, 1] = 1
    (found,) = task.predict(logits)
    assert found.tolist() == [[2, 0], [0, 0]] or found.dtype == np.uint8
    assert (
        task.format_prediction(np.array([[2, 0], [1, 1]]), ("ground", "cat", "dog"))
        == "cat 50.0%, ground 25.0%, dog 25.0%"
    )
