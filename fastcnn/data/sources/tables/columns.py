"""Choose the columns of a table: files, labels and phases, by their usual names and by what they hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.layout import Phase, phase_of
from fastcnn.data.sources.tables.file_index import FileIndex, is_image_name
from fastcnn.data.sources.tables.files import Table
from fastcnn.data.sources.tables.label_columns import is_flag_column
from fastcnn.errors import UserError

FILE_NAMES = (
    *("filename", "file", "filepath", "path", "imagepath", "imgpath", "imagefile", "imagefilename"),
    *("imagename", "imgname", "image", "img", "picture", "photo", "imageid", "imgid", "fileid", "idcode"),
    *("isicid", "id"),
)
"""Usual names of the column of files, in lower case without other characters."""
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "classname", "labelname", "classid", "labelid", "category"),
    *("categories", "categoryname", "categoryid", "target", "targets", "tag", "tags", "y"),
    *("breed", "species", "diagnosis", "dx"),
)
"""Usual names of the column of labels."""
SPLIT_NAMES = (
    *("split", "datasplit", "set", "subset", "phase", "partition", "usage"),
    *("istrain", "isvalid", "isval", "istest"),
)
"""Usual names of the column of phases."""
INDEX_NAMES = ("", "index", "unnamed0", "column1")
"""Names of columns that only number the rows."""
SAMPLE = 200
"""Rows by which the column of files is recognized."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns that are used."""

    file: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None

    def describe(self, table: Table) -> str:
        """Return a line with the columns."""
        first = "the columns" if len(self.labels) > 1 else "column"
        labels = ", ".join(self.labels[:3]) + (", ..." if len(self.labels) > 3 else "")
        phases = "" if self.split is None else f", phases in column {self.split}"
        header = "" if table.has_header else " (there is no header)"
        return f"{table.path.name}: files in column {self.file}, labels in {first} {labels}{phases}{header}"


def choose_columns(table: Table, index: FileIndex, settings: DataSettings) -> Columns:
    """Choose the columns of a table by the settings, by usual names and by what the cells hold.

    Args:
        index: the images of the folder.

    Raises:
        UserError: no such column, or more than one that may be meant.
    """
    given = {"--file-column": settings.file_column, "--split-column": settings.split_column}
    for flag, name in given.items():
        if name is not None:
            table.column(name, flag)
    for name in settings.label_column or ():
        table.column(name, "--label-column")
    labels = settings.label_column or ()
    group = settings.group_by if settings.group_by in table.columns else None
    split = settings.split_column or _guessed_split(table, labels)
    file = settings.file_column or _guessed_file(table, index, others=(*labels, split))
    labels = labels or guessed_labels(table, (file, split, group))
    if not labels:
        raise UserError(
            f"{table.path}: no column is named label or class, among {table.names()}; name the one with the "
            "labels by --label-column"
        )
    return Columns(file=file, labels=labels, split=split, group=group)


def guessed_labels(
    table: Table, others: Sequence[str | None], *, only_by_name: bool = False
) -> tuple[str, ...]:
    """Return the columns of the labels, () if they are unknown.

    A column of a usual name; else all columns if each holds 0 or 1 only; else the only one.

    Args:
        others: columns that hold something else.
        only_by_name: a single column of another name holds no labels.

    Raises:
        UserError: several columns that may be meant.
    """
    rest = [name for name in table.columns if name not in others and _plain(name) not in INDEX_NAMES]
    named = [name for name in rest if _plain(name) in LABEL_NAMES]
    if len(named) > 1:
        named = _names_of_numbers(table, named)
    if len(named) > 1:
        raise UserError(
            f"{table.path}: columns {' and '.join(named)} may both be the labels; name one by --label-column"
        )
    if named:
        return (named[0],)
    if len(rest) > 1 and all(is_flag_column(table.columns[name]) for name in rest):
        return tuple(rest)
    return tuple(rest) if len(rest) == 1 and not only_by_name else ()


def phase_in(cell: Any, column: str) -> Phase | None:
    """Return the phase that a cell stands for; None for another cell."""
    word = "" if cell is None else str(cell).strip().lower()
    flag = re.fullmatch(r"is(valid|val|test|train)", _plain(column))
    if flag is None:
        return phase_of(word)
    rest: Phase = "val" if flag[1] == "train" else "train"
    return {"1": phase_of(flag[1]), "true": phase_of(flag[1]), "0": rest, "false": rest}.get(word)


def _guessed_file(table: Table, index: FileIndex, others: Sequence[str | None]) -> str:
    """Return the column of the files: of a usual name, else any in which most cells name another image."""
    free = [name for name in table.columns if name not in others and _plain(name) not in LABEL_NAMES]
    named = sorted((name for name in free if _plain(name) in FILE_NAMES), key=_rank)
    rows = range(0, len(table), max(1, len(table) // SAMPLE))
    found = {name: [index.find(table.columns[name][i])[0] for i in rows] for name in free}

    good = [name for name in named if sum(map(bool, found[name])) > len(rows) / 2]
    good = good or [name for name in free if len(set(found[name]) - {""}) > len(rows) / 2]
    good = [name for name in good if any(map(is_image_name, table.columns[name]))] or good
    if len(good) > 1 and any(found[name] != found[good[0]] for name in good):
        raise UserError(
            f"{table.path}: columns {' and '.join(good)} may both be the files; name one by --file-column"
        )
    good = good or [name for name in named if any(map(is_image_name, table.columns[name]))] or named
    if not good:
        raise UserError(
            f"{table.path}: no column names the images of {index.root}, among {table.names()}; correct "
            "--data, or name the column by --file-column"
        )
    return good[0]


def _guessed_split(table: Table, others: Sequence[str]) -> str | None:
    """Return the column of a usual name that holds phases; UserError if it holds something else too."""
    for name, cells in table.columns.items():
        if name in others or _plain(name) not in SPLIT_NAMES:
            continue
        phases = {cell: phase_in(cell, name) for cell in dict.fromkeys(map(str, cells))}
        if not any(phases.values()):
            continue
        other = next((cell for cell, phase in phases.items() if phase is None), None)
        if other is not None:
            raise UserError(
                f"{table.path}: column {name} holds {other!r} beside phases; use --split-column {name} with "
                "--bad-labels skip to leave it out, or rename the column"
            )
        return name
    return None


def _names_of_numbers(table: Table, names: list[str]) -> list[str]:
    """Return the column of class names, if the others number the same classes; else all columns."""
    cells = {name: list(map(str, table.columns[name])) for name in names}
    together = len(set(zip(*cells.values())))
    if any(len(set(column)) != together for column in cells.values()):
        return names
    words = [name for name in names if not all(cell.lstrip("-").isdecimal() for cell in cells[name])]
    return (words or names)[:1]


def _rank(name: str) -> int:
    return FILE_NAMES.index(_plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
