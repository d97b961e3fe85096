"""Use of the machine by this process: processor, memory, GPU."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import torch


class SystemUse:
    """Figures of the time since the last call. None of them waits for the device.

    Args:
        device: the training device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = time.perf_counter(), time.process_time()
        self._has_nvml = device.type == "cuda"

    def read(self) -> dict[str, float]:
        """Return busy cores, resident memory, and on CUDA memory in GB and utilization in percent."""
        now = time.perf_counter(), time.process_time()
        wall, busy = (b - a for a, b in zip(self._before, now))
        self._before = now
        figures = {"system/cpu_cores": busy / max(wall, 1e-9)}
        with suppress(OSError, ValueError, AttributeError):  # not on Linux
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            figures["system/memory_gb"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
        if self.device.type == "cuda":
            figures["system/gpu_memory_gb"] = torch.cuda.memory_reserved(self.device) / 1e9
        if self._has_nvml:
            try:
                figures["system/gpu_percent"] = float(torch.cuda.utilization(self.device))
            except Exception:  # nvidia-ml-py is not installed, or the driver has no NVML
                self._has_nvml = False
        return figures
