"""The interface of a tracker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as trackers see it."""

    folder: Path
    settings: Mapping[str, Any]
    """Plain values, without "auto"."""
    project: str | None = None
    """Value of --tracker-project; None: the tracker's environment variable, else `PROJECT`."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


PROJECT = "fastcnn"
"""Default project."""


class Tracker(ABC):
    """One run in one tracker.

    All methods are called by one thread, which may wait as long as the tracker likes. They may raise any
    Exception: the first one is reported, and the run continues.
    """

    @abstractmethod
    def start(self, run: TrackedRun, resume: str | None) -> str | None:
        """Begin a run, or continue the one of this id. Return its id, if it can be continued."""

    @abstractmethod
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers with names such as "train/metrics/loss"."""

    @abstractmethod
    def picture(self, step: int, name: str, path: Path) -> None:
        """Add a PNG file."""

    @abstractmethod
    def text(self, step: int, name: str, text: str) -> None:
        """Add a text of some lines."""

    @abstractmethod
    def finish(self, *, failed: bool) -> None:
        """End the run; `failed` after an error."""
