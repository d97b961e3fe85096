"""Time of training steps by activity, on the device's own timeline, without waiting for the device.

Each step has marks: before the loader's batch, with it, and after the step. On a GPU a mark is an event,
which completes after all work queued before it. While the host waits for a batch and the device still has
work, the marks around that wait complete back to back. Only an idle device shows a gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcnn.profiling.bottleneck import Timing
from fastcnn.profiling.clock import Clock, CudaClock, HostClock

MAX_TIMED_STEPS = 1000
"""Max measured steps per log interval, from its start: marks take memory until they are read."""
LONGEST_HOLD = 1.0
"""Max duration of a stall, in seconds."""


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
    """The device was stalled while the host queued the step."""
    kernels_only: bool = False
    """The stall lasted until the whole step was queued, so that its time is that of its kernels."""
    counts: bool = True
    """False for a step whose communication was not measured."""


class StepTimer:
    """Timer of the steps between two readings.

    Pure kernel time is measured by stalling the device until the host has queued a whole step. A stall delays
    the run by about one step, in the first step of log intervals 1, 2, 4, 8, ...; interval 0 contains
    start-up. Time of a step beyond its kernel time is launch overhead: the device idles.

    A GPU's queue takes about 1,000 launches. A step with more of them outlasts the stall, since the host
    waits for room. Then the last step of these intervals is traced instead, before the interval's wait.
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
        self._outlasts = False  # the host cannot queue a step while the device is stalled
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
            if self._measures_kernels() and not self._outlasts:
                stalled = self.clock.stall_device(min(1.5 * self._queueing, LONGEST_HOLD))
        self._step = _Step(waiting=self._waiting, start=self.clock.mark(), stalled=stalled)
        self._began = self.clock.host()

    def before_last_step(self) -> None:
        """Trace the coming step, the last before a reading, if stalls do not measure its kernels."""
        if self._outlasts and self._measures_kernels():
            self.clock.start_trace()
            if self._step is not None:
                self._step.counts = False  # launches take longer in a trace

    def _measures_kernels(self) -> bool:
        """Return whether kernel time is measured in this log interval: 1, 2, 4, 8, ..."""
        return self._windows > 0 and self._windows & (self._windows - 1) == 0

    def after_step(self) -> None:
        """Mark the end of the step."""
        if self._step is None:
            return
        self._queueing = min(self._queueing, self.clock.host() - self._began)
        if self._step.stalled:
            self._step.kernels_only = not self.clock.passed(self._step.start)
            self._outlasts = not self._step.kernels_only
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
        self._outlasts = False

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
            if step.kernels_only:
                self._kernels = took
            if step.stalled or not step.counts:
                continue
            counted += 1
            data += between(step.waiting, step.start)
            inside += took
            communication += exposed
        traced = self.clock.stop_trace()
        if traced is not None:
            self._kernels = traced
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
