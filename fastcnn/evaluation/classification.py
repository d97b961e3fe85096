"""Classification with one label an image: accuracy, precision, recall, F1, confusion, calibration."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastcnn.data.batch import Batch
from fastcnn.data.sources.dataset import Split
from fastcnn.evaluation import figures, pictures
from fastcnn.evaluation.base import Findings, Parts, Shown, percent
from fastcnn.inference.trained import Trained
from fastcnn.tasks.class_losses import ONE_LABEL, split_outputs
from fastcnn.tasks.classification import Classification

TOP = 5
"""Number of the most probable classes that are kept of each image."""
BINS = 15
"""Bins of equal width of the calibration error (Guo et al., "On Calibration of Modern Neural Networks", ICML
2017, section 2)."""
CONFUSED, MISTAKES = 20, 25
"""Listed pairs of classes, and pictured images."""


class ClassRows(NamedTuple):
    """Predictions for N images."""

    samples: np.ndarray
    """int64 [N]"""
    truths: np.ndarray
    """Class numbers, int64 [N]."""
    classes: np.ndarray
    """The most probable classes, the best first, int64 [N, k]."""
    probabilities: np.ndarray
    """Their probabilities, float32 [N, k]."""
    losses: np.ndarray
    """float32 [N]"""


class ClassJudge:
    """Judge of `Classification`."""

    task = "classification"
    predictions_suffix = ".csv"

    def __init__(self, task: Classification, device: torch.device) -> None:
        self.criterion = task
        self.top = min(TOP, task.num_classes)
        self.terms = task.terms(device, train=False)
        self.parts = Parts()

    def add(self, outputs: object, batch: Batch, samples: np.ndarray) -> None:
        logits = split_outputs(outputs)[0].float()
        classes = logits.topk(self.top).indices
        bce = self.criterion.kind == "bce"
        probabilities = (logits.sigmoid() if bce else logits.softmax(1)).gather(1, classes)
        losses = ONE_LABEL[self.criterion.kind](logits, batch.targets, self.terms)
        self.parts.add(samples, batch.mask, batch.targets, classes, probabilities, losses)

    def rows(self) -> ClassRows:
        samples, values = self.parts.joined()
        return ClassRows(samples, *(value.numpy() for value in values))

    def judge(self, rows: ClassRows, trained: Trained, split: Split) -> Findings:
        names = trained.class_names
        confusion = confusion_matrix(rows.truths, rows.classes[:, 0], len(names))
        per_class = scores_of_classes(confusion, names)
        bins = calibration(rows.probabilities[:, 0], rows.classes[:, 0] == rows.truths)
        error = calibration_error(bins)
        confused = most_confused(confusion, names)
        hits = rows.classes == rows.truths[:, None]
        metrics: dict[str, float | None] = {"acc1": 100 * float(hits[:, 0].mean())}
        if self.criterion.num_classes > TOP:
            metrics["acc5"] = 100 * float(hits.any(axis=1).mean())
        metrics |= {
            "loss": float(rows.losses.mean(dtype=np.float64)),
            **mean_over_classes(per_class, ("precision", "recall", "f1")),
            "ece": error,
        }
        wrong = np.flatnonzero(~hits[:, 0])
        surest = wrong[np.argsort(-rows.probabilities[wrong, 0], kind="stable")][:MISTAKES]
        mistakes = [_mistake(rows, i, trained, split) for i in surest.tolist()]
        shown = Shown("mistakes.png", rows.samples[surest].tolist(), partial(pictures.mistakes, mistakes))
        return Findings(
            metrics=metrics,
            per_class=per_class,
            details={"confused": confused, "calibration": bins, "mistakes": mistakes},
            tables={"confusion.csv": confusion_table(confusion, names)},
            figures={
                "confusion.png": partial(figures.confusion, confusion, names),
                "calibration.png": partial(figures.calibration, bins, error),
            },
            pictures=(shown,) if mistakes else (),
            lines=tuple(
                f"{pair['truth']} taken for {pair['prediction']}: {pair['count']:,} ({pair['share']:.1f}%)"
                for pair in confused[:3]
            ),
        )

    def predictions(self, rows: ClassRows, trained: Trained, split: Split) -> Any:
        """Return rows of CSV: file, truth, the most probable classes and their probabilities."""
        names, ranks = trained.class_names, range(1, self.top + 1)
        heading = ["file", "truth", *(f"top{i}" for i in ranks), *(f"p{i}" for i in ranks)]
        table: list[list[Any]] = [heading]
        for sample, truth, best, shares, _ in zip(*(column.tolist() for column in rows)):
            table.append([split.name(sample), names[truth], *(names[i] for i in best), *shares])
        return table


def _mistake(rows: ClassRows, i: int, trained: Trained, split: Split) -> dict[str, Any]:
    return {
        "file": split.name(int(rows.samples[i])),
        "truth": trained.class_names[rows.truths[i]],
        "prediction": trained.class_names[rows.classes[i, 0]],
        "probability": float(rows.probabilities[i, 0]),
    }


def confusion_matrix(truths: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Return the number of images of each class (rows) and prediction (columns), int64 [count, count]."""
    return np.bincount(truths * count + predicted, minlength=count**2).reshape(count, count)


def confusion_table(confusion: np.ndarray, names: tuple[str, ...]) -> list[list[Any]]:
    """Return the rows of a CSV file of a confusion matrix, with names."""
    return [["truth", *names], *([name, *row] for name, row in zip(names, confusion.tolist()))]


def scores_of_classes(confusion: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return count, precision, recall and F1 of each class, in percent; None where one is undefined."""
    hits, truths, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    columns = {
        "name": names,
        "count": truths.tolist(),
        "precision": percent(hits, predicted),
        "recall": percent(hits, truths),
        "f1": percent(2 * hits, truths + predicted),
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def mean_over_classes(per_class: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, float]:
    """Return the means over the classes with images; an undefined precision counts as 0."""
    present = [row for row in per_class if row["count"]]
    return {key: float(np.mean([row[key] or 0.0 for row in present])) if present else 0.0 for key in keys}


def most_confused(confusion: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the pairs of truth and prediction with the most images; shares are in percent of the truth."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]
    truths = confusion.sum(1)
    return [
        {
            "truth": names[t],
            "prediction": names[p],
            "count": int(wrong[t, p]),
            "share": 100 * float(wrong[t, p] / truths[t]),
        }
        for t, p in zip(*(index.tolist() for index in np.unravel_index(order, wrong.shape)))
        if wrong[t, p]
    ]


def calibration(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Return count, mean confidence and accuracy of predictions in bins of confidence, both 0 to 1.

    A bin holds the confidences above its lower and up to its upper border; those of empty bins are None.

    Args:
        confidences: probabilities of the predicted classes, [N].
        correct: which predictions are right, bool [N].
    """
    borders = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(borders[1:-1], confidences)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, confidences.astype(np.float64), bins), np.bincount(place, correct, bins)
    confidence, accuracy = ([s / n if n else None for s, n in zip(total, counts)] for total in sums)
    return [
        {"low": low, "high": high, "count": n, "confidence": c, "accuracy": a}
        for low, high, n, c, a in zip(
            borders.tolist(), borders[1:].tolist(), counts.tolist(), confidence, accuracy
        )
    ]


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """Return the expected calibration error in percent: the mean distance of confidence and accuracy."""
    total = sum(row["count"] for row in bins)
    gaps = (row["count"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["count"])
    return 100 * sum(gaps) / total
