"""A folder of runs as a list: read without torch, checkpoints and most lines of the logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcnn.errors import UserError
from fastcnn.report import words
from fastcnn.report.run import Run, is_run, open_run

HEADER = "run", "arch", "data", "best", "epochs", "img/s", "when", "status"
SORTS: dict[str, Callable[[Run], Any]] = {
    "when": lambda run: -(run.started or 0),
    "name": lambda run: run.name,
    "best": lambda run: -run.best[0] if run.best else 1.0,
    "epochs": lambda run: -run.done,
    "speed": lambda run: -(run.images_per_second or 0),
    "status": lambda run: run.status,
}
"""Orders of the list: largest and latest first."""


def find_runs(folder: Path) -> list[Run]:
    """Read the runs in a folder, or the one that it is.

    Raises:
        UserError: no such folder, or without a run.
    """
    try:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; use one with runs, such as runs")
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [folder] if is_run(folder) else [path for path in inside if is_run(path)]
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; use a folder with runs") from error
    if not found:
        raise UserError(f"{folder}: no runs in it; use the folder that holds them, such as runs")
    return [open_run(path, brief=True) for path in found]


def as_table(runs: list[Run]) -> str:
    rows = [
        [
            words.plain(run.name),
            words.plain(run.arch, 40),
            words.plain(run.data, 40),
            words.best(run),
            words.epochs(run),
            words.rate(run.images_per_second),
            words.moment(run.started),
            run.status,
        ]
        for run in runs
    ]
    return words.table(HEADER, rows, right=(5,))


def as_plain(run: Run) -> dict[str, Any]:
    """Return a run in types of JSON; None for what is not recorded."""
    best, epoch = run.best or (None, None)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "arch": run.arch,
        "data": run.data,
        "metric": run.metric,
        "best": best,
        "best_epoch": epoch,
        "epochs": run.done,
        "planned_epochs": run.planned,
        "images_per_second": run.images_per_second,
        "seconds": run.seconds,
        "bottleneck": run.bottleneck,
        "started": run.started,
        "status": run.status,
    }
