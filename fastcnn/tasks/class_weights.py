"""Weights of the classes of an imbalanced data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fastcnn.data.sources.dataset import Split
from fastcnn.data.targets import MultiLabels
from fastcnn.errors import UserError

BETA = 0.9999
"""Hyperparameter of the effective number of samples, as published for long-tailed CIFAR-10."""

Weighting = Sequence[float] | Literal["balanced", "effective"] | None


def class_weights(weighting: Weighting, num_classes: int, train: Split | None = None) -> list[float] | None:
    """Return the weight of each class by `--class-weights`; None without weights.

    One label an image: "balanced" is proportional to 1 / n for a class of n images; "effective" to
    (1 - beta) / (1 - beta ** n) (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
    2019, equation 9). Both have a mean of 1 over the classes that have images.

    Several labels an image: the weights are those of positive labels. "balanced" is negatives / positives, as
    the documentation of torch's `BCEWithLogitsLoss` has it; "effective" is the ratio of their effective
    numbers.

    Args:
        train: training images, for "balanced" and "effective".

    Raises:
        UserError: the number of weights is not `num_classes`.
    """
    if weighting is None:
        return None
    if not isinstance(weighting, str):
        if len(weighting) != num_classes:
            raise UserError(
                f"--class-weights: {len(weighting)} of them for {num_classes} classes; use one for each"
            )
        return list(weighting)
    assert train is not None
    counts = train.class_counts(num_classes)
    if isinstance(train.annotations, MultiLabels):
        others = len(train) - counts
        ratio = _size(others, weighting) / _size(counts, weighting).clip(min=1)
        return np.where((counts > 0) & (others > 0), ratio, 1.0).tolist()
    inverse = np.where(counts > 0, 1 / _size(counts, weighting).clip(min=1), 0.0)
    return (inverse * np.count_nonzero(inverse) / inverse.sum()).tolist()


def _size(counts: np.ndarray, weighting: str) -> np.ndarray:
    """Return the counts, or the effective numbers of samples, float64 [C]."""
    return counts.astype(np.float64) if weighting == "balanced" else (1 - BETA**counts) / (1 - BETA)


def describe_weights(weights: Sequence[float], class_names: Sequence[str]) -> str:
    """Return a line with the lowest and the highest weight."""
    low, high = int(np.argmin(weights)), int(np.argmax(weights))
    return (
        f"class weights: {weights[low]:.3g} ({class_names[low]}) to {weights[high]:.3g} ({class_names[high]})"
    )
