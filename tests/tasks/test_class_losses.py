"""The losses of classification against those of torch, torchvision and timm, and against slow ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from fastcnn.config import LossSettings
from fastcnn.data.batch import Batch
from fastcnn.data.sources.dataset import Split
from fastcnn.data.targets import MultiLabels
from fastcnn.errors import UserError
from fastcnn.models.base import Outputs
from fastcnn.tasks.build import build_task
from fastcnn.tasks.class_weights import Weighting, class_weights, describe_weights
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.multilabel import MultiLabelClassification

CLASSES, SIZE = 5, 6
WEIGHTS = [0.2, 3.0, 1.0, 0.5, 0.3]


def case(seed: int = 0, several: bool = False, padded: bool = False) -> tuple[Tensor, Batch]:
    """Random logits, and a batch with one label an image or several, the last of which may be padding."""
    rng = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(SIZE, CLASSES, generator=rng)).requires_grad_()
    if several:
        targets = (torch.rand(SIZE, CLASSES, generator=rng) < 0.4).to(torch.uint8)
    else:
        targets = torch.randint(0, CLASSES, (SIZE,), generator=rng)
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[-1] = not padded
    return logits, Batch(torch.zeros(SIZE, 3, 4, 4, dtype=torch.uint8), targets, mask)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_with_weights_and_smoothing_is_that_of_torch(padded, smoothing, weights):
    logits, batch = case(padded=padded)
    task = Classification(CLASSES, smoothing, class_weights=weights)
    real = SIZE - padded
    expected = F.cross_entropy(
        logits[:real],
        batch.targets[:real],
        None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
    )
    assert task.loss(logits, batch, train=True).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["ce", "bce", "focal"])
def test_weights_and_smoothing_are_for_training_only(kind):
    logits, batch = case()
    plain = Classification(CLASSES, loss=kind)
    weighted = Classification(CLASSES, 0.1, loss=kind, class_weights=WEIGHTS)
    assert weighted.loss(logits, batch, train=False) == plain.loss(logits, batch, train=False)
    assert weighted.loss(logits, batch, train=True) != plain.loss(logits, batch, train=True)


def test_focal_loss_of_one_label_is_the_scaled_cross_entropy():
    logits, batch = case()
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    for gamma in (0.0, 0.5, 2.0, 5.0):
        expected = ((1 - (-losses).exp()) ** gamma * losses).mean()
        found = Classification(CLASSES, loss="focal", gamma=gamma).loss(logits, batch, train=True)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    smooth = Classification(CLASSES, 0.1, loss="focal", gamma=0.0, class_weights=WEIGHTS)
    same = Classification(CLASSES, 0.1, class_weights=WEIGHTS)
    assert smooth.loss(logits, batch, train=True).item() == pytest.approx(
        same.loss(logits, batch, train=True).item(), rel=1e-6
    )


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_the_focal_gradient_is_finite_where_the_network_is_certain(several, gamma):
    logits, batch = case(several=several)
    task: Any = MultiLabelClassification if several else Classification
    certain = (1e4 * logits.detach().sign()).requires_grad_()
    task(CLASSES, loss="focal", gamma=gamma).loss(certain, batch, train=True).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_of_one_label_is_that_of_timm(smoothing):
    timm_loss = pytest.importorskip("timm.loss")
    logits, batch = case()
    expected = timm_loss.BinaryCrossEntropy(smoothing=smoothing)(logits, batch.targets)
    found = Classification(CLASSES, smoothing, loss="bce").loss(logits, batch, train=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_loss_of_several_labels_is_torch_s_with_positive_weights(padded, weights):
    logits, batch = case(several=True, padded=padded)
    task = MultiLabelClassification(CLASSES, class_weights=weights)
    positive = None if weights is None else torch.tensor(weights)
    expected = F.binary_cross_entropy_with_logits(
        logits[: SIZE - padded], batch.targets[: SIZE - padded].float(), pos_weight=positive
    )
    assert task.loss(logits, batch, train=True).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_the_focal_loss_of_several_labels_is_torchvision_s(gamma):
    logits, batch = case(several=True)
    expected = sigmoid_focal_loss(logits, batch.targets.float(), alpha=-1, gamma=gamma, reduction="mean")
    found = MultiLabelClassification(CLASSES, loss="focal", gamma=gamma).loss(logits, batch, train=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_smoothing_of_several_labels_moves_both_targets_to_the_middle():
    logits, batch = case(several=True)
    soft = batch.targets * 0.8 + 0.1
    expected = F.binary_cross_entropy_with_logits(logits, soft)
    found = MultiLabelClassification(CLASSES, 0.2).loss(logits, batch, train=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mixed_images_with_several_labels_have_mixed_targets():
    logits, batch = case(several=True)
    share = 0.3
    batch = batch._replace(mix=torch.tensor([0, 0, 0, 0, share, share, share]))
    soft = share * batch.targets + (1 - share) * batch.targets.flip(0)
    expected = F.binary_cross_entropy_with_logits(logits, soft)
    found = MultiLabelClassification(CLASSES).loss(logits, batch, train=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_auxiliary_classifiers_count_with_their_weight():
    logits, batch = case(several=True)
    task = MultiLabelClassification(CLASSES)
    both = task.loss(Outputs(logits, (logits,)), batch, train=True)
    assert both.item() == pytest.approx(1.3 * task.loss(logits, batch, train=True).item(), rel=1e-6)


# Weights of the classes


def weights_of(weighting: Weighting, num_classes: int, split: Split) -> np.ndarray:
    return np.array(class_weights(weighting, num_classes, split))


def split_of(*counts: int) -> Split:
    return Split(np.repeat(np.arange(len(counts)), counts))


def test_balanced_weights_are_scikit_learn_s_with_a_mean_of_one():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    split = split_of(50, 7, 1)
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=split.labels)
    found = weights_of("balanced", 3, split)
    np.testing.assert_allclose(found, expected / expected.mean())


def test_effective_weights_follow_the_paper_s_formula():
    beta = 0.9999
    counts = np.array([50_000, 700, 3])
    expected = (1 - beta) / (1 - beta**counts)
    found = weights_of("effective", 3, split_of(*counts))
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("weighting", ["balanced", "effective"])
def test_a_class_without_images_has_no_part_in_the_mean(weighting):
    found = weights_of(weighting, 4, split_of(10, 10, 0))
    np.testing.assert_allclose(found, [1, 1, 0, 0])


def test_positive_weights_are_negatives_by_positives():
    values = np.zeros((100, 4), dtype=np.uint8)
    values[:25, 0] = values[:50, 1] = values[:, 2] = 1
    split = Split(np.zeros(100, dtype=np.int64), annotations=MultiLabels(values))
    np.testing.assert_allclose(weights_of("balanced", 4, split), [3, 1, 1, 1])
    np.testing.assert_allclose(weights_of("effective", 4, split), [3, 1, 1, 1], rtol=0.01)


def test_the_extreme_weights_are_named():
    assert describe_weights([0.5, 2.0, 0.25], ["a", "b", "c"]) == "class weights: 0.25 (c) to 2 (b)"


def test_settings_that_do_not_fit_several_labels_are_one_line(wording):
    with pytest.raises(UserError, match="--cls-loss ce") as caught:
        build_task("lenet5", LossSettings(cls_loss="ce"), 3, multi_label=True)
    wording(caught.value)
