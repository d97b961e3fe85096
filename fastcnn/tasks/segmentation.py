"""Semantic segmentation: cross-entropy and Dice loss, intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.data.targets import IGNORE
from fastcnn.runtime.distributed import all_reduce_sum
from fastcnn.tasks.metrics import MeanLoss
from fastcnn.viz.pictures import with_mask

SegLoss = Literal["ce", "dice", "ce-dice"]


class Segmentation:
    """Targets are class numbers, uint8 [N, H, W]; outputs are logits [N, num_classes, h, w].

    Pixels of value `IGNORE` are excluded from loss and metrics. If h and w are smaller than H and W, without
    padding in the network, the center of the targets is used.

    Args:
        num_classes: number of classes.
        loss: cross-entropy, Dice, or their sum.
        class_weights: weights of the classes in the cross-entropy.
    """

    best_metric = "miou"
    pictured = True

    def __init__(
        self, num_classes: int, loss: SegLoss = "ce-dice", class_weights: Sequence[float] | None = None
    ) -> None:
        self.num_classes = num_classes
        self.kind = loss
        self.class_weights = torch.tensor(class_weights or [1.0] * num_classes)

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        logits, targets = logits_and_targets(outputs, batch)
        pixels = Pixels.of(logits, targets)
        loss = torch.zeros((), device=logits.device)
        if self.kind != "dice":
            self.class_weights = self.class_weights.to(logits.device)
            loss = loss + cross_entropy(pixels, self.class_weights)
        if self.kind != "ce":
            loss = loss + dice_loss(pixels)
        return loss

    def metrics(self, device: torch.device, *, train: bool = True) -> SegmentationMetrics:
        return SegmentationMetrics(self.num_classes, device)

    def describe(self, metrics: dict[str, float]) -> str:
        return f"loss {metrics['loss']:.3f}  miou {metrics['miou']:.2f}%  pixels {metrics['pixel_acc']:.2f}%"

    def predict(self, outputs: object) -> list[np.ndarray]:
        """Return class numbers, uint8 [h, w] for each sample."""
        assert isinstance(outputs, Tensor)
        return list(outputs.argmax(1).to(torch.uint8).cpu().numpy())

    def format_prediction(self, predictions: np.ndarray, class_names: Sequence[str]) -> str:
        fractions = np.bincount(predictions.flatten(), minlength=self.num_classes) / predictions.size
        present = [i for i in np.argsort(-fractions, kind="stable").tolist() if fractions[i] > 0]
        return ", ".join(f"{class_names[i]} {100 * fractions[i]:.1f}%" for i in present)

    def draw(self, image: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return with_mask(image, predictions, class_names)

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return with_mask(image, target, class_names)


class Pixels(NamedTuple):
    """All P pixels of a batch in one list."""

    log_probabilities: Tensor
    """[P, C]"""
    classes: Tensor
    """int64 [P], 0 for ignored pixels"""
    counted: Tensor
    """float32 [P], 0 for ignored pixels, else 1"""

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Pixels:
        """Return the pixels of logits [N, C, H, W] and targets int64 [N, H, W]."""
        counted = targets != IGNORE
        rows = logits.float().movedim(1, -1).flatten(0, 2)  # no copy in channels-last memory
        # On the CPU, log_softmax is ten times slower for a small number of classes.
        return Pixels(
            rows - rows.logsumexp(1, keepdim=True),
            targets.where(counted, 0).flatten(),
            counted.flatten().float(),
        )

    def of_truth(self) -> Tensor:
        """Return the log-probability of the true class of each pixel, [P]."""
        return self.log_probabilities.gather(1, self.classes[:, None])[:, 0]

    def by_class(self, values: Tensor) -> Tensor:
        """Return the sums of values [P] over the pixels of each class, [C]."""
        zeros = torch.zeros(self.log_probabilities.shape[1], device=values.device)
        return zeros.scatter_add(0, self.classes, values * self.counted)


def cross_entropy(pixels: Pixels, weights: Tensor) -> Tensor:
    """Return the mean over pixels that are not ignored, weighted by the weights [C] of their classes."""
    weight = weights[pixels.classes] * pixels.counted
    return -(pixels.of_truth() * weight).sum() / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def dice_loss(pixels: Pixels) -> Tensor:
    """Return 1 - Dice coefficient of probabilities and targets, the mean over the classes in the batch.

    The coefficient is over all pixels of the batch that are not ignored (Milletari et al., "V-Net", 3DV 2016,
    section 3, without the squares there).
    """
    predicted = pixels.counted @ pixels.log_probabilities.exp()
    common, truth = pixels.by_class(pixels.of_truth().exp()), pixels.by_class(torch.ones_like(pixels.counted))
    dice = 2 * common / (predicted + truth).clamp(min=1e-6)
    present = truth > 0
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


class SegmentationMetrics(MeanLoss):
    """Mean loss, mIoU, Dice and pixel accuracy, in percent over all pixels that are not ignored.

    mIoU and Dice are means over the classes in targets or predictions.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        super().__init__(device)
        self.num_classes = num_classes
        # Confusion matrix of targets (rows) and predictions (columns), and the number of ignored pixels.
        self.pixels = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        super().update(loss, outputs, batch)
        logits, targets = logits_and_targets(outputs, batch)
        entry = (targets * self.num_classes + logits.argmax(1)).where(targets != IGNORE, self.num_classes**2)
        entry = entry.flatten()
        self.pixels.scatter_add_(0, entry, torch.ones_like(entry))

    def compute(self) -> dict[str, float]:
        pixels = all_reduce_sum(self.pixels.clone())[:-1].view(self.num_classes, self.num_classes).double()
        correct, truth, predicted = pixels.diag(), pixels.sum(1), pixels.sum(0)
        present = truth + predicted > 0
        union = (truth + predicted - correct)[present]
        return {
            **super().compute(),
            "miou": _percent(correct[present] / union),
            "dice": _percent(2 * correct[present] / (truth + predicted)[present]),
            "pixel_acc": 100 * float(correct.sum() / truth.sum().clamp(min=1)),
        }

    def state(self) -> Tensor:
        return torch.cat([super().state().cpu().double(), self.pixels.cpu().double()])

    def add(self, state: Tensor) -> None:
        sums, pixels = state.split([len(self.sums.values), len(self.pixels)])
        super().add(sums)
        self.pixels += pixels.to(self.pixels)

    def reset(self) -> None:
        super().reset()
        self.pixels.zero_()


def _percent(fractions: Tensor) -> float:
    return 100 * float(fractions.mean()) if len(fractions) else 0.0


def logits_and_targets(outputs: object, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits, and the targets of the same pixels as int64, `IGNORE` for padding samples."""
    assert isinstance(outputs, Tensor)
    (height, width), targets = outputs.shape[2:], batch.targets
    top, left = (targets.shape[1] - height) // 2, (targets.shape[2] - width) // 2
    targets = targets[:, top : top + height, left : left + width].long()
    return outputs, targets.where(batch.mask[:, None, None], IGNORE)
