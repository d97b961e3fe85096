"""One training epoch, in log intervals."""

from __future__ import annotations

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


@dataclass
class LogInterval:
    """The steps since the last look at the device."""

    steps: int
    samples: int
    """Images of this rank."""
    seconds: float
    data_seconds: float
    """Of these, spent waiting for the loader."""
    timing: Timing
    cold: bool = False
    """Whether it holds start-up and compilation."""


def train_epoch(
    state: TrainState,
    task: Task,
    loader: Loader,
    metrics: Metrics,
    log_interval: int,
    on_step: Callable[[], None],
    on_log: Callable[[LogInterval], bool],
    should_stop: Callable[[], bool] = lambda: False,
    limit: int | None = None,
) -> bool:
    """The rest of the loader's epoch.

    Args:
        metrics: sums since the last window; `on_log` reads and resets it.
        on_step: called after each update; waits for the device at most to save.
        on_window: called every `log_interval` updates and at the end; True stops the epoch.
        hurry: True calls `on_log` right after this update; every rank must say the same.
        limit: updates at most, where the epoch is cut short.

    Returns:
        Whether the epoch was finished.
    """
    to_training(state)

    def look() -> bool:
        window = _window(state, steps, samples, start, data_seconds)
        with state.timer.pause():
            return on_log(window)

    steps = samples = 0
    data_seconds, start = 0.0, time.perf_counter()
    for group, waited in islice(_groups(iter(loader), state.accum_steps, state.timer), limit):
        train_step(state, task, group, metrics)
        state.timer.after_step()
        steps += 1
        samples += sum(len(batch.mask) for batch in group)
        data_seconds += waited
        on_step()
        if steps == log_interval or should_stop():
            if look():
                return False
            steps = samples = 0
            data_seconds, start = 0.0, time.perf_counter()
    return not (steps and look())


def _groups(batches: Iterator[Batch], size: int, timer: StepTimer) -> Iterator[tuple[list[Batch], float]]:
    """Batches by `size`, an incomplete last group left out, and the seconds waited for each group."""
    while True:
        timer.before_data()
        start = time.perf_counter()
        group = list(islice(batches, size))
        if len(group) < size:
            return
        waited = time.perf_counter() - start
        timer.before_step()
        yield group, waited


def _window(state: TrainState, steps: int, samples: int, start: float, data_seconds: float) -> LogInterval:
    state.guard.wait()  # so that the time is that of the work
    seconds = time.perf_counter() - start
    return LogInterval(steps, samples, seconds, data_seconds, state.timer.read(steps))
