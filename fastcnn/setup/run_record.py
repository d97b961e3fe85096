"""`run.json`: facts about a run that neither config.yaml nor metrics.jsonl holds. Torch-free to read.

It lists a session for each start and resume: time, machine, reasons of the automatic settings, bottleneck,
result. Rank 0 writes it; a run goes on without it where it cannot be written.
"""

from __future__ import annotations

import functools
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn import files
from fastcnn.config import task_of
from fastcnn.files import BestEffort
from fastcnn.version import __version__

if TYPE_CHECKING:
    from fastcnn.engine.loop import Diagnose, Outcome
    from fastcnn.profiling.bottleneck import Diagnosis, Timing
    from fastcnn.setup.build import Training

RECORD = "run.json"
MAX_SESSIONS = 50
"""Sessions that are kept, the latest ones: an elastic job may restart any number of times."""
MAX_BYTES = 2_000_000
"""Max size of a file that is read."""


class RunRecord:
    """The record of a run whose current session is the last one of `content`.

    Args:
        started: `time.perf_counter` at the start of the session.
        attempt: calls what may fail; None on all ranks but the first, which write nothing.
    """

    def __init__(
        self, path: Path, content: dict[str, Any], started: float, attempt: BestEffort | None
    ) -> None:
        self.path = path
        self.content = content
        self.started = started
        self.attempt = attempt

    def update(self, **facts: object) -> None:
        """Add facts to the current session, and write the file."""
        if self.attempt is not None:
            self.content["sessions"][-1].update(facts)
            text = json.dumps(self.content, indent=1) + "\n"
            self.attempt(lambda: files.write_text(self.path, text, "the record of the run"))

    def noting(self, diagnose: Diagnose) -> Diagnose:
        """Return `diagnose`, which then also records the bottleneck."""

        def diagnose_and_note(timings: list[Timing]) -> Diagnosis:
            diagnosis = diagnose(timings)
            self.update(bottleneck=diagnosis.bound, verdict=diagnosis.sentence)
            return diagnosis

        return diagnose_and_note

    def end(self, outcome: Outcome, best: dict[str, float], test: dict[str, float]) -> None:
        """Record the result of the session."""
        stopped_by = outcome.stopped_by
        self.update(
            seconds=time.perf_counter() - self.started,
            images_per_second=outcome.images_per_second,
            best=best,
            test=test,
            stopped_by=None if stopped_by is None else signal.Signals(stopped_by).name,
        )


@contextmanager
def recorded(training: Training, started: float, announce: Callable[[str], None]) -> Iterator[RunRecord]:
    """Record a session of a run. All ranks call it; rank 0 writes.

    Args:
        training: with the settings resolved, and the folder claimed.
        started: `time.perf_counter` at the start of the process.
        announce: prints a line.
    """
    path = training.checkpointer.folder / RECORD
    attempt = BestEffort(f"the records {path}", announce) if training.ranks.is_main else None
    record = RunRecord(path, {}, started, attempt)
    if attempt is not None:
        earlier = read_record(path.parent).get("sessions", [])[1 - MAX_SESSIONS :]
        record.content = {**_facts(training), "sessions": [*earlier, _session(training, started)]}
        record.update()
    try:
        yield record
    except BaseException as error:
        reason = str(error) or type(error).__name__
        record.update(seconds=time.perf_counter() - started, error=reason[:1000])
        raise


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's run.json, with only dicts in "sessions"; {} without a usable one."""
    path = folder / RECORD
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    sessions = content.get("sessions") if isinstance(content, dict) else None
    if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
        return {}
    return content


def _facts(training: Training) -> dict[str, Any]:
    """Return the facts that are the same in every session, unless flags change them."""
    plan, state = training.plan, training.state
    source = plan.source
    return {
        "format": 1,
        "arch": plan.config.arch,
        "data": plan.config.data,
        "task": "multi-label" if source.multi_label else task_of(plan.config.arch),
        "metric": training.task.best_metric,
        "epochs": state.schedule.epochs,
        "steps_per_epoch": state.schedule.steps_per_epoch,
        "classes": len(source.class_names),
        "images": {
            "train": len(source.train),
            "val": len(source.val),
            "test": 0 if source.test is None else len(source.test),
        },
        "parameters": sum(parameter.numel() for parameter in state.network.parameters()),
    }


def _session(training: Training, started: float) -> dict[str, Any]:
    elapsed = time.perf_counter() - started
    device = training.state.device
    return {
        "started": time.time() - elapsed,
        "setup_seconds": elapsed,
        "step": training.state.step,
        "fastcnn": __version__,
        "device": device.type,
        "processes": training.ranks.world_size,
        "reasons": training.plan.reasons,
        "environment": dict(_environment(device.type)),
    }


@functools.cache
def _environment(device_type: str) -> dict[str, Any]:
    import torch

    from fastcnn.runtime.environment import environment

    return environment(torch.device(device_type))
