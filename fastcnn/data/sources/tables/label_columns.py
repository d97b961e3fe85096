"""Classes of images from the label columns of a table: one label an image, or several."""

from __future__ import annotations

import ast
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcnn.errors import UserError

SEPARATORS = (";", "|")
"""Characters between several labels in a cell."""
MISSING = ("", "nan")
"""Cells without a label, in lower case."""
YES, NO = ("1", "true", "yes"), ("0", "false", "no")
MAX_REGRESSION_CLASSES = 20
"""Distinct fractional numbers above which a column is no list of classes."""

Labels = tuple[str, ...] | None
"""Labels of a row; None for a row without any."""


@dataclass(frozen=True, kw_only=True)
class LabelSets:
    """Labels of the rows of a table."""

    rows: list[Labels]
    multi_label: bool
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def read_labels(columns: Mapping[str, Sequence[Any]], table: str) -> LabelSets:
    """Read the labels of all rows.

    Args:
        columns: the label columns: one with names or numbers, or one with 0 or 1 for each class.
        table: name of the table, for messages.

    Raises:
        UserError: cells that are no labels of classes.
    """
    for name, cells in columns.items():
        if any(isinstance(cell, dict) for cell in cells):
            raise UserError(
                f"{table}: column {name} holds objects, not labels; name another by --label-column"
            )
    if len(columns) > 1:
        return _read_flags(columns, table)
    ((name, cells),) = columns.items()
    where = f"{table}: column {name}"
    rows, separator = _split(cells)
    rows, remarks = _normalized(rows, where)
    multi_label = any(row is not None and len(row) != 1 for row in rows)
    if multi_label:
        rows = [row or () for row in rows]
        between = f", separated by {separator}" if separator else ""
        remarks.insert(0, f"{where} holds several labels an image{between}: multi-label classification")
        remarks += _unlabeled(rows)
    counts = Counter(label for row in rows for label in row or ())
    if not multi_label:
        _check_classes(counts, where)
        remarks += _maybe_several(counts, where)
    remarks += _same_but_case(counts)
    names = tuple(sorted(counts, key=_number_or_name(counts)))
    return LabelSets(rows=rows, multi_label=multi_label, class_names=names, remarks=tuple(remarks))


def is_flag_column(cells: Iterable[Any]) -> bool:
    """Return whether all cells are 0 or 1, true or false."""
    return all(_text(cell).lower() in YES + NO for cell in cells)


def _read_flags(columns: Mapping[str, Sequence[Any]], table: str) -> LabelSets:
    """Read one 0/1 column for each class; images with exactly one class each have one label."""
    flags = []
    for name, cells in columns.items():
        words = [_text(cell).lower() for cell in cells]
        other = next((word for word in words if word not in (*YES, *NO, *MISSING)), None)
        if other is not None:
            raise UserError(
                f"{table}: column {name} holds {other!r}; with several label columns each cell is 0 or 1"
            )
        flags.append([None if word in MISSING else word in YES for word in words])
    names = tuple(columns)
    rows: list[Labels] = [
        None if None in row else tuple(name for name, has in zip(names, row) if has) for row in zip(*flags)
    ]
    labeled = [row for row in rows if row is not None]
    multi_label = any(len(row) != 1 for row in labeled)
    remarks = [f"{table}: a column for each of {len(names)} classes: multi-label classification"]
    if not multi_label:
        remarks = [f"{table}: each image has exactly one of {len(names)} columns: they are the classes"]
    remarks += _unlabeled(labeled)
    return LabelSets(rows=rows, multi_label=multi_label, class_names=names, remarks=tuple(remarks))


def _split(cells: Sequence[Any]) -> tuple[list[Labels], str]:
    """Return the labels of each cell, None for a missing one, and the separator that was found."""
    if any(isinstance(cell, (list, tuple)) for cell in cells):
        return [_of_list(cell) for cell in cells], ""
    texts = [_text(cell) for cell in cells]
    filled = [text for text in texts if text.lower() not in MISSING]
    if filled and all(text.startswith("[") and text.endswith("]") for text in filled):  # written by pandas
        return [_of_list(_literal(text)) for text in texts], ""
    separator = next((s for s in SEPARATORS if any(s in text for text in filled)), "")
    rows: list[Labels] = []
    for text in texts:
        if text.lower() in MISSING:
            rows.append(None)
        elif separator:
            rows.append(tuple(part.strip() for part in text.split(separator) if part.strip()))
        else:
            rows.append((text,))
    return rows, separator


def _of_list(cell: Any) -> Labels:
    if isinstance(cell, (list, tuple)):
        return tuple(text for item in cell if (text := _text(item)).lower() not in MISSING)
    text = _text(cell)
    return None if text.lower() in MISSING else (text,)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # [a, b] without quotes
        return [part.strip(" '\"") for part in text[1:-1].split(",")]


def _text(cell: Any) -> str:
    """Return a cell as text; whole numbers without a decimal point."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    text = str(cell).strip()
    whole, point, zeros = text.partition(".")
    return whole if point and zeros.strip("0") == "" and whole.lstrip("-").isdecimal() else text


def _normalized(rows: list[Labels], where: str) -> tuple[list[Labels], list[str]]:
    """Return the rows with labels in Unicode's composed form, and a remark if that joins two forms."""
    forms = {label: unicodedata.normalize("NFC", label) for row in rows for label in row or ()}
    joined = len(forms) - len(set(forms.values()))
    remarks = [f"{where}: {joined} labels in two Unicode forms, which are one class"] if joined else []
    unique = [None if row is None else tuple(dict.fromkeys(forms[label] for label in row)) for row in rows]
    return unique, remarks


def _check_classes(counts: Counter[str], where: str) -> None:
    """Raise UserError for a column that does not hold classes."""
    numbers = [value for label in counts if (value := _as_number(label)) is not None]
    fractions = sum(not value.is_integer() for value in numbers)
    if len(numbers) == len(counts) > MAX_REGRESSION_CLASSES and fractions:
        raise UserError(
            f"{where} holds {len(counts)} different numbers, such as {next(iter(counts))!r}: a regression "
            "target, not classes; name another with --label-column, or write classes"
        )
    if len(counts) == counts.total() > MAX_REGRESSION_CLASSES:
        raise UserError(
            f"{where} holds another value in each of {len(counts)} rows, such as {next(iter(counts))!r}: "
            "no classes; name another with --label-column"
        )
    if len(counts) == 1:
        raise UserError(f"{where}: one class only, {next(iter(counts))!r}; classification needs two")
    if not counts:
        raise UserError(f"{where} is empty; name another with --label-column")


def _maybe_several(counts: Counter[str], where: str) -> list[str]:
    """Return a warning if the labels look like combinations of few words."""
    for separator, name in ((",", "commas"), (" ", "spaces")):
        parts = {label: [p for p in label.split(separator) if p.strip()] for label in counts}
        several = [label for label, found in parts.items() if len(found) > 1]
        words = Counter(part.strip() for found in parts.values() for part in found)
        alone = sum(part in counts for label in several for part in map(str.strip, parts[label]))
        total = sum(len(parts[label]) for label in several)
        known = len(words) < len(counts) and alone >= total / 2
        if several and (known or 2 * len(words) <= len(counts)):
            return [
                f"warning: {where}: {several[0]!r} and the like are classes of their own; if {name} separate "
                "several labels, write ; between them"
            ]
    return []


def _same_but_case(counts: Counter[str]) -> list[str]:
    """Return a warning on classes that differ in case only."""
    by_case: dict[str, list[str]] = {}
    for label in counts:
        by_case.setdefault(label.casefold(), []).append(label)
    return [
        f"warning: the classes {' and '.join(same)} differ in case only; write them alike if they are one"
        for same in by_case.values()
        if len(same) > 1
    ]


def _unlabeled(rows: Sequence[Labels]) -> list[str]:
    count = sum(not row for row in rows)
    return [f"images without label: {count:,}"] if count else []


def _as_number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _number_or_name(labels: Iterable[str]) -> Any:
    """Return the sort key of class names: by number if all are whole numbers, else by name."""
    if all(label.lstrip("-").isdecimal() for label in labels):
        return lambda label: (int(label), label)
    return None


def targets_of(rows: Sequence[Sequence[str]], class_names: Sequence[str]) -> np.ndarray:
    """Return the labels of each row as 0 or 1 for each class, uint8 [N, C]."""
    number = {name: i for i, name in enumerate(class_names)}
    values = np.zeros((len(rows), len(class_names)), dtype=np.uint8)
    for i, row in enumerate(rows):
        values[i, [number[label] for label in row]] = 1
    return values


def rarest(values: np.ndarray) -> np.ndarray:
    """Return the rarest class of each image, int64 [N]; C for images without any.

    Args:
        values: 0 or 1 for each class, [N, C].
    """
    classes = np.argsort(values.sum(axis=0, dtype=np.int64), kind="stable")  # the rarest first
    ordered = values[:, classes]
    return np.where(ordered.any(axis=1), classes[ordered.argmax(axis=1)], len(classes))
