"""Read tables of any usual format: CSV with any delimiter, TSV, JSON lines, JSON and Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcnn.data.reading import read_file
from fastcnn.data.sources.label_files import BadLabels
from fastcnn.data.sources.text import lines_of
from fastcnn.data.sources.walk import IMAGE_SUFFIXES
from fastcnn.errors import UserError

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
DELIMITERS = (",", ";", "\t", "|")
SAMPLE = 50
"""Rows by which the delimiter is chosen."""
MAX_CELLS = 100_000_000
"""Max cells of a table whose file may be much smaller: compressed, or of objects with few keys each."""

Row = tuple[int, list[Any]]
"""Number of the first line, and the cells."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in memory."""

    path: Path
    columns: dict[str, list[Any]]
    """Cells of each column: stripped text; in JSON and Parquet also numbers, booleans, lists and None."""
    lines: Sequence[int]
    """Number of each row in the file, for messages."""
    has_header: bool = True
    """Without a header the columns are named "1", "2", ..."""

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Return the place of a row for messages."""
        return f"{self.path}, {'row' if self.path.suffix.lower() == '.parquet' else 'line'} {self.lines[row]}"

    def column(self, name: str, flag: str) -> list[Any]:
        """Return the cells of a column that `flag` names; UserError without such a column."""
        if name in self.columns:
            return self.columns[name]
        raise UserError(f"{flag} {name}: {self.path} has no such column; use one of {self.names()}")

    def names(self) -> str:
        """Return the names of the columns for messages."""
        names = list(self.columns)
        return ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")


def read_table(path: Path, bad: BadLabels) -> Table:
    """Read a table by the suffix of its name.

    Args:
        bad: receives rows that cannot be read.

    Raises:
        UserError: no such file, another format, or no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"--labels {path}: not a table that is read; use .csv, .tsv, .jsonl or .parquet")
    if suffix == ".parquet":
        table = _read_parquet(path)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        table = _read_json(path, bad)
    else:
        table = _read_csv(path, bad)
    if not len(table):
        raise UserError(f"{path}: no rows; write a line for each image, below the names of the columns")
    return table


def _read_csv(path: Path, bad: BadLabels) -> Table:
    lines = lines_of(path)
    first = 0
    delimiters = [*DELIMITERS, " "] if path.suffix.lower() == ".txt" else list(DELIMITERS)
    if lines and (stated := re.fullmatch(r"sep=(.)", lines[0].strip())):  # written by Excel
        delimiters, first = [stated[1]], 1
    delimiter = _delimiter(lines[first : first + SAMPLE], delimiters)
    rows = _rows(lines[first:], delimiter, path)
    number, header = next(rows, (0, []))
    if len(header) == 1 and delimiter is None:
        raise UserError(f"{path}: one column only, {header[0]!r}; separate columns by a comma, ; or a tab")
    has_header = not any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in header)
    names = _names(header, path) if has_header else [str(i + 1) for i in range(len(header))]
    cells: list[list[Any]] = []
    numbers = []
    for line, row in rows if has_header else _chained((number, header), rows):
        if len(row) < len(names) or any(row[len(names) :]):
            bad.add(f"{path}, line {line + first}", f"{len(row)} in place of {len(names)} cells")
            continue
        cells.append(row)
        numbers.append(line + first)
    columns = {name: [row[i] for row in cells] for i, name in enumerate(names)}
    return Table(path=path, columns=columns, lines=numbers, has_header=has_header)


def _chained(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _rows(lines: Sequence[str], delimiter: str | None, path: Path) -> Iterator[Row]:
    """Yield the rows that are not empty, with the numbers of their first lines."""
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter or ",", skipinitialspace=True)
    unclosed = sum(line.count('"') for line in lines) % 2 == 1
    before = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if unclosed and reader.line_num == len(lines) > before + 1:
                raise UserError(f"{path}, line {before + 1}: a quote that is not closed; correct it")
            if any(cells):
                yield before + 1, cells
            before = reader.line_num
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}; correct it") from error


def _delimiter(lines: Sequence[str], candidates: Sequence[str]) -> str | None:
    """Return the delimiter that gives the same number of columns in most rows; None for one column."""
    best, score = None, (0.0, 0)
    for delimiter in candidates:
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row]
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 0
        if width > 1:
            share = sum(len(row) == width for row in rows) / len(rows)
            if (share, width) > score:
                best, score = delimiter, (share, width)
    return best


def _names(header: Sequence[str], path: Path) -> list[str]:
    names = [name.lstrip("#").strip() or f"column {i + 1}" for i, name in enumerate(header)]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are named {twice}; rename one")
    return names


def _read_json(path: Path, bad: BadLabels) -> Table:
    if path.suffix.lower() == ".json":
        objects = list(enumerate(_objects(path), 1))
    else:
        objects = []
        for number, line in enumerate(lines_of(path), 1):
            try:
                value = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                value = line
            if isinstance(value, dict):
                objects.append((number, value))
            elif value is not None:
                bad.add(f"{path}, line {number}", "not a JSON object")
    names = list(dict.fromkeys(name for _, row in objects for name in row))
    _check_cells(path, len(names), len(objects))
    columns: dict[str, list[Any]] = {name: [None] * len(objects) for name in names}
    for i, (_, row) in enumerate(objects):
        for name, cell in row.items():
            columns[name][i] = _stripped(cell)
    return Table(path=path, columns=columns, lines=[number for number, _ in objects])


def _objects(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON file: a list of them, or an object of file names and labels."""
    try:
        content = json.loads("\n".join(lines_of(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}; correct it") from error
    if isinstance(content, dict) and not any(isinstance(value, dict) for value in content.values()):
        return [{"file": name, "label": value} for name, value in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{path}: neither a list of objects nor an object of files and labels; use .jsonl")
    return content


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"--labels {path}: needs a package: pip install pyarrow") from error
    try:
        encoded = read_file(path)
        stated = parquet.read_metadata(pyarrow.BufferReader(encoded))
        _check_cells(path, stated.num_columns, stated.num_rows)
        content = parquet.read_table(pyarrow.BufferReader(encoded)).to_pydict()
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise UserError(f"{path}: {reason}; correct the path or the file") from error
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a Parquet file that pyarrow reads: {reason}") from error
    columns = {name: [_stripped(cell) for cell in cells] for name, cells in content.items()}
    rows = len(next(iter(columns.values()), []))
    return Table(path=path, columns=columns, lines=range(1, rows + 1))


def _check_cells(path: Path, columns: int, rows: int) -> None:
    """Raise UserError for a table that takes far more memory than its file."""
    if columns * rows > MAX_CELLS:
        raise UserError(f"{path}: {columns:,} columns of {rows:,} rows; keep those of images and labels")


def _stripped(cell: Any) -> Any:
    return cell.strip() if isinstance(cell, str) else cell
