"""Metrics, predictions and drawings of several labels an image, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.tasks.multilabel import LabelCounts, MultiLabelClassification, mean_average_precision
from ranks import run_ranks

metrics = pytest.importorskip("sklearn.metrics")
CPU = torch.device("cpu")
CLASSES = 6


def scored(count: int, seed: int, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Random logits and targets; some classes have no label."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, CLASSES, generator=rng)
    targets = (torch.rand(count, CLASSES, generator=rng) < torch.linspace(0, 0.6, CLASSES)).to(torch.uint8)
    logits += targets * torch.rand(CLASSES, generator=rng)
    return (logits * 2).round() / 2 if ties else logits, targets


def batches(logits: Tensor, targets: Tensor, size: int = 16) -> list[tuple[Tensor, Batch]]:
    """The samples in batches, the last of which is padded by other samples."""
    found = []
    for first in range(0, len(logits), size):
        index = (torch.arange(first, first + size)) % len(logits)
        real = torch.arange(first, first + size) < len(logits)
        images = torch.zeros(size, 3, 4, 4, dtype=torch.uint8)
        found.append((logits[index], Batch(images, targets[index], real)))
    return found


def validated(logits: Tensor, targets: Tensor) -> dict[str, float]:
    task = MultiLabelClassification(CLASSES)
    found = task.metrics(CPU, train=False)
    for outputs, batch in batches(logits, targets):
        found.update(task.loss(outputs, batch, train=False), outputs, batch)
    return found.compute()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [7, 45, 300])
def test_map_and_f1_are_scikit_learn_s(count, ties):
    logits, targets = scored(count, count, ties)
    labeled = targets.bool().any(0)
    found = validated(logits, targets)
    expected = metrics.average_precision_score(targets[:, labeled], logits[:, labeled], average="macro")
    assert found["map"] == pytest.approx(100 * expected, rel=1e-9)
    f1 = metrics.f1_score(targets, logits > 0, average="macro", zero_division=np.nan)
    assert found["f1"] == pytest.approx(100 * f1, rel=1e-9)
    assert found["samples"] == count


def test_images_without_any_label_count_and_a_set_without_any_is_zero():
    logits, targets = scored(20, 1)
    targets[::2] = 0
    labeled = targets.bool().any(0)
    expected = metrics.average_precision_score(targets[:, labeled], logits[:, labeled], average="macro")
    assert validated(logits, targets)["map"] == pytest.approx(100 * expected, rel=1e-9)
    assert validated(logits, 0 * targets)["map"] == 0
    assert mean_average_precision(np.zeros((0, 3)), np.zeros((0, 3))) == 0


def validate_part(rank_of: int) -> dict[str, float]:
    import torch.distributed as dist

    logits, targets = scored(45, 3)
    return validated(logits[dist.get_rank() :: rank_of], targets[dist.get_rank() :: rank_of])


@pytest.mark.slow
def test_two_ranks_compute_the_metrics_of_all_samples():
    logits, targets = scored(45, 3)
    whole = validated(logits, targets)
    for found in run_ranks(validate_part, 2):
        assert found == pytest.approx(whole, rel=1e-6)


def test_training_sums_can_be_saved_and_added():
    task = MultiLabelClassification(CLASSES)
    logits, targets = scored(32, 5)
    first, second = batches(logits, targets)
    parts = []
    for outputs, batch in (first, second):
        part = task.metrics(CPU)
        part.update(task.loss(outputs, batch, train=True), outputs, batch)
        parts.append(part)
    parts[0].add(parts[1].state())
    f1 = metrics.f1_score(targets, logits > 0, average="macro", zero_division=np.nan)
    assert parts[0].compute()["f1"] == pytest.approx(100 * f1, rel=1e-9)
    assert "map" not in parts[0].compute()
    assert isinstance(parts[0], LabelCounts)
    parts[0].reset()
    assert parts[0].compute()["samples"] == parts[0].compute()["f1"] == 0


def test_both_targets_of_a_mixed_image_count_by_their_weights():
    task = MultiLabelClassification(2)
    logits = torch.tensor([[1.0, -1], [1, -1]])
    targets = torch.tensor([[1, 0], [0, 0]], dtype=torch.uint8)
    images, real = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.ones(2, dtype=torch.bool)
    batch = Batch(images, targets, real, mix=torch.tensor([0, 0, 0, 0, 0.75, 0.75, 0.75]))
    found = task.metrics(CPU)
    found.update(task.loss(logits, batch, train=True), logits, batch)
    assert found.compute()["f1"] == pytest.approx(100 * 2 * 1 / (1 + 2))


def test_all_labels_above_the_threshold_are_named_and_drawn():
    task = MultiLabelClassification(3)
    names = ("cat", "dog", "sky")
    (found,) = task.predict(torch.tensor([[2.0, 0.5, -1.0]]))
    np.testing.assert_allclose(found, 1 / (1 + np.exp([-2.0, -0.5, 1.0])), rtol=1e-6)
    assert task.format_prediction(found, names) == "cat 88.1%, dog 62.2%"
    assert task.format_prediction(0 * found, names) == "nothing"
    task.threshold = 0.2
    assert task.format_prediction(found, names) == "cat 88.1%, dog 62.2%, sky 26.9%"
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    drawn = task.draw(image, found, names)
    assert drawn.height > drawn.width  # a line of labels below it
    truth = task.draw_truth(image, np.array([1, 1, 0], dtype=np.uint8), names)
    assert np.asarray(truth).tolist() != np.asarray(task.draw_truth(image, np.zeros(3), names)).tolist()
    assert task.describe({"loss": 0.5, "map": 90.0, "f1": 80.0}) == "loss 0.500  map 90.00%  f1 80.00%"
