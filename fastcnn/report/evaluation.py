"""Results of `fastcnn evaluate` beside a checkpoint: figures, tables and pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcnn.report import words

FOLDER, METRICS = "evaluation", "metrics.json"
MAX_BYTES = 20_000_000
SKIPPED = {"kind", "format", "fastcnn", "files"}
"""Keys that are not shown."""
MAX_FIGURES, MAX_ROWS, MAX_COLUMNS, MAX_PICTURES, MAX_TABLES, MAX_FOLDERS = 40, 100, 10, 12, 8, 3


@dataclass(frozen=True)
class Table:
    """Rows of texts, such as a row for each class."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left_out: int
    """Further rows of the file."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Content of an evaluation's folder."""

    name: str
    metrics: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    """Further names and values."""
    tables: list[Table]
    pictures: list[Path]
    note: str = ""
    """Line about a damaged file."""


def read_evaluations(run: Path) -> list[Evaluation]:
    """Read the evaluations in a run's folder: at most MAX_FOLDERS."""
    try:
        folders = sorted(path for path in run.glob(f"{FOLDER}*") if path.is_dir())
    except OSError:
        return []
    return [_read(folder) for folder in folders[:MAX_FOLDERS]]


def _read(folder: Path) -> Evaluation:
    name = words.plain(folder.name)
    try:
        pictures = sorted(path for path in folder.iterdir() if path.suffix == ".png")[:MAX_PICTURES]
        path = folder / METRICS
        fits = path.is_file() and path.stat().st_size <= MAX_BYTES
        content = json.loads(path.read_bytes()) if fits else None
    except (OSError, ValueError, RecursionError):
        return _empty(name, f"{METRICS} is damaged, and skipped")
    if not isinstance(content, dict):
        return _empty(name, f"it has no usable {METRICS}")
    metrics = content.pop("metrics", None)
    shown = [(key, _metric(key, v)) for key, v in metrics.items()] if isinstance(metrics, dict) else []
    facts: list[tuple[str, str]] = []
    tables: list[Table] = []
    for key, value in content.items():
        if key not in SKIPPED:
            _collect(words.plain(key).replace("_", " "), value, facts, tables)
    return Evaluation(
        name=name,
        metrics=shown[:MAX_FIGURES],
        facts=facts[:MAX_FIGURES],
        tables=tables[:MAX_TABLES],
        pictures=pictures,
    )


def _empty(name: str, note: str) -> Evaluation:
    return Evaluation(name=name, metrics=[], facts=[], tables=[], pictures=[], note=note)


def _metric(name: str, value: object) -> str:
    """Format a metric: in percent, but for the loss."""
    return f"{value:.2f}%" if isinstance(value, float) and name != "loss" else _shown(value)


def _collect(name: str, value: Any, facts: list[tuple[str, str]], tables: list[Table]) -> None:
    """Add a value of the file where it fits; leave out what is neither a scalar nor a table."""
    if _is_scalar(value):
        facts.append((name, _shown(value)))
    elif isinstance(value, dict) and value:
        if all(isinstance(row, dict) for row in value.values()):
            tables.append(_table(name, [{"name": key, **row} for key, row in value.items()]))
        elif len(value) <= MAX_FIGURES:
            facts += [(words.plain(key), _shown(v)) for key, v in value.items() if _is_scalar(v)]
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        tables.append(_table(name, value))


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = [str(key) for key, value in rows[0].items() if _is_scalar(value)][:MAX_COLUMNS]
    texts = [[_shown(row.get(column)) for column in columns] for row in rows[:MAX_ROWS]]
    return Table(title, columns, texts, max(0, len(rows) - MAX_ROWS))


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) < 1e15 else f"{value:.4g}" if abs(value) < 1e300 else "?"
    return words.value(value) if _is_scalar(value) else ""
