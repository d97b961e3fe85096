"""Trackers in place of the real ones: they record their calls, wait forever, or fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastcnn.trackers import registry
from fastcnn.trackers.base import TrackedRun, Tracker
from fastcnn.trackers.tracking import Tracking


class Recorder(Tracker):
    """Keeps its calls in a list; its run has the id "run-1"."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, run: TrackedRun, resume: str | None) -> str | None:
        self.calls.append(("start", run, resume))
        return resume or "run-1"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(numbers)))

    def picture(self, step: int, name: str, path: Path) -> None:
        self.calls.append(("picture", step, name))

    def text(self, step: int, name: str, text: str) -> None:
        self.calls.append(("text", step, name, text))

    def finish(self, *, failed: bool) -> None:
        self.calls.append(("finish", failed))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == kind]


class Blocked(Recorder):
    """Waits in its first `log` until `released` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.released.wait()
        super().log(step, numbers)


class Unable(Recorder):
    """Fails at once."""

    def start(self, run: TrackedRun, resume: str | None) -> str | None:
        raise ConnectionError("no route\nto the server")


class Broken(Recorder):
    """Fails after its start, by an error or the end of the process."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        raise self.error

    def picture(self, step: int, name: str, path: Path) -> None:
        raise self.error

    def text(self, step: int, name: str, text: str) -> None:
        raise self.error


def _same(tracker: Tracker) -> Tracker:
    return tracker


@contextmanager
def installed(**trackers: Tracker) -> Iterator[None]:
    """Replace the trackers of these names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, tracker in trackers.items():
            patch.setitem(registry.TRACKERS, name, partial(_same, tracker))
        patch.setattr(registry, "_is_installed", lambda package: package in trackers)
        yield


def open_tracking(folder: Path, *names: str, resumes: bool = False, **settings: Any) -> Tracking:
    run = TrackedRun(folder=folder, settings=settings)
    tracking = Tracking(names, run, device=torch.device("cpu"), resumes=resumes)
    tracking.start()
    return tracking


def feed(tracking: Tracking, folder: Path, steps: tuple[int, ...] = (1, 2)) -> None:
    """Give a tracking what a run gives it, and end it."""
    Image.new("RGB", (40, 30), "red").save(folder / "validation.png")
    for step in steps:
        record = {"kind": "train", "step": step, "metrics": {"loss": 0.5 * step}, "images_per_second": 7.0}
        tracking.log(record)
    tracking.picture(steps[-1], folder / "validation.png")
    tracking.text(steps[-1], "bottleneck", "Bottleneck: data.")
    tracking.finish(lambda line: None, failed=False)
