"""Classification with one label an image: its losses, top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.data.transforms.mixing import weighed
from fastcnn.tasks.class_losses import (
    ONE_LABEL,
    ClassCriterion,
    LossName,
    mean_over_outputs,
    mean_over_samples,
    split_outputs,
)
from fastcnn.tasks.metrics import MeanLoss
from fastcnn.viz.pictures import enlarged, with_caption


class Classification(ClassCriterion):
    """Targets are class numbers, int64 [N]; outputs are logits [N, num_classes] or `Outputs`.

    The loss of mixed images is the weighted sum for both targets; with "ce" it is equal to that of the mixed
    one-hot target.

    Args:
        num_classes: number of classes.
        label_smoothing: label smoothing in training.
        loss: "ce", "bce" or "focal", see `fastcnn.tasks.class_losses`.
        gamma: focusing parameter of "focal".
        class_weights: weights of the classes in training; the loss is a weighted mean, as torch's.
    """

    best_metric = "acc1"
    pictured = False
    top_k: int | None = 3
    """Maximum number of classes in texts and drawings."""
    threshold = 0.0
    """Minimum probability of the classes in texts and drawings."""

    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        *,
        loss: LossName = "ce",
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_classes, label_smoothing, loss=loss, gamma=gamma, class_weights=class_weights)

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        terms = self.terms(batch.targets.device, train=train)
        weights = terms.weights
        of_sample = None if weights is None else lambda targets: weights[targets]
        loss = ONE_LABEL[self.kind]
        return mean_over_outputs(
            outputs,
            lambda logits: mean_over_samples(lambda targets: loss(logits, targets, terms), batch, of_sample),
        )

    def metrics(self, device: torch.device, *, train: bool = True) -> ClassificationMetrics:
        return ClassificationMetrics(self.num_classes, device)

    def describe(self, metrics: dict[str, float]) -> str:
        return f"loss {metrics['loss']:.3f}  acc1 {metrics['acc1']:.2f}%"

    def predict(self, outputs: object) -> list[np.ndarray]:
        """Return probabilities, float32 [num_classes] for each sample."""
        logits = split_outputs(outputs)[0].float()
        probabilities = logits.sigmoid() if self.kind == "bce" else logits.softmax(1)
        return list(probabilities.cpu().numpy())

    def format_prediction(self, predictions: np.ndarray, class_names: Sequence[str]) -> str:
        return ", ".join(self._best(predictions, class_names)) or "nothing"

    def draw(self, image: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        labels = [(label, None) for label in self._best(predictions, class_names)]
        return with_caption(enlarged(Image.fromarray(image)), labels)

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return with_caption(enlarged(Image.fromarray(image)), [(class_names[int(target)], None)])

    def shown(self, predictions: np.ndarray) -> list[int]:
        """Return the classes in texts and drawings of a sample, the most probable first."""
        return most_probable(predictions, self.top_k, self.threshold)

    def _best(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[str]:
        """Return the shown classes, such as "cat 98.0%"."""
        return [f"{class_names[i]} {100 * predictions[i]:.1f}%" for i in self.shown(predictions)]


class ClassificationMetrics(MeanLoss):
    """Mean loss, acc1 and, with more than 5 classes, acc5, in percent.

    Both classes of a mixed image count, by their weights.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.top = 5 if num_classes > 5 else 1
        super().__init__(device, ("acc1", "acc5"))

    @torch.no_grad()
    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        logits, _ = split_outputs(outputs)
        top_classes = logits.topk(self.top).indices
        hits = top_classes.eq(batch.targets[:, None]) & batch.mask[:, None]
        if batch.mix is not None:
            partner_hits = top_classes.eq(batch.targets.flip(0)[:, None]) & batch.mask[:, None]
            hits = weighed(hits, partner_hits, batch.mix)
        samples = batch.mask.sum()
        self.sums.add(samples, loss.detach() * samples, hits[:, 0].sum(), hits.sum())

    def compute(self) -> dict[str, float]:
        totals = self.sums.over_ranks()
        samples = totals["samples"]
        metrics = {"samples": samples, "loss": totals["loss"] / max(samples, 1)}
        for name in ("acc1", "acc5") if self.top == 5 else ("acc1",):
            metrics[name] = 100 * totals[name] / max(samples, 1)
        return metrics


def most_probable(probabilities: np.ndarray, count: int | None, threshold: float) -> list[int]:
    """Return the `count` most probable classes, those with a threshold or more, the most probable first."""
    best = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return [i for i in best if probabilities[i] >= threshold]
