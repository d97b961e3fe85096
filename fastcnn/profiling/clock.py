"""Timelines of devices: marks, stalls and traces, read from the host."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

from fastcnn.profiling.kernel_trace import KernelTrace


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

    def passed(self, mark: Any) -> bool:
        """Return whether the device has passed a mark, without waiting for it."""

    def start_trace(self) -> None:
        """Start to record the device's kernels."""

    def stop_trace(self) -> float | None:
        """Return the seconds of the recorded kernels, None if unknown; the device must have finished them."""


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

    def passed(self, mark: Any) -> bool:
        return True

    def start_trace(self) -> None:
        pass

    def stop_trace(self) -> float | None:
        return None


class CudaClock(HostClock):
    """CUDA events in the current stream, reused after each reading."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []
        self._used = 0
        self._trace = KernelTrace()

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

    def passed(self, mark: Any) -> bool:
        return mark.query()

    def start_trace(self) -> None:
        self._trace.start()

    def stop_trace(self) -> float | None:
        return self._trace.stop()
