"""Settings of the process for its machine: threads, memory allocation, cuDNN, native data types."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import sys
import time

import torch

from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Of `--amp-dtype`."""


def cores_per_process(ranks: Ranks) -> int:
    """Processor cores of this node that each of its processes may use."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // ranks.local_world_size)


def prepare(device: torch.device, cores: int, *, deterministic: bool) -> None:
    """Set torch and the C library up, for the whole process."""
    if device.type == "cpu":
        torch.set_num_threads(cores)  # torchrun allows each of several processes one
        keep_freed_memory()
    torch.backends.cudnn.benchmark = not deterministic  # shapes are fixed
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of activations and gradients instead of mapping and unmapping it in every
    step.

    As fast as tcmalloc (benchmarks/LOG.md). Without effect on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


TRIAL_LIMIT = 10.0
"""Seconds of the first trial step after which no other arithmetic is tried."""


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs on the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name)


EMULATED = 4
"""Slowdown against a float32 product from which on a dtype counts as emulated."""
NATIVE_DTYPES = "FASTCNN_NATIVE_DTYPES"
"""Environment variable that lists the native dtypes, such as "fp32,bf16", and replaces the check."""
NO_BF16 = "this processor has no bf16 arithmetic"


def is_native(dtype: str, device: torch.device | None = None) -> bool:
    """Whether a device computes in `dtype`, rather than emulate it.

    An emulated product on the CPU takes 10 to 100 times as long as one in float32, and convolutions in an
    emulated dtype fall back to slow reference code: neither is worth measuring.

    Args:
        dtype: of `DTYPES`.
        device: default: the CPU. GPUs are taken to compute in all of `DTYPES`.

    Raises:
        UserError: $FASTCNN_NATIVE_DTYPES names something else.
    """
    if dtype == "fp32" or (device is not None and device.type != "cpu"):
        return True
    override = os.environ.get(NATIVE_DTYPES)
    if override is None:
        return _is_native(dtype)
    names = [name.strip() for name in override.split(",")]
    for name in names:
        if name not in DTYPES:
            raise UserError(f"{NATIVE_DTYPES}={override}: use some of {', '.join(DTYPES)}, not {name!r}")
    return dtype in names


@functools.cache
def _is_native(dtype: str) -> bool:
    """oneDNN's answer; a yes, or a build without oneDNN, is checked by the time of a small product."""
    if torch.backends.mkldnn.is_available():
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported")
        if not supported():
            return False
    return _product_seconds(DTYPES[dtype]) < EMULATED * _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype, side: int = 128) -> float:
    """The shortest of five products of square matrices."""
    a, b = torch.ones(2, side, side, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
