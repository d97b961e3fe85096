"""Interface between the evaluation and the judges of the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastcnn.data.batch import Batch
from fastcnn.data.sources.dataset import Split
from fastcnn.inference.trained import Trained
from fastcnn.runtime.distributed import gather_to_main

Rows = TypeVar("Rows", bound=tuple[Any, ...])


class Sample(NamedTuple):
    """A sample of a picture."""

    pixels: np.ndarray
    """uint8 [H, W, 3]"""
    prediction: np.ndarray
    """Element of `Task.predict`."""
    target: np.ndarray
    """Element of `Batch.targets`."""


class Shown(NamedTuple):
    """A picture of some samples."""

    file: str
    """Name of the PNG."""
    samples: Sequence[int]
    """Their numbers in the split, in the order of the picture."""
    draw: Callable[[Sequence[Sample]], Any]
    """Returns the picture."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Results of a task on all images."""

    metrics: dict[str, float | None]
    """In percent, except a loss; None if undefined, as the precision of a class that is never predicted."""
    per_class: list[dict[str, Any]]
    """One entry per class: name, count, and its metrics in percent."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further keys of metrics.json, in types of JSON."""
    tables: dict[str, list[list[Any]]] = field(default_factory=dict)
    """Rows of CSV files by their names; the first one is the heading."""
    figures: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """Functions that draw figures, by the names of their PNGs."""
    pictures: tuple[Shown, ...] = ()
    lines: tuple[str, ...] = ()
    """Further lines for the terminal."""


class Judge(Protocol):
    """Collect the predictions of a task on one rank, and judge those of all ranks."""

    task: str
    """Name of the task in metrics.json."""
    predictions_suffix: str
    """Ending of a file of predictions."""

    def add(self, outputs: object, batch: Batch, samples: np.ndarray) -> None:
        """Add the real samples of a batch.

        Args:
            samples: numbers of the samples of the batch, int64 [N], in the order of the split.
        """

    def rows(self) -> tuple[Any, ...]:
        """Return the predictions so far, as a named tuple of arrays and lists with a row per sample."""

    def judge(self, rows: Any, trained: Trained, split: Split) -> Findings:
        """Return the findings on the predictions of all ranks, which are not empty."""

    def predictions(self, rows: Any, trained: Trained, split: Split) -> Any:
        """Return the predictions as rows of CSV, or as a JSON value."""


class Parts:
    """Values of the real samples of all batches."""

    def __init__(self) -> None:
        self._samples: list[np.ndarray] = []
        self._masks: list[Tensor] = []
        self._values: list[tuple[Tensor, ...]] = []

    def add(self, samples: np.ndarray, mask: Tensor, *values: Tensor) -> None:
        """Add a batch; does not wait for the device.

        Args:
            samples: numbers of the samples, int64 [N].
            mask: True for real samples, bool [N].
            values: [N, ...] each.
        """
        self._samples.append(samples)
        self._masks.append(mask)
        self._values.append(values)

    def joined(self) -> tuple[np.ndarray, list[Tensor]]:
        """Return the numbers of the real samples, and their values on the CPU."""
        real = torch.cat(self._masks).cpu()
        values = [torch.cat(parts).cpu()[real] for parts in zip(*self._values)]
        return np.concatenate(self._samples)[real.numpy()], values


def over_ranks(rows: Rows) -> Rows | None:
    """Return the rows of all ranks in the order of the split, on rank 0; None elsewhere. Collective."""
    parts = gather_to_main(rows)
    return type(rows)(*map(_joined, zip(*parts))) if parts else None


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [row for part in parts for row in part]


def percent(numerator: np.ndarray, denominator: np.ndarray) -> list[float | None]:
    """Return 100 * numerator / denominator, None for a denominator of 0."""
    return [100 * a / b if b else None for a, b in zip(numerator.tolist(), denominator.tolist())]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are defined; None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
