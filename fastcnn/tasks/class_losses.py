"""Losses of classification, one value per sample; they take one label an image or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.data.transforms.mixing import weighed
from fastcnn.models.base import Outputs

AUX_WEIGHT = 0.3
"""Weight of an auxiliary classifier's loss (Szegedy et al. 2015, section 5)."""

LossName = Literal["ce", "bce", "focal"]


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What a loss is made of, beside logits and targets."""

    label_smoothing: float = 0.0
    gamma: float = 2.0
    """Focusing parameter of the focal losses."""
    weights: Tensor | None = None
    """Weights of the classes, float32 [C], on the device of the logits."""


ClassLoss = Callable[[Tensor, Tensor, LossTerms], Tensor]
"""Logits [N, C], targets and terms -> losses [N]."""


def cross_entropy(logits: Tensor, targets: Tensor, terms: LossTerms) -> Tensor:
    """Return torch's cross-entropy for class numbers, int64 [N]."""
    return F.cross_entropy(
        logits, targets, terms.weights, reduction="none", label_smoothing=terms.label_smoothing
    )


def focal(logits: Tensor, targets: Tensor, terms: LossTerms) -> Tensor:
    """Return the focal loss of softmax probabilities for class numbers, int64 [N].

    (1 - p) ** gamma scales the cross-entropy of each class (Lin et al., "Focal Loss for Dense Object
    Detection", ICCV 2017, equation 4); `gamma` 0 is cross-entropy.
    """
    log_p = logits.log_softmax(1)
    truth = _one_hot(logits, targets, terms.label_smoothing)
    if terms.weights is not None:
        truth = truth * terms.weights
    return -(truth * _focus(log_p.exp(), terms.gamma) * log_p).sum(1)


def one_hot_bce(logits: Tensor, targets: Tensor, terms: LossTerms) -> Tensor:
    """Return the binary cross-entropy of all classes for class numbers, int64 [N], as timm's.

    Each class is a decision of its own; the loss is the mean over the classes (Wightman et al., "ResNet
    strikes back", 2021, section 2.1), times the weight of the sample's class.
    """
    truth = _one_hot(logits, targets, terms.label_smoothing)
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    return losses if terms.weights is None else losses * terms.weights[targets]


def multi_label_bce(logits: Tensor, targets: Tensor, terms: LossTerms) -> Tensor:
    """Return the binary cross-entropy for 0/1 targets [N, C], the mean over the classes.

    The weights are those of positive labels, as torch's `pos_weight`. Label smoothing moves both targets
    towards 0.5.
    """
    return _binary(logits, _smoothed(targets, terms), terms).mean(1)


def multi_label_focal(logits: Tensor, targets: Tensor, terms: LossTerms) -> Tensor:
    """Return the focal loss of sigmoid probabilities for 0/1 targets [N, C], the mean over the classes.

    torchvision's `sigmoid_focal_loss` without its alpha, in whose place are the weights of positive labels.
    """
    truth = _smoothed(targets, terms)
    p = logits.sigmoid()
    of_truth = p * truth + (1 - p) * (1 - truth)
    return (_focus(of_truth, terms.gamma) * _binary(logits, truth, terms)).mean(1)


ONE_LABEL: dict[LossName, ClassLoss] = {"ce": cross_entropy, "bce": one_hot_bce, "focal": focal}
SEVERAL_LABELS: dict[LossName, ClassLoss] = {"bce": multi_label_bce, "focal": multi_label_focal}


class ClassCriterion:
    """Settings of a classification loss; base class of the tasks.

    Args:
        num_classes: number of classes.
        label_smoothing: label smoothing in training.
        loss: name of the loss.
        gamma: focusing parameter of "focal".
        class_weights: weights of the classes in training; several labels an image: of positive labels.
    """

    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        *,
        loss: LossName,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.kind = loss
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)
        self.label_smoothing = label_smoothing
        self.gamma = gamma

    def terms(self, device: torch.device, *, train: bool) -> LossTerms:
        """Return the terms of the loss; smoothing and weights apply in training alone."""
        if not train:
            return LossTerms(gamma=self.gamma)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device)
        return LossTerms(label_smoothing=self.label_smoothing, gamma=self.gamma, weights=self.class_weights)


def mean_over_outputs(outputs: object, mean_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the loss of the logits, with that of auxiliary classifiers by `AUX_WEIGHT`."""
    logits, aux = split_outputs(outputs)
    loss = mean_loss(logits.float())
    for auxiliary in aux:
        loss = loss + AUX_WEIGHT * mean_loss(auxiliary.float())
    return loss


def mean_over_samples(
    value: Callable[[Tensor], Tensor], batch: Batch, sample_weight: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return the mean over the real samples of a batch.

    For mixed images it is the weighted sum for both targets.

    Args:
        value: returns the values [N] for targets.
        sample_weight: returns the weights [N] of these values, by which their sum is divided; None: all 1.
    """
    values = _of_both(value, batch)
    if sample_weight is None:
        return (values * batch.mask).sum() / batch.mask.sum().clamp(min=1)
    total = (_of_both(sample_weight, batch) * batch.mask).sum()
    return (values * batch.mask).sum() / total.clamp(min=torch.finfo(torch.float32).tiny)


def split_outputs(outputs: object) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the logits, and those of auxiliary classifiers."""
    if isinstance(outputs, Outputs):
        return outputs.logits, outputs.aux
    assert isinstance(outputs, Tensor)
    return outputs, ()


def _of_both(value: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    values = value(batch.targets)
    if batch.mix is None:
        return values
    return weighed(values, value(batch.targets.flip(0)), batch.mix)


def _one_hot(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    classes = logits.shape[1]
    one_hot = torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0)
    return one_hot * (1 - label_smoothing) + label_smoothing / classes


def _smoothed(targets: Tensor, terms: LossTerms) -> Tensor:
    return targets.float() * (1 - terms.label_smoothing) + terms.label_smoothing / 2


def _binary(logits: Tensor, truth: Tensor, terms: LossTerms) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none", pos_weight=terms.weights)


def _focus(probabilities: Tensor, gamma: float) -> Tensor:
    # The lower bound keeps the gradient finite for gamma below 1.
    return (1 - probabilities).clamp(min=1e-6) ** gamma
