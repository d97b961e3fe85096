"""Read boxes of a table, one box a row: Roboflow's _annotations.csv and its kin."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcnn.data.reading import entries_of, read_file
from fastcnn.data.sources.boxes.rows import BoxSet, LabeledImages, Rows
from fastcnn.data.sources.label_files import IMAGE_FOLDERS, BadLabels, listed_classes, plain
from fastcnn.data.sources.layout import PHASE_WORDS, Phase, check_unique, child, phases
from fastcnn.data.sources.text import read_text_any, stated_side
from fastcnn.data.sources.walk import image_files
from fastcnn.errors import UserError

COLUMNS = {
    "file": ("filename", "file_name", "file", "image", "image_id", "imageid", "path", "image_path"),
    "class": ("class", "label", "name", "class_name", "labelname", "category"),
    "left": ("xmin", "x_min", "x1", "left"),
    "top": ("ymin", "y_min", "y1", "top"),
    "right": ("xmax", "x_max", "x2", "right"),
    "bottom": ("ymax", "y_max", "y2", "bottom"),
}
"""Usual names of the columns."""
SIZE = (("height", "image_height"), ("width", "image_width"))


def read_csv_set(root: Path, file: Path | None, bad: BadLabels) -> BoxSet | None:
    """Read tables with a header line and one box a row in pixels, in the folder or in those of the phases."""
    tables = {} if file is not None else _tables(root)
    if not tables:
        return None
    read = {phase: _read(path) for phase, path in tables.items()}
    names = {row["class"] for rows in read.values() for row in rows}
    class_names = listed_classes(root) or tuple(sorted(names - {""}))
    parts = {
        phase: _labeled(root, path, phase, read[phase], class_names, bad=bad)
        for phase, path in tables.items()
    }
    return BoxSet(parts=parts, class_names=class_names)


def _tables(root: Path) -> dict[Phase, Path]:
    """Return the tables of boxes by phase: in the phases' folders, else in the folder itself."""
    found = {phase: table for phase, folder in phases(root).items() if (table := _only_table(folder))}
    if "train" in found:
        check_unique(root, (table.parent for table in found.values()))
        return found
    tables = [path for path in _csv_files(root) if _columns(path)]
    of_phase: dict[Phase, Path] = {}
    for path in tables:
        words = re.findall(r"[a-z]+", path.stem.lower())
        phase = next((PHASE_WORDS[word] for word in words if word in PHASE_WORDS), None)
        if phase is not None:
            of_phase.setdefault(phase, path)
    if "train" not in of_phase and len(tables) == 1:
        of_phase = {"train": tables[0]}
    return of_phase if "train" in of_phase else {}


def _only_table(folder: Path) -> Path | None:
    tables = [path for path in _csv_files(folder) if _columns(path)]
    return tables[0] if len(tables) == 1 else None


def _csv_files(folder: Path) -> list[Path]:
    return sorted(
        Path(entry.path)
        for entry in entries_of(folder)
        if entry.name.lower().endswith(".csv") and not entry.name.startswith(".") and entry.is_file()
    )


def _columns(path: Path) -> dict[str, str]:
    """Return the name of each of `COLUMNS` in a table; none if one of them is missing."""
    try:
        head = read_file(path, count=4096).decode("utf-8-sig", "replace").split("\n")[0].strip()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; correct the path") from error
    names = {name.strip().strip('"').lower(): name.strip().strip('"') for name in head.split(",")}
    found = {key: next((names[n] for n in usual if n in names), "") for key, usual in COLUMNS.items()}
    return found if all(found.values()) else {}


def _read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table by the keys of `COLUMNS`, with height and width if they are there."""
    columns = _columns(path)
    try:
        rows = list(csv.DictReader(io.StringIO(read_text_any(path)), skipinitialspace=True))
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error})") from error
    present = {name.lower(): name for name in (rows[0] if rows else ()) if name}
    for usual in SIZE:
        columns[usual[0]] = next((present[name] for name in usual if name in present), "")
    return [{key: (row.get(name) or "").strip() for key, name in columns.items()} for row in rows]


def _labeled(
    root: Path,
    path: Path,
    phase: Phase,
    rows: Sequence[dict[str, str]],
    class_names: Sequence[str],
    *,
    bad: BadLabels,
) -> LabeledImages:
    folder, own = _image_folder(root, path, phase)
    images = list(image_files(folder))
    places = _find(folder, images, [row["file"] for row in rows])
    if not own:
        images = sorted({place for place in places if place is not None})
    index = {image: i for i, image in enumerate(images)}
    classes = {name: float(i) for i, name in enumerate(class_names)}
    found = Rows(lambda _, number: f"{path}, row {number}")
    stated = np.zeros((len(images), 2), dtype=np.int64)
    row_of: dict[int, int] = {}
    for number, (row, place) in enumerate(zip(rows, places), 2):
        if place is None:
            bad.add(
                found.where(0, number), f"{row['file']} is not in {folder}, or several images have its name"
            )
            continue
        i = index[place]
        row_of.setdefault(i, number)
        stated[i] = [stated_side(row[side]) for side in ("height", "width")]
        corners = [row[side] for side in ("left", "top", "right", "bottom")]
        if not any(corners):  # an image without objects
            continue
        try:
            box = tuple(map(float, corners))
        except ValueError:
            found.add_broken(i, number, f"{', '.join(corners)[:60]}: not four numbers")
            continue
        if row["class"] in classes:
            found.values.append((i, number, classes[row["class"]], *box, 0))
        else:
            found.add_unnamed(i, number, row["class"], len(classes))
    numbers = found.table[:, 3:7]
    found.relative = bool(numbers.any() and numbers.max() <= 1)
    return LabeledImages(
        key=f"{path.resolve()} {phase} boxes",
        images=images,
        rows=found,
        looked=str(path),
        stated=None if found.relative else stated,
        place=lambda image: f"{path}, row {row_of[image]}",
    )


def _image_folder(root: Path, path: Path, phase: Phase) -> tuple[Path, bool]:
    """Return the folder of the images of a table, and whether it has no others."""
    if path.parent != root:
        return child(path.parent, IMAGE_FOLDERS) or path.parent, True
    images = child(root, IMAGE_FOLDERS) or root
    for place in (images, root):
        own = phases(place).get(phase)
        if own is not None:
            check_unique(root, [own])
            return own, True
    return images, len(_tables(root)) == 1


def _find(folder: Path, images: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """Return the image that each row names by its path, name or stem; None without exactly one."""
    known: dict[str, set[str]] = {}
    for image in images:
        name = plain(os.path.basename(image))
        for key in (plain(image[len(str(folder)) + 1 :]), name, os.path.splitext(name)[0]):
            known.setdefault(key, set()).add(image)

    def find(name: str) -> str | None:
        name = plain(name.replace("\\", "/").removeprefix("./"))
        end = name.rpartition("/")[2]
        same = next((known[key] for key in (name, end, os.path.splitext(end)[0]) if key in known), set())
        return next(iter(same)) if len(same) == 1 else None

    return [find(name) for name in names]
