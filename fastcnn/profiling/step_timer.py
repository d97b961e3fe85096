"""Time of training steps by activity, on the device's own timeline, without waiting for the device.

Each step has marks: before the loader's batch, with it, and after the step. On a GPU a mark is an event,
which completes after all work queued before it. While the host waits for a batch and the device still has
work, the marks around that wait complete back to back. Only an idle device shows a gap.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcnn.profiling.bottleneck import Timing

MAX_TIMED_STEPS = 1000
"""Max measured steps per log interval, from its start: marks take memory until they are read."""
LONGEST_HOLD = 1.0
"""Max duration of a stall, in seconds."""


class Clock(Protocol):
    """A device's timeline, read from the host."""

    def mark(self) -> Any:
        """Mark the moment at which the device finishes all work queued until now."""

    def seconds(self, first: Any, second: Any) -> float:
        """Return the seconds between two marks that the device has passed."""

    def reuse(self) -> None:
        """Release all marks."""

    def host(self) -> float:
        """Return the host's time in seconds."""

    def cpu_contention(self) -> float:
        """Return the seconds so far in which this thread was runnable without a core; 0 if unknown."""

    def stall_device(self, seconds: float) -> bool:
        """Stall the device for about `seconds`; False, without effect, if it is the host itself."""


class HostClock:
    """The host's timeline, for training on the CPU."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, second: float) -> float:
        return second - first

    def reuse(self) -> None:
        pass

    def host(self) -> float:
        return time.perf_counter()

    def cpu_contention(self) -> float:
        try:
            with open("/proc/thread-self/schedstat") as file:  # Linux: nanoseconds run, waited; turns
                return int(file.read().split()[1]) / 1e9
        except OSError:
            return 0.0

    def stall_device(self, seconds: float) -> bool:
        return False


class CudaClock(HostClock):
    """CUDA events in the current stream, reused after each reading."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []
        self._used = 0

    def mark(self) -> Any:
        if self._used == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))
        event = self._events[self._used]
        self._used += 1
        event.record()
        return event

    def seconds(self, first: Any, second: Any) -> float:
        return first.elapsed_time(second) / 1000

    def reuse(self) -> None:
        self._used = 0

    def stall_device(self, seconds: float) -> bool:
        torch.cuda._sleep(int(seconds * 2e9))  # cycles, at about 2 GHz
        return True


@dataclass(slots=True, kw_only=True)
class _Step:
    """Marks of a step: before its batch, with it, after the step; under DDP, after the last gradient and
    after the all-reduce."""

    waiting: Any
    start: Any
    end: Any = None
    last_gradient: Any = None
    reduced: Any = None
    stalled: bool = False
    """The device was stalled until the host had queued the step."""
    counts: bool = True
    """False for a step whose communication was not measured."""


class StepTimer:
    """Timer of the steps between two readings.

    Pure kernel time is measured by stalling the device until the host has queued a whole step. A stall delays
    the run by about one step, in the first step of log intervals 1, 2, 4, 8, ...; interval 0 contains
    start-up. Time of a step beyond its kernel time is launch overhead: the device idles.
    """

    def __init__(self, clock: Clock, at_most: int = MAX_TIMED_STEPS) -> None:
        self.clock = clock
        self.at_most = at_most
        self._steps: list[_Step] = []
        self._waiting: Any = None
        self._step: _Step | None = None
        self._began = 0.0
        self._queueing = LONGEST_HOLD  # the host's shortest time to queue a step
        self._paused = 0.0
        self._contention = 0.0  # total at the first step since the last reading
        self._windows = 0
        self._kernels: float | None = None  # seconds of a step's kernels, as last measured
        self._hooks: list[RemovableHandle] = []
        self._last: Tensor | None = None

    def before_data(self) -> None:
        """Mark the start of the wait for a batch."""
        self._waiting = self.clock.mark() if len(self._steps) < self.at_most else None

    def before_step(self) -> None:
        """Mark the arrival of the batch."""
        if self._waiting is None:
            return
        stalled = False
        if not self._steps:
            self._contention = self.clock.cpu_contention()
            if self._windows and self._windows & (self._windows - 1) == 0:
                stalled = self.clock.stall_device(min(1.5 * self._queueing, LONGEST_HOLD))
        self._step = _Step(waiting=self._waiting, start=self.clock.mark(), stalled=stalled)
        self._began = self.clock.host()

    def after_step(self) -> None:
        """Mark the end of the step."""
        if self._step is None:
            return
        self._queueing = min(self._queueing, self.clock.host() - self._began)
        self._step.end = self.clock.mark()
        self._steps.append(self._step)
        self._step = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count the block, host work on an idle device such as a log line, in the next reading."""
        start = self.clock.host()
        yield
        self._paused += self.clock.host() - start

    def reset(self) -> None:
        """Discard the measured kernel time, after a change of the step."""
        self._windows, self._kernels, self._queueing = 0, None, LONGEST_HOLD

    def follow_gradients(self, network: nn.Module) -> None:
        """Identify the last gradient of the next backward pass, and mark it from then on."""
        self._drop_hooks()
        for parameter in network.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._remember))

    def _remember(self, parameter: Tensor) -> None:
        self._last = parameter

    def _mark_gradient(self, parameter: Tensor) -> None:
        if self._step is not None:
            self._step.last_gradient = self.clock.mark()

    def after_allreduce(self) -> None:
        """Mark the end of the backward pass that averages the gradients."""
        if self._last is not None:
            last = self._last
            self._drop_hooks()
            self._hooks = [last.register_post_accumulate_grad_hook(self._mark_gradient)]
            if self._step is not None:
                self._step.counts = False  # its communication was not measured
        elif self._step is not None and self._step.last_gradient is not None:
            self._step.reduced = self.clock.mark()

    def _drop_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._last = [], None

    def read(self, steps: int) -> Timing:
        """Return the time measured since the last reading. The device must have passed all marks.

        Args:
            steps: all steps since the last reading, measured or not.
        """
        between = self.clock.seconds
        data = inside = communication = gaps = 0.0
        counted = 0
        for before, step in zip([None, *self._steps], self._steps):
            if before is not None:
                gaps += between(before.end, step.waiting)
            exposed = between(step.last_gradient, step.reduced) if step.reduced is not None else 0.0
            took = between(step.start, step.end) - exposed
            if step.stalled:
                self._kernels = took
            if step.stalled or not step.counts:
                continue
            counted += 1
            data += between(step.waiting, step.start)
            inside += took
            communication += exposed
        launching = max(0.0, inside - counted * self._kernels) if self._kernels is not None else 0.0
        measured = len(self._steps) / max(steps, 1)
        synchronising = gaps + self._paused * measured
        cpu_contention = (self.clock.cpu_contention() - self._contention) * measured if counted else 0.0
        self._steps, self._paused = [], 0.0
        self._windows += 1
        self.clock.reuse()
        if not counted:
            return Timing()
        return Timing(
            steps=counted,
            data=data,
            computing=inside - launching,
            launching=launching,
            synchronising=synchronising,
            communication=communication,
            cpu_contention=cpu_contention,
        )


def step_timer_for(device: torch.device) -> StepTimer:
    """Return a timer for a device; without effect on mps, whose events are not used yet."""
    clock = CudaClock() if device.type == "cuda" else HostClock()
    return StepTimer(clock, 0 if device.type == "mps" else MAX_TIMED_STEPS)
