"""Semantic segmentation: intersection over union for each class and each image."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastcnn.data.batch import Batch
from fastcnn.data.sources.dataset import Split
from fastcnn.data.targets import IGNORE
from fastcnn.evaluation import figures, pictures
from fastcnn.evaluation.base import Findings, Parts, Shown, mean, percent
from fastcnn.evaluation.classification import confusion_table
from fastcnn.inference.trained import Trained
from fastcnn.tasks.segmentation import Segmentation, logits_and_targets

WORST = 12
"""Pictured images."""


class PixelRows(NamedTuple):
    """Predictions for N images."""

    samples: np.ndarray
    """int64 [N]"""
    counts: np.ndarray
    """Pixels of each class in the truth, in the prediction and in both, int32 [N, 3, C]."""
    confusions: list[np.ndarray]
    """Pixels of each class (rows) and prediction (columns), int64 [C, C]; one per rank."""


class PixelJudge:
    """Judge of `Segmentation`. Pixels of value `IGNORE` do not count."""

    task = "segmentation"
    predictions_suffix = ".csv"

    def __init__(self, task: Segmentation, device: torch.device) -> None:
        self.criterion = task
        self.confusion = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64, device=device)
        self.parts = Parts()

    def add(self, outputs: object, batch: Batch, samples: np.ndarray) -> None:
        logits, targets = logits_and_targets(outputs, batch)
        count, classes = len(targets), self.criterion.num_classes
        entry = (targets * classes + logits.argmax(1)).where(targets != IGNORE, classes**2).flatten(1)
        found = entry.new_zeros(count, classes**2 + 1).scatter_add_(1, entry, torch.ones_like(entry))
        found = found[:, :-1].view(count, classes, classes)
        counts = torch.stack([found.sum(2), found.sum(1), found.diagonal(dim1=1, dim2=2)], 1)
        self.confusion += found.sum(0)
        self.parts.add(samples, batch.mask, counts.int())

    def rows(self) -> PixelRows:
        samples, (counts,) = self.parts.joined()
        return PixelRows(samples, counts.numpy(), [self.confusion.cpu().numpy()])

    def judge(self, rows: PixelRows, trained: Trained, split: Split) -> Findings:
        names, confusion = trained.class_names, np.sum(rows.confusions, axis=0)
        hits, truths, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        columns = {
            "name": names,
            "count": truths.tolist(),
            "iou": percent(hits, truths + predicted - hits),
            "dice": percent(2 * hits, truths + predicted),
            "precision": percent(hits, predicted),
            "recall": percent(hits, truths),
        }
        per_class = [dict(zip(columns, row)) for row in zip(*columns.values())]
        metrics = {
            "miou": mean(columns["iou"]),
            "dice": mean(columns["dice"]),
            "pixel_acc": percent(hits.sum(keepdims=True), truths.sum(keepdims=True))[0],
        }
        ious = image_ious(rows.counts)
        order = np.argsort(ious, kind="stable")[:WORST]  # images without counted pixels are last
        worst = [
            {"file": split.name(int(rows.samples[i])), "iou": float(ious[i])}
            for i in order.tolist()
            if not np.isnan(ious[i])
        ]
        chosen = rows.samples[order[: len(worst)]].tolist()
        draw = partial(pictures.worst_masks, self.criterion, names, worst)
        return Findings(
            metrics=metrics,
            per_class=per_class,
            details={"worst": worst},
            tables={"confusion.csv": confusion_table(confusion, names)},
            figures={"confusion.png": partial(figures.confusion, confusion, names, "pixels")},
            pictures=(Shown("worst.png", chosen, draw),) if worst else (),
        )

    def predictions(self, rows: PixelRows, trained: Trained, split: Split) -> Any:
        """Return rows of CSV: pixels of each class of each image, in truth, prediction and both."""
        table: list[list[Any]] = [["file", "class", "truth", "prediction", "both"]]
        for sample, counts in zip(rows.samples.tolist(), rows.counts):
            for number in np.flatnonzero(counts.any(axis=0)).tolist():
                table.append([split.name(sample), trained.class_names[number], *counts[:, number].tolist()])
        return table


def image_ious(counts: np.ndarray) -> np.ndarray:
    """Return the mean IoU of each image over its classes in truth or prediction, in percent, [N].

    It is NaN for an image without counted pixels.

    Args:
        counts: pixels in truth, prediction and both, [N, 3, C].
    """
    truth, predicted, both = counts.astype(np.float64).transpose(1, 0, 2)
    union = truth + predicted - both
    present = union > 0
    ious = np.divide(both, union, out=np.zeros_like(union), where=present)
    classes = present.sum(axis=1)
    return 100 * np.divide(ious.sum(axis=1), classes, out=np.full(len(ious), np.nan), where=classes > 0)
