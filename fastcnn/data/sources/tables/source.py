"""Sources of images whose labels are in a table: `--labels`, or metadata as in Hugging Face's ImageFolder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastcnn import files
from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.label_files import BadLabels
from fastcnn.data.sources.layout import Phase, child, folders, phase_of, phases
from fastcnn.data.sources.parts import unwrap
from fastcnn.data.sources.splits import check_shares, split_off
from fastcnn.data.sources.tables.columns import Columns, choose_columns, guessed_labels, phase_in
from fastcnn.data.sources.tables.file_index import FileIndex, phase_of_path
from fastcnn.data.sources.tables.files import Table, read_table
from fastcnn.data.sources.tables.label_columns import LabelSets, rarest, read_labels, targets_of
from fastcnn.data.sources.walk import and_more, image_files
from fastcnn.data.targets import MultiLabels
from fastcnn.errors import UserError

PHASES: tuple[Phase, ...] = ("train", "val", "test")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table of a data set, with the images that it names."""

    table: Table
    index: FileIndex
    columns: Columns
    phase: Phase | None
    """Phase of all rows, if the table is of one."""


class Row(NamedTuple):
    """A row whose image was found."""

    part: Part
    number: int
    path: str
    phase: Phase | None = None

    @property
    def where(self) -> str:
        return self.part.table.where(self.number)

    def cell(self, column: str) -> Any:
        """Return a cell; None if the table lacks the column."""
        cells = self.part.table.columns.get(column)
        return None if cells is None else cells[self.number]


def read_labels_file(root: Path, settings: DataSettings, seed: int) -> Source:
    """Read a folder of images with the table of `--labels`.

    Args:
        seed: seed of the run, for the splits.

    Raises:
        UserError: no such table, ambiguous columns, or rows that do not fit the images.
    """
    path = files.expand_user(settings.labels or "", "--labels")
    path = path if path.exists() or path.is_absolute() else root / path
    if not path.is_file():
        raise UserError(f"--labels {settings.labels}: no such file; use the path of a table")
    bad = BadLabels()
    table, index = read_table(path, bad), FileIndex(root, image_files(root), phase_of(path.stem))
    part = Part(table=table, index=index, columns=choose_columns(table, index, settings), phase=None)
    return _source(root, [part], bad, settings, seed)


def read_metadata(root: Path, settings: DataSettings, seed: int) -> Source | tuple[str, ...]:
    """Read a folder with metadata as in Hugging Face's ImageFolder: a column `file_name`, and labels.

    The metadata lies in the folder, or in those of the phases.

    Returns:
        The source; without metadata of labels remarks on it, if there is any.
    """
    bad = BadLabels()
    inner = unwrap(root)
    found: dict[Phase | None, Path | None] = {None: child(inner, METADATA)}
    if found[None] is None:
        found = {phase: child(folder, METADATA) for phase, folder in phases(inner).items()}
    tables = [(read_table(path, bad), phase) for phase, path in found.items() if path is not None]
    if not tables:
        return ()
    tables.sort(key=lambda table: table[1] != "train")
    first, phase = tables[0]
    if phase not in (None, "train"):
        return (f"skipped: {first.path}: there is none for training",)
    if settings.file_column is None and "file_name" not in first.columns:
        return (f"skipped: {first.path} has no column file_name",)
    has_labels = settings.label_column or guessed_labels(first, ("file_name",), only_by_name=True)
    if not has_labels and any(folders(table.path.parent) for table, _ in tables):
        return (f"skipped: {first.path} has no column label, among {first.names()}",)
    settings = dataclasses.replace(settings, file_column=settings.file_column or "file_name")
    indices = [FileIndex(path.parent, image_files(path.parent)) for path in (t.path for t, _ in tables)]
    columns = choose_columns(first, indices[0], settings)
    parts = [
        Part(table=table, index=index, columns=columns, phase=of_table)
        for (table, of_table), index in zip(tables, indices)
    ]
    return _source(root, parts, bad, settings, seed)


def _source(root: Path, parts: Sequence[Part], bad: BadLabels, settings: DataSettings, seed: int) -> Source:
    """Build the source of the rows of all tables."""
    rows = [row for part in parts for row in _found_rows(part, bad)]
    columns, table = parts[0].columns, parts[0].table
    try:
        cells = {name: [row.cell(name) for row in rows] for name in columns.labels}
        labels = read_labels(cells, table.path.name)
    except UserError:
        bad.apply(settings.bad_labels)  # rows that cannot be read come first
        raise
    chosen, remarks = _choose_rows(rows, labels, bad)
    remarks = [columns.describe(table), *labels.remarks, *remarks, *bad.apply(settings.bad_labels)]
    remarks += _unlisted(parts, rows)
    if columns.split is None and len({row.phase for row in rows}) > 1:
        remarks.append(f"{table.path.name}: phases by the folders of the images")

    place = {phase: [k for k, i in enumerate(chosen) if rows[i].phase == phase] for phase in PHASES}
    if not place["train"]:
        raise UserError(f"{table.path}: no images to train on; write train for some in a column split")
    names = {phase: f"{phase} images in {table.path.name}" if place[phase] else "" for phase in PHASES}
    check_shares(settings, val=names["val"], test=names["test"], expected="a column split with train and val")
    whole = _split(rows, chosen, labels, folder=root, upright=settings.exif == "upright")
    split = {phase: whole.take(np.array(at, dtype=np.int64)) if at else None for phase, at in place.items()}
    assert split["train"] is not None
    groups = None
    if columns.group is not None:
        groups = [str(rows[chosen[k]].cell(columns.group)) for k in place["train"]]
    splits = split_off(split["train"], settings, seed, val=split["val"], test=split["test"], groups=groups)
    return Source(
        name=root.resolve().name,
        train=splits.train,
        val=splits.val,
        test=splits.test,
        class_names=labels.class_names,
        native_size=native_size(splits.train),
        remarks=(*remarks, *splits.remarks),
    )


def _found_rows(part: Part, bad: BadLabels) -> list[Row]:
    """Return the rows whose images are there; add the others to `bad`."""
    table, column = part.table, part.columns.file
    rows = []
    cells = table.column(column, "--file-column")
    for number, cell in enumerate(cells):
        path, reason = part.index.find(cell)
        row = Row(part, number, path)
        if path:
            rows.append(row)
        else:
            bad.add(row.where, reason)
    if not rows:
        raise UserError(
            f"{table.path}: no row names an image of {part.index.root} in column {column}, such as "
            f"{cells[0]!r}; correct --data, or name another column by --file-column"
        )
    return _with_phases(part, rows, bad)


def _with_phases(part: Part, rows: Sequence[Row], bad: BadLabels) -> list[Row]:
    """Return the rows with their phases: by column, of the table, or by folder; all training without any."""
    column = part.columns.split
    if part.phase is not None:
        return [row._replace(phase=part.phase) for row in rows]
    if column is None:
        found = [phase_of_path(part.index.relative(row.path)) for row in rows]
        is_parted = None not in found and len(set(found)) > 1 and "train" in found
        return [row._replace(phase=phase if is_parted else "train") for row, phase in zip(rows, found)]
    parted = [row._replace(phase=phase_in(row.cell(column), column)) for row in rows]
    for row in parted:
        if row.phase is None:
            bad.add(row.where, f"{row.cell(column)!r} in column {column} is not train, val or test")
    return [row for row in parted if row.phase is not None]


def _choose_rows(rows: Sequence[Row], labels: LabelSets, bad: BadLabels) -> tuple[list[int], list[str]]:
    """Return the rows with labels, one for each image, and remarks; add contradictions to `bad`.

    Test images without labels, as of a competition, are left out.
    """
    no_test = not any(labels.rows[i] for i, row in enumerate(rows) if row.phase == "test")
    first: dict[str, int] = {}
    wrong, repeated, unlabeled = set(), 0, 0
    for i, row in enumerate(rows):
        if row.phase == "test" and (no_test or labels.rows[i] is None):
            unlabeled += 1
            continue
        if labels.rows[i] is None:
            bad.add(row.where, "no label")
            continue
        before = first.setdefault(row.path, i)
        contradiction = _contradiction(rows, labels, before, i)
        if contradiction:
            bad.add(row.where, contradiction)
            wrong.add(row.path)
        elif before != i:
            repeated += 1
    remarks = [f"skipped test images without label: {unlabeled:,}"] if unlabeled else []
    remarks += [f"skipped repeated rows: {repeated:,}"] if repeated else []
    return [i for path, i in first.items() if path not in wrong], remarks


def _contradiction(rows: Sequence[Row], labels: LabelSets, i: int, j: int) -> str:
    """Return how two rows of one image differ; "" if they do not."""
    before, row = rows[i], rows[j]
    name = row.part.index.relative(row.path)
    if set(labels.rows[i] or ()) != set(labels.rows[j] or ()):
        old, new = (", ".join(labels.rows[k] or ()) or "without label" for k in (i, j))
        return f"{name} is {new} here, and {old} in {before.where}"
    if before.phase != row.phase:
        return f"{name} is in {row.phase} here, and in {before.phase} in {before.where}"
    return ""


def _split(
    rows: Sequence[Row], chosen: Sequence[int], labels: LabelSets, *, folder: Path, upright: bool
) -> Split:
    """Return the images of the chosen rows with their labels."""
    files = scan(str(folder.resolve()), [rows[i].path for i in chosen], upright=upright)
    labels_of = [labels.rows[i] or () for i in chosen]
    if labels.multi_label:
        values = targets_of(labels_of, labels.class_names)
        return Split(rarest(values), files, annotations=MultiLabels(values))
    number = {name: i for i, name in enumerate(labels.class_names)}
    return Split(np.array([number[label] for (label,) in labels_of], dtype=np.int64), files)


def _unlisted(parts: Sequence[Part], rows: Sequence[Row]) -> list[str]:
    """Return remarks on images that no table lists."""
    listed = {row.path for row in rows}
    remarks = []
    for part in parts:
        others = [path for path in part.index.paths if path not in listed]
        if others:
            remarks.append(f"skipped: {others[0]} is not listed in {part.table.path.name}{and_more(others)}")
    return remarks
