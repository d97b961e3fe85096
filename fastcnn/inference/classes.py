"""The classes of data by the numbers that a trained network gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.targets import IGNORE, Boxes, Masks, MultiLabels
from fastcnn.errors import UserError
from fastcnn.viz.pictures import printable

NAMED_AT_MOST = 5
"""Max classes that a message names."""


def with_numbers_of(source: Source, class_names: Sequence[str], *, data: str, file: object) -> Source:
    """Return the data with the class numbers of a network, matched by name.

    The data may lack classes of the network, and have them in another order.

    Args:
        class_names: names of the network's classes, as of `Trained`.
        data, file: value of `--data` and the network's file, for the message.

    Raises:
        UserError: a class of the data is none of the network's.
    """
    names = [printable(name) for name in source.class_names]
    numbers = {name: number for number, name in enumerate(class_names)}
    if names == list(class_names[: len(names)]):
        return source.with_classes(len(class_names))
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise UserError(
            f"--data {data}: its classes are not those of {file}: no {_some(unknown)} among "
            f"{_some(class_names)}; rename or remove them"
        )
    chosen = np.array([numbers[name] for name in names], dtype=np.int64)

    def renumbered(split: Split) -> Split:
        return _renumbered(split, chosen, len(class_names))

    return dataclasses.replace(
        source,
        train=renumbered(source.train),
        val=renumbered(source.val),
        test=None if source.test is None else renumbered(source.test),
        class_names=tuple(class_names),
    )


def _renumbered(split: Split, numbers: np.ndarray, count: int) -> Split:
    """Return a split with the class `numbers[i]` in place of class i, of `count` classes."""
    targets = split.annotations
    if targets is None or isinstance(targets, MultiLabels):
        split = dataclasses.replace(split, labels=numbers[split.labels])
    if isinstance(targets, MultiLabels):
        values = np.zeros((len(split), count), dtype=np.uint8)
        values[:, numbers] = targets.values
        targets = MultiLabels(values)
    elif isinstance(targets, Masks):
        table = np.arange(IGNORE + 1, dtype=np.uint8)
        table[: len(numbers)] = numbers
        table[IGNORE] = IGNORE
        targets = Masks(table[targets.table], targets.stored)
    elif isinstance(targets, Boxes):
        rows = targets.values.copy()
        rows[:, 0] = numbers[rows[:, 0].astype(np.int64)]
        targets = Boxes(targets.first, rows)
    return dataclasses.replace(split, annotations=targets)


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more:,} more" if more > 0 else "")
