"""What depends on the machine: threads, memory allocation, cuDNN, and a probe for the CPU's best dtype."""

from __future__ import annotations

import copy
import ctypes
import os
import sys
import time

import torch
from torch import nn

from fastcnn.distributed import Ranks
from fastcnn.engine import Normalized
from fastcnn.models.base import logits_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Of `--amp-dtype`."""


def cores_per_process(ranks: Ranks) -> int:
    """Processor cores of this node that each of its processes may use."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // ranks.local_world_size)


def prepare(device: torch.device, cores: int, deterministic: bool) -> None:
    """Process-wide settings of torch and of the C library."""
    if device.type == "cpu":
        torch.set_num_threads(cores)  # torchrun allows each of several processes one
        _keep_freed_memory()
    torch.backends.cudnn.benchmark = not deterministic  # shapes are fixed
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it


def _keep_freed_memory() -> None:
    """Lets glibc reuse the activations' memory instead of mapping and unmapping it in every step."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 1 << 25)  # the most that glibc takes
        mallopt(trim_threshold, 2**31 - 1)


def probe_amp_dtype(network: nn.Module, size: int, channels: int, channels_last: bool) -> tuple[str, str]:
    """Times a few training steps on the CPU in bf16 and fp32, in turn.

    Returns:
        "bf16" or "fp32", and the figures as the reason. Neither wins everywhere: bf16 speeds dense
        convolutions up and slows depthwise ones down.
    """
    model = Normalized(copy.deepcopy(network), [0.5] * channels, [0.5] * channels, channels_last).train()
    images = torch.randint(0, 256, (16, size, size, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    seconds = {"bf16": float("inf"), "fp32": float("inf")}
    for _ in range(3):  # the first round warms up
        for name in seconds:
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16"):
                loss = logits_of(model(images)).float().square().mean()
            loss.backward()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
            model.zero_grad()
    winner = min(seconds, key=seconds.__getitem__)
    figures = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
    return winner, f"16 images took {figures}"
