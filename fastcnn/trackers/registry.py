"""The trackers by name, and their packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from fastcnn.errors import UserError
from fastcnn.trackers.base import Tracker
from fastcnn.trackers.mlflow import Mlflow
from fastcnn.trackers.tensorboard import TensorBoard
from fastcnn.trackers.trackio import Trackio
from fastcnn.trackers.wandb import Wandb

FINISH_SECONDS = 30.0
"""Max seconds to wait for the trackers at the end of a run."""
TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda: Wandb(patience=FINISH_SECONDS),
    "mlflow": Mlflow,
    "trackio": Trackio,
}
"""Constructors by the names in --tracker; each package and extra has the same name."""


def chosen(setting: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the names of the trackers for a value of --tracker.

    Raises:
        UserError: a package is not installed.
    """
    if setting == "none":
        return ()
    if setting is None:
        return ("tensorboard",) if _is_installed("tensorboard") else ()
    for name in setting:
        if not _is_installed(name):
            raise UserError(f'--tracker {name}: {name} is not installed; pip install "fastcnn[{name}]"')
    return tuple(setting)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
