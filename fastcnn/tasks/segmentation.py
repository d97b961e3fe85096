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
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import all_reduce_sum
from fastcnn.tasks.metrics import MeanLoss
from fastcnn.viz.pictures import with_mask

SegLoss = Literal["ce", "dice", "ce-dice"]


class Segmentation:
    """Targets are class numbers, uint8 [N, H, W], with `IGNORE` where nothing is trained or counted; outputs
    are logits [N, num_classes, h, w]. Where h and w are smaller (valid convolutions), the targets' centre is
    what they are compared with.

    Args:
        num_classes: channels of the logits.
        loss: cross-entropy, Dice, or their sum.
        class_weights: of the cross-entropy, one for each class.

    Raises:
        UserError: other than `num_classes` weights.
    """

    best_metric = "miou"
    pictured = True

    def __init__(
        self, num_classes: int, loss: SegLoss = "ce-dice", class_weights: Sequence[float] | None = None
    ) -> None:
        if class_weights is not None and len(class_weights) != num_classes:
            raise UserError(
                f"--class-weights: {len(class_weights)} of them for {num_classes} classes; write one for each"
            )
        self.num_classes = num_classes
        self.kind = loss
        self.class_weights = torch.tensor(class_weights or [1.0] * num_classes)

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        logits, targets = _pair(outputs, batch)
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
        """Class numbers, uint8 [h, w] each."""
        assert isinstance(outputs, Tensor)
        return list(outputs.argmax(1).to(torch.uint8).cpu().numpy())

    def format_prediction(self, predictions: np.ndarray, class_names: Sequence[str]) -> str:
        shares = np.bincount(predictions.flatten(), minlength=self.num_classes) / predictions.size
        shown = [i for i in np.argsort(-shares, kind="stable").tolist() if shares[i] > 0]
        return ", ".join(f"{class_names[i]} {100 * shares[i]:.1f}%" for i in shown)

    def draw(self, image: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return with_mask(image, predictions, class_names)

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return with_mask(image, target, class_names)


class Pixels(NamedTuple):
    """All pixels of a batch, one after the other: P of them."""

    log_probabilities: Tensor
    """[P, C]"""
    classes: Tensor
    """int64 [P], 0 where a pixel does not count"""
    counted: Tensor
    """float32 [P], 1 or 0"""

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Pixels:
        """From logits [N, C, H, W] and targets int64 [N, H, W]."""
        counted = targets != IGNORE
        rows = logits.float().movedim(1, -1).flatten(0, 2)  # no copy in channels-last memory
        # log_softmax is ten times slower over the few columns that classes are, on the CPU.
        return Pixels(
            rows - rows.logsumexp(1, keepdim=True),
            targets.where(counted, 0).flatten(),
            counted.flatten().float(),
        )

    def of_truth(self) -> Tensor:
        """Log-probabilities of the pixels' own classes, [P]."""
        return self.log_probabilities.gather(1, self.classes[:, None])[:, 0]

    def by_class(self, values: Tensor) -> Tensor:
        """Sums of values [P] over the pixels of each class, [C]."""
        zeros = torch.zeros(self.log_probabilities.shape[1], device=values.device)
        return zeros.scatter_add(0, self.classes, values * self.counted)


def cross_entropy(pixels: Pixels, weights: Tensor) -> Tensor:
    """Mean over the pixels that count, weighted by their classes' weights [C]."""
    weight = weights[pixels.classes] * pixels.counted
    return -(pixels.of_truth() * weight).sum() / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def dice_loss(pixels: Pixels) -> Tensor:
    """1 - Dice coefficient of the probabilities with the truth (Milletari et al., "V-Net", 3DV 2016, section
    3, without their squares), over all pixels of the batch that count; the mean over the classes it shows."""
    predicted = pixels.counted @ pixels.log_probabilities.exp()
    common, truth = pixels.by_class(pixels.of_truth().exp()), pixels.by_class(torch.ones_like(pixels.counted))
    dice = 2 * common / (predicted + truth).clamp(min=1e-6)
    shown = truth > 0
    return ((1 - dice) * shown).sum() / shown.sum().clamp(min=1)


class SegmentationMetrics(MeanLoss):
    """Mean loss, and in percent, over all pixels that count: mIoU and Dice, means over the classes that the
    truth or the prediction shows, and the share of pixels that are right."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        super().__init__(device)
        self.num_classes = num_classes
        # Pixels of each class (row) that were taken for each class (column), and those that do not count.
        self.pixels = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        super().update(loss, outputs, batch)
        logits, targets = _pair(outputs, batch)
        place = (targets * self.num_classes + logits.argmax(1)).where(targets != IGNORE, self.num_classes**2)
        place = place.flatten()
        self.pixels.scatter_add_(0, place, torch.ones_like(place))

    def compute(self) -> dict[str, float]:
        pixels = all_reduce_sum(self.pixels.clone())[:-1].view(self.num_classes, self.num_classes).double()
        right, truth, predicted = pixels.diag(), pixels.sum(1), pixels.sum(0)
        shown = truth + predicted > 0
        union = (truth + predicted - right)[shown]
        return {
            **super().compute(),
            "miou": _percent(right[shown] / union),
            "dice": _percent(2 * right[shown] / (truth + predicted)[shown]),
            "pixel_acc": 100 * float(right.sum() / truth.sum().clamp(min=1)),
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


def _percent(shares: Tensor) -> float:
    return 100 * float(shares.mean()) if len(shares) else 0.0


def _pair(outputs: object, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits, and the targets of the same pixels, int64, `IGNORE` for samples that are not real."""
    assert isinstance(outputs, Tensor)
    (height, width), targets = outputs.shape[2:], batch.targets
    top, left = (targets.shape[1] - height) // 2, (targets.shape[2] - width) // 2
    targets = targets[:, top : top + height, left : left + width].long()
    return outputs, targets.where(batch.mask[:, None, None], IGNORE)
