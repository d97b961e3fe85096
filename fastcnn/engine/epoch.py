"""One training epoch, in log intervals."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.state import TrainState, to_training
from fastcnn.engine.step import train_step
from fastcnn.profiling.bottleneck import Timing
from fastcnn.profiling.step_timer import StepTimer
from fastcnn.tasks.base import Task
from fastcnn.tasks.metrics import Metrics


@dataclass(kw_only=True)
class LogInterval:
    """The steps between two log lines."""

    steps: int
    samples: int
    """Images of this rank."""
    seconds: float
    data_seconds: float
    """Part of `seconds` spent in waits for the loader."""
    timing: Timing
    cold: bool = False
    """Includes start-up and compilation."""

    def __add__(self, other: LogInterval) -> LogInterval:
        names = [field.name for field in dataclasses.fields(self)]
        return LogInterval(
            **{name: getattr(self, name) + getattr(other, name) for name in names if name != "cold"}
        )


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Callbacks of an epoch."""

    on_log: Callable[[LogInterval], bool]
    """After each log interval; True stops the epoch. Reads and resets the metrics."""
    on_step: Callable[[], None] = lambda: None
    """After each update; waits for the device only to save."""
    ends_interval: Callable[[], bool] = lambda: False
    """After each update; True ends the log interval. The same on every rank."""


def train_epoch(
    state: TrainState,
    task: Task,
    loader: Loader,
    metrics: Metrics,
    *,
    log_interval: int,
    callbacks: Callbacks,
    limit: int | None = None,
) -> bool:
    """Train the rest of the loader's epoch.

    Args:
        metrics: sums since the last log line.
        log_interval: updates between log lines; the last interval may be shorter.
        limit: max updates, for a partial epoch.

    Returns:
        True if the epoch was finished.
    """
    to_training(state)

    def log() -> bool:
        state.guard.wait()  # the time then covers the work
        seconds = time.perf_counter() - start
        interval = LogInterval(
            steps=steps,
            samples=samples,
            seconds=seconds,
            data_seconds=data_seconds,
            timing=state.timer.read(steps),
        )
        with state.timer.pause():
            return callbacks.on_log(interval)

    steps = samples = 0
    data_seconds, start = 0.0, time.perf_counter()
    for group, waited in islice(_groups(iter(loader), state.options.accum_steps, state.timer), limit):
        if steps + 1 == log_interval:
            state.timer.before_last_step()
        train_step(state, task, group, metrics)
        state.timer.after_step()
        steps += 1
        samples += sum(len(batch.mask) for batch in group)
        data_seconds += waited
        callbacks.on_step()
        if steps == log_interval or callbacks.ends_interval():
            if log():
                return False
            steps = samples = 0
            data_seconds, start = 0.0, time.perf_counter()
    return not (steps and log())


def _groups(batches: Iterator[Batch], size: int, timer: StepTimer) -> Iterator[tuple[list[Batch], float]]:
    """Yield the batches of each update and the seconds waited for them; drop an incomplete last group."""
    while True:
        timer.before_data()
        start = time.perf_counter()
        group = list(islice(batches, size))
        if len(group) < size:
            return
        waited = time.perf_counter() - start
        timer.before_step()
        yield group, waited
