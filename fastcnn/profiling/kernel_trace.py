"""Time of the kernels of a step by torch's profiler, for steps whose kernels do not fit a GPU's queue."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress

import torch
from torch.profiler import ProfilerActivity


class KernelTrace:
    """A trace of the kernels that the host queues between `start` and `stop`."""

    def __init__(self) -> None:
        self._profiler: torch.profiler.profile | None = None

    def start(self) -> None:
        """Start, unless another profiler is active."""
        profiler = torch.profiler.profile(activities=[ProfilerActivity.CUDA])
        with suppress(RuntimeError):
            profiler.start()
            self._profiler = profiler

    def stop(self) -> float | None:
        """Return the seconds of all kernels in the training's stream; None without any. Waits for the device.

        It is the stream with the most kernels; others belong to the loader and to NCCL.
        """
        if self._profiler is None:
            return None
        self._profiler.stop()
        streams: dict[int, list[float]] = defaultdict(list)
        for event in self._profiler.events() or ():
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
                streams[event.device_resource_id].append(event.time_range.elapsed_us())
        self._profiler = None
        training = max(streams.values(), key=len, default=[])
        return sum(training) / 1e6 if training else None
