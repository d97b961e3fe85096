"""Files of an evaluation: metrics.json, tables, figures and pictures."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastcnn import files
from fastcnn.errors import UserError
from fastcnn.evaluation.result import Evaluation

METRICS, CLASSES = "metrics.json", "classes.csv"
NAMES = (
    *(METRICS, CLASSES, "confusion.csv", "confusion.png", "calibration.png", "mistakes.png"),
    *("precision-recall.png", "worst.png"),
)
"""All files of an evaluation."""
SAME = "checkpoint", "data", "split"
"""Keys of metrics.json by which an evaluation replaces a former one."""


def choose_folder(output_dir: str, beside: Path, result: Evaluation) -> Path:
    """Return the folder for a result's files.

    Args:
        output_dir: value of `--output-dir`; auto: `evaluation` in `beside`, for another split than val
            `evaluation-SPLIT`, with a number if it holds something else than a former evaluation of the same
            checkpoint, data and split.

    Raises:
        UserError: a named folder holds files of these names that are no evaluation's.
    """
    if output_dir != "auto":
        folder = files.expand_user(output_dir, "--output-dir")
        taken = [name for name in NAMES if (folder / name).exists()]
        if taken and _former(folder) is None:
            raise UserError(
                f"--output-dir {folder}: {taken[0]} there is not of an evaluation; use another folder"
            )
        return folder
    stem = "evaluation" if result.split == "val" else f"evaluation-{result.split}"
    own = {key: getattr(result, key) for key in SAME}
    for number in itertools.count(1):
        folder = beside / (stem if number == 1 else f"{stem}-{number}")
        former = _former(folder)
        if not folder.exists() or (former is not None and {key: former.get(key) for key in SAME} == own):
            return folder
    raise AssertionError("count() is endless")


def _former(folder: Path) -> dict[str, Any] | None:
    """Return the metrics.json of a folder; None without one of an evaluation."""
    with suppress(OSError, ValueError):
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("kind") == "evaluation":
            return content
    return None


def write(result: Evaluation, tables: Mapping[str, list[list[Any]]], drawn: Mapping[str, Any]) -> None:
    """Write the files of a result into its folder, metrics.json last; former ones are replaced.

    Args:
        tables: rows of further CSV files by their names.
        drawn: pictures and figures by the names of their files.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = result.folder
    assert folder is not None
    columns = list(result.per_class[0])
    rows = [columns, *([row[key] for key in columns] for row in result.per_class)]
    with files.of_flag("--output-dir"):
        files.make_folder(folder, "the folder")
        written = {CLASSES: rows, **tables}
        for name in NAMES:
            with files.reported(folder / name, "the former file"):
                (folder / name).unlink(missing_ok=True)
        for name, table in written.items():
            files.write_text(folder / name, as_csv(table), "the table")
        for name, picture in drawn.items():
            files.save_picture(picture, folder / name, "the picture")
        content = json.dumps(result.to_json([*written, *drawn]), indent=1, allow_nan=False)
        files.write_text(folder / METRICS, content + "\n", "the metrics")


def write_predictions(path: Path, predictions: Any) -> None:
    """Write rows of a CSV or a JSON value, by the ending of the file.

    Raises:
        UserError: the file cannot be written.
    """
    text = as_csv(predictions) if path.suffix == ".csv" else json.dumps(predictions, allow_nan=False) + "\n"
    with files.of_flag("--predictions"):
        files.make_folder(path.parent, "the folder")
        files.write_text(path, text, "the predictions")


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
