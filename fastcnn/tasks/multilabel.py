"""Classification with several labels an image, or none: binary losses, mean average precision and F1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.data.transforms.mixing import weighed
from fastcnn.runtime.distributed import all_reduce_sum, from_main, gather_to_main
from fastcnn.tasks.class_losses import (
    SEVERAL_LABELS,
    ClassCriterion,
    LossName,
    mean_over_outputs,
    mean_over_samples,
    split_outputs,
)
from fastcnn.tasks.classification import most_probable
from fastcnn.tasks.metrics import MeanLoss, Metrics
from fastcnn.viz.pictures import enlarged, with_caption

THRESHOLD = 0.5
"""Probability above which a class counts as predicted."""


class MultiLabelClassification(ClassCriterion):
    """Targets are 0 or 1 for each class, uint8 [N, num_classes]; outputs are logits like them, or `Outputs`.

    The loss of mixed images is the weighted sum for both targets; with "bce" it is equal to that of the mixed
    target.

    Args:
        num_classes: number of classes.
        label_smoothing: label smoothing in training.
        loss: "bce" or "focal", see `fastcnn.tasks.class_losses`.
        gamma: focusing parameter of "focal".
        class_weights: weights of positive labels in training.
        threshold: minimum probability of the labels in texts and drawings.
    """

    best_metric = "map"
    pictured = False
    top_k: int | None = None
    """Maximum number of labels in texts and drawings."""

    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        *,
        loss: LossName = "bce",
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        threshold: float = THRESHOLD,
    ) -> None:
        super().__init__(num_classes, label_smoothing, loss=loss, gamma=gamma, class_weights=class_weights)
        self.threshold = threshold

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        terms = self.terms(batch.targets.device, train=train)
        loss = SEVERAL_LABELS[self.kind]
        return mean_over_outputs(
            outputs, lambda logits: mean_over_samples(lambda targets: loss(logits, targets, terms), batch)
        )

    def metrics(self, device: torch.device, *, train: bool = True) -> Metrics:
        return LabelCounts(self.num_classes, device) if train else LabelScores(self.num_classes, device)

    def describe(self, metrics: dict[str, float]) -> str:
        percents = [f"{name} {metrics[name]:.2f}%" for name in ("map", "f1") if name in metrics]
        return "  ".join([f"loss {metrics['loss']:.3f}", *percents])

    def predict(self, outputs: object) -> list[np.ndarray]:
        """Return probabilities, float32 [num_classes] for each sample."""
        return list(split_outputs(outputs)[0].float().sigmoid().cpu().numpy())

    def format_prediction(self, predictions: np.ndarray, class_names: Sequence[str]) -> str:
        return ", ".join(self._shown(predictions, class_names)) or "nothing"

    def draw(self, image: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return _captioned(image, self._shown(predictions, class_names))

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return _captioned(image, [class_names[i] for i in np.flatnonzero(target).tolist()])

    def shown(self, predictions: np.ndarray) -> list[int]:
        """Return the classes in texts and drawings of a sample, the most probable first."""
        return most_probable(predictions, self.top_k, self.threshold)

    def _shown(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[str]:
        """Return the shown classes, such as "cat 98.0%"."""
        return [f"{class_names[i]} {100 * predictions[i]:.1f}%" for i in self.shown(predictions)]


class LabelCounts(MeanLoss):
    """Mean loss, and F1 in percent at a probability of 0.5.

    F1 is the mean over the classes in targets or predictions. Both targets of a mixed image count, by their
    weights.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        super().__init__(device)
        self.num_classes = num_classes
        # True positives, labels and predictions of each class.
        self.counts = torch.zeros(3, num_classes, dtype=self.sums.values.dtype, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        super().update(loss, outputs, batch)
        real = batch.mask[:, None].float()
        predicted = (split_outputs(outputs)[0] > 0) * real
        labels = batch.targets.float()
        if batch.mix is not None:
            labels = weighed(labels, labels.flip(0), batch.mix)
        labels = labels * real
        self.counts += torch.stack([(labels * predicted).sum(0), labels.sum(0), predicted.sum(0)])

    def compute(self) -> dict[str, float]:
        hits, labels, predicted = all_reduce_sum(self.counts.clone()).cpu().double()
        present = labels + predicted > 0
        scores = 2 * hits[present] / (labels + predicted)[present]
        return {**super().compute(), "f1": 100 * float(scores.mean()) if len(scores) else 0.0}

    def state(self) -> Tensor:
        return torch.cat([super().state(), self.counts.flatten()])

    def add(self, state: Tensor) -> None:
        sums, counts = state.split([len(self.sums.values), self.counts.numel()])
        super().add(sums)
        self.counts += counts.view_as(self.counts).to(self.counts)

    def reset(self) -> None:
        super().reset()
        self.counts.zero_()


class LabelScores(LabelCounts):
    """Mean loss, F1, and mean average precision in percent over all samples of all ranks.

    Scores and targets are stored until `compute`. `state` includes loss and F1 only.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        super().__init__(num_classes, device)
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.real: list[Tensor] = []

    @torch.no_grad()
    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        super().update(loss, outputs, batch)
        self.scores.append(split_outputs(outputs)[0].float())
        self.targets.append(batch.targets)
        self.real.append(batch.mask)

    def compute(self) -> dict[str, float]:
        ranks = gather_to_main(self._stored())

        def over_ranks() -> float:
            scores, targets = (np.concatenate(parts) for parts in zip(*ranks))
            return mean_average_precision(scores, targets)

        return {**super().compute(), "map": from_main(over_ranks)}

    def reset(self) -> None:
        super().reset()
        self.scores, self.targets, self.real = [], [], []

    def _stored(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores and targets of this rank's real samples, [n, C] each."""
        if not self.real:
            nothing = np.zeros((0, self.num_classes), dtype=np.float32)
            return nothing, nothing
        real = torch.cat(self.real)
        scores, targets = torch.cat(self.scores)[real], torch.cat(self.targets)[real]
        return scores.cpu().numpy(), targets.cpu().numpy()


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean over the classes with labels of their average precision, in percent.

    The average precision of a class is the sum of precision x increase of recall over all distinct scores, as
    scikit-learn's `average_precision_score`; without any label it is 0.

    Args:
        scores: float32 [N, C].
        targets: 0 or 1, [N, C].
    """
    precisions = [
        average_precision(scores[:, c], targets[:, c]) for c in np.flatnonzero(targets.any(axis=0)).tolist()
    ]
    return 100 * float(np.mean(precisions)) if precisions else 0.0


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the average precision of a class with labels, 0 to 1, from scores [N] and 0/1 targets [N]."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_ties = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], [True]))
    hits = np.cumsum(targets[order], dtype=np.int64)[last_of_ties]
    precision = hits / (last_of_ties + 1)
    return float((precision * np.diff(hits, prepend=0)).sum() / hits[-1])


def _captioned(image: np.ndarray, labels: Sequence[str]) -> Image.Image:
    return with_caption(enlarged(Image.fromarray(image)), [(label, None) for label in labels])
