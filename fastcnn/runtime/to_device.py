"""Small arrays of the host on their way to the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on `device`, without waiting for what the device has still to do. On the CPU it
    shares the array's memory.

    From memory that is not pinned CUDA may copy only when all that was queued before is done.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
