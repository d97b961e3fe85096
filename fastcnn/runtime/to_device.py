"""Asynchronous copies of small host arrays to the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return the array as a tensor on `device`, without waiting for work queued there.

    On the CPU the tensor shares the array's memory. From unpinned memory, CUDA may copy only after all work
    queued before.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
