"""A tracker in a thread of its own: a bounded queue in, lines for the log out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, Full, Queue
from typing import TypeVar

from fastcnn.files import BestEffort, reason
from fastcnn.trackers.base import TrackedRun, Tracker

QUEUED = 1000
"""Max calls that wait for a slow tracker; later ones are dropped."""
Call = Callable[[Tracker], None]
T = TypeVar("T")


class Background:
    """Calls of a tracker, in order, in a daemon thread. No method waits for it but `finish`.

    Args:
        name: of the tracker, for messages.
        report: takes a line for the log, from the thread.
    """

    def __init__(self, name: str, tracker: Tracker, report: Callable[[str], None]) -> None:
        self.name = name
        self.tracker = tracker
        self.report = report
        self.dropped = 0
        self._run_failed = False
        self._calls: Queue[Call | None] = Queue(QUEUED)
        self._attempt = BestEffort(f"records of {name}", report)
        self._thread: threading.Thread | None = None

    def start(self, run: TrackedRun, resume: str | None, started: Callable[[str], None]) -> None:
        """Start the thread; `started` gets the tracker's id of the run there."""
        job = run, resume, started
        self._thread = threading.Thread(target=self._work, args=job, name=f"tracker {self.name}", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Queue a call; drop it if the queue is full."""
        try:
            self._calls.put_nowait(call)
        except Full:
            if not self.dropped:
                self.report(f"warning: {self.name} does not answer: some of its records are dropped")
            self.dropped += 1

    def close(self, *, failed: bool) -> None:
        """Queue the end of the run, in place of older calls if the queue is full."""
        self._run_failed = failed
        while True:
            with suppress(Full):
                self._calls.put_nowait(None)
                break
            with suppress(Empty):
                self._calls.get_nowait()
                self.dropped += 1

    def wait(self, deadline: float) -> bool:
        """Wait for the thread's end until a time of `time.perf_counter`; return whether it came."""
        if self._thread is None:
            return True
        self._thread.join(max(0.0, deadline - time.perf_counter()))
        return not self._thread.is_alive()

    def _work(self, run: TrackedRun, resume: str | None, started: Callable[[str], None]) -> None:
        try:
            identity = _guarded(lambda: self.tracker.start(run, resume))
        except Exception as error:
            self.report(
                f"warning: {self.name} does not start, and the run continues without it: {reason(error)}"
            )
            while self._calls.get() is not None:
                pass
            return
        if identity is not None:
            self._attempt(partial(started, identity))
        while (call := self._calls.get()) is not None:
            self._attempt(partial(_guarded, partial(call, self.tracker)))
        try:
            _guarded(lambda: self.tracker.finish(failed=self._run_failed))
        except Exception as error:
            if not self._attempt.failed:  # else reported
                self.report(f"warning: {self.name} does not finish: {reason(error)}")


def _guarded(work: Callable[[], T]) -> T:
    """Return `work()`; turn a package's SystemExit into an error."""
    try:
        return work()
    except SystemExit as end:
        raise RuntimeError(f"it ends the process with status {end.code}") from end
