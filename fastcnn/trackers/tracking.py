"""All trackers of a run: records, pictures and texts go to each; their ids stay in the run's folder."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from fastcnn import files
from fastcnn.trackers.background import Background, Call
from fastcnn.trackers.base import TrackedRun, Tracker
from fastcnn.trackers.registry import FINISH_SECONDS, TRACKERS
from fastcnn.trackers.system import SystemUse

IDS = "trackers.json"
"""File in the run's folder: the id of the run in each tracker, for a resume."""
MAX_IDS = 10_000
"""Max bytes of that file."""
NOTICE_SECONDS = 2.0
"""A longer wait at the end of a run is announced."""


class Tracking:
    """The trackers of a run. No method waits for one but `finish`, and none raises.

    Args:
        names: keys of `TRACKERS`.
        resumes: continue the runs that `IDS` names.
    """

    def __init__(
        self, names: Sequence[str], run: TrackedRun, *, device: torch.device, resumes: bool = False
    ) -> None:
        self.run = run
        self._resumes = resumes
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._trackers = [Background(name, TRACKERS[name](), self._lines.put) for name in names]
        self._use = {name: SystemUse(device) for name in names}
        self._ids: dict[str, str] = {}
        self._lock = threading.Lock()
        self._finished = False

    def start(self) -> None:
        """Start the threads; the trackers' packages are imported there."""
        before = read_ids(self.run.folder / IDS) if self._resumes else {}
        self._ids.update(before)
        for tracker in self._trackers:
            tracker.start(self.run, before.get(tracker.name), partial(self._keep, tracker.name))

    def log(self, record: Mapping[str, Any]) -> None:
        """Add the numbers of a record of metrics.jsonl, and with those of training the machine's use.

        The use is read in the trackers' threads: NVML may take milliseconds.
        """
        step, training = record["step"], record["kind"] == "train"
        numbers = {f"{record['kind']}/{name}": value for name, value in flatten(record).items()}
        for tracker in self._trackers:
            tracker.put(partial(_log, step, numbers, self._use[tracker.name] if training else None))

    def picture(self, step: int, path: Path) -> None:
        """Add a PNG file of the run's folder."""
        self._put(lambda tracker: tracker.picture(step, path.stem, path))

    def text(self, step: int, name: str, text: str) -> None:
        self._put(lambda tracker: tracker.text(step, name, text))

    def lines(self) -> list[str]:
        """Return the warnings since the last call."""
        lines = []
        while True:
            try:
                lines.append(self._lines.get_nowait())
            except Empty:
                return lines

    def finish(self, announce: Callable[[str], None], *, failed: bool) -> None:
        """End all runs; give up after `FINISH_SECONDS` in all."""
        if self._finished:
            return
        self._finished = True
        deadline = time.perf_counter() + FINISH_SECONDS
        notice = time.perf_counter() + NOTICE_SECONDS
        for tracker in self._trackers:
            tracker.close(failed=failed)
        slow = [tracker for tracker in self._trackers if not tracker.wait(notice)]
        if slow:
            announce(f"waiting up to {FINISH_SECONDS:g} s for {', '.join(tracker.name for tracker in slow)}")
        for tracker in slow:
            if not tracker.wait(deadline):
                self._lines.put(
                    f"warning: {tracker.name} did not finish in {FINISH_SECONDS:g} s: its last records may "
                    "be missing"
                )
        for tracker in self._trackers:
            if tracker.dropped:
                self._lines.put(f"warning: {tracker.name} missed {tracker.dropped:,} records")

    def _put(self, call: Call) -> None:
        for tracker in self._trackers:
            tracker.put(call)

    def _keep(self, name: str, identity: str) -> None:
        """Save a tracker's id of the run; called by its thread."""
        with self._lock:
            self._ids[name] = identity
            files.write_text(self.run.folder / IDS, json.dumps(self._ids, indent=1), "the trackers' ids")


def _log(step: int, numbers: Mapping[str, float], use: SystemUse | None, tracker: Tracker) -> None:
    tracker.log(step, {**numbers, **(use.read() if use is not None else {})})


def read_ids(path: Path) -> dict[str, str]:
    """Return the ids in a file of a run's folder; {} if there is none, or it holds anything else."""
    try:
        with path.open("rb") as file:
            ids = json.loads(file.read(MAX_IDS))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(ids, dict):
        return {}
    return {
        name: identity
        for name, identity in ids.items()
        if name in TRACKERS and isinstance(identity, str) and re.fullmatch(r"[\w.-]{1,200}", identity)
    }


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten the numbers of a nested record to names like "val/acc1"."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            numbers |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("step", "epoch", "progress"):
            numbers[prefix + name] = value
    return numbers
