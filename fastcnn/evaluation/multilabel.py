"""Classification with several labels an image, or none: average precision and F1 for each class."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastcnn.data.batch import Batch
from fastcnn.data.sources.dataset import Split
from fastcnn.evaluation import figures
from fastcnn.evaluation.base import Findings, Parts, mean, percent
from fastcnn.inference.trained import Trained
from fastcnn.tasks.class_losses import SEVERAL_LABELS, split_outputs
from fastcnn.tasks.multilabel import THRESHOLD, MultiLabelClassification, average_precision


class LabelRows(NamedTuple):
    """Predictions for N images."""

    samples: np.ndarray
    """int64 [N]"""
    truths: np.ndarray
    """0 or 1, uint8 [N, C]."""
    probabilities: np.ndarray
    """float64 [N, C]: in float32, different large logits would become 1."""
    losses: np.ndarray
    """float32 [N]"""


class LabelJudge:
    """Judge of `MultiLabelClassification`."""

    task = "multi-label"
    predictions_suffix = ".csv"

    def __init__(self, task: MultiLabelClassification, device: torch.device) -> None:
        self.criterion = task
        self.terms = task.terms(device, train=False)
        self.parts = Parts()

    def add(self, outputs: object, batch: Batch, samples: np.ndarray) -> None:
        logits = split_outputs(outputs)[0].float()
        losses = SEVERAL_LABELS[self.criterion.kind](logits, batch.targets, self.terms)
        self.parts.add(samples, batch.mask, batch.targets, logits, losses)

    def rows(self) -> LabelRows:
        samples, (targets, logits, losses) = self.parts.joined()
        return LabelRows(samples, targets.numpy(), logits.double().sigmoid().numpy(), losses.numpy())

    def judge(self, rows: LabelRows, trained: Trained, split: Split) -> Findings:
        truths, predicted = rows.truths.astype(bool), rows.probabilities > THRESHOLD
        hits, labels, found = ((a.sum(axis=0)) for a in (truths & predicted, truths, predicted))
        columns = {
            "name": trained.class_names,
            "count": labels.tolist(),
            "ap": [
                100 * average_precision(rows.probabilities[:, c], rows.truths[:, c]) if n else None
                for c, n in enumerate(labels.tolist())
            ],
            "precision": percent(hits, found),
            "recall": percent(hits, labels),
            "f1": percent(2 * hits, labels + found),
        }
        per_class = [dict(zip(columns, row)) for row in zip(*columns.values())]
        metrics = {
            "map": mean(columns["ap"]),
            "f1": mean(columns["f1"]),
            "f1_micro": percent(2 * hits.sum(keepdims=True), (labels + found).sum(keepdims=True))[0],
            "exact": 100 * float((truths == predicted).all(axis=1).mean()),
            "loss": float(rows.losses.mean(dtype=np.float64)),
        }
        return Findings(
            metrics=metrics,
            per_class=per_class,
            details={"threshold": THRESHOLD},
            figures={
                "precision-recall.png": partial(figures.label_curves, rows.probabilities, truths, per_class)
            },
        )

    def predictions(self, rows: LabelRows, trained: Trained, split: Split) -> Any:
        """Return rows of CSV: file, then truth and probability of each class."""
        names = trained.class_names
        table: list[list[Any]] = [["file", *(f"{kind} {name}" for name in names for kind in ("truth", "p"))]]
        for sample, truth, shares in zip(
            rows.samples.tolist(), rows.truths.tolist(), rows.probabilities.tolist()
        ):
            table.append([split.name(sample), *(value for pair in zip(truth, shares) for value in pair)])
        return table
