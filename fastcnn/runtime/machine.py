"""Settings of the process for its machine: threads, memory allocation, cuDNN, native data types."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from fastcnn.errors import LocalError, UserError
from fastcnn.runtime.distributed import Ranks

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Data types by their names in `--amp-dtype`."""
OUT_OF_MEMORY = (
    *("out of memory", "STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"),
    *("can't allocate memory", "not enough memory"),
)
"""Messages of PyTorch's allocator and the driver, of cuBLAS and cuDNN before 9, of cuDNN 9; of the CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device's or the host's memory is exhausted.

    Libraries have memory of their own, and exhausting it does not raise `torch.OutOfMemoryError`.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY)


@contextmanager
def memory_errors_named(device: torch.device) -> Iterator[None]:
    """Convert exhausted memory to one line with the settings that need less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"(?:tried|Tried|Unable) to allocate ([\d.]+) (\w+)", str(error))
        size = f" for {asked[1]} {asked[2]}" if asked else ""
        raise LocalError(
            f"not enough memory on {device.type}{size}: use a smaller --batch-size, --img-size, --arch or "
            "--num-classes"
        ) from error


def cores_per_process(ranks: Ranks) -> int:
    """Return the number of this node's cores per process."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // ranks.local_world_size)


def prepare(device: torch.device, cores: int, *, deterministic: bool) -> None:
    """Configure torch and the C library for the whole process."""
    if device.type == "cpu":
        torch.set_num_threads(cores)  # torchrun sets one thread per process
        keep_freed_memory()
    limit_compilers(cores)
    torch.backends.cudnn.benchmark = not deterministic  # shapes are fixed
    set_determinism(enabled=deterministic)


def set_determinism(*, enabled: bool) -> None:
    """Choose deterministic algorithms or not; call it before the first product on a GPU.

    Torch reads cuBLAS's variable once, at that product, and without it raises RuntimeError from then on.
    """
    torch.use_deterministic_algorithms(enabled)
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def limit_compilers(cores: int) -> None:
    """Limit the processes of torch.compile to the cores of this process; torch takes those of the node.

    $TORCHINDUCTOR_COMPILE_THREADS overrides it.
    """
    if COMPILE_THREADS in os.environ:
        return
    config: Any = sys.modules.get("torch._inductor.config")
    if config is None:  # not imported here, which is slow
        os.environ[COMPILE_THREADS] = str(min(32, cores))
    else:
        config.compile_threads = min(config.compile_threads, cores)


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of activations and gradients, without mapping and unmapping it each step.

    As fast as tcmalloc (benchmarks/LOG.md). Without effect on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context of a forward pass in `dtype`; float32 needs none."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def has_compiler() -> bool:
    """Return whether a C++ compiler is installed, which torch.compile requires on the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name)


COMPILE_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
"""Environment variable that torch reads at its first compilation."""
EMULATED = 4
"""Min slowdown of a product against float32 for a dtype to count as emulated."""
NATIVE_DTYPES = "FASTCNN_NATIVE_DTYPES"
"""Environment variable that overrides the check with a list of native dtypes, such as "fp32,bf16"."""
NO_BF16 = "this processor has no bf16 arithmetic"


def is_native(dtype: str, device: torch.device | None = None) -> bool:
    """Return whether a device supports `dtype` natively instead of emulating it.

    An emulated product on the CPU takes 10 to 100 times as long as one in float32. Convolutions in an
    emulated dtype fall back to slow reference code. Neither is worth measuring.

    Args:
        dtype: a key of `DTYPES`.
        device: default: the CPU. GPUs are assumed to support all of `DTYPES`.

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
    """Check oneDNN's support, then time a small product; without oneDNN, time it alone."""
    if torch.backends.mkldnn.is_available():
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported")
        if not supported():
            return False
    return product_seconds(DTYPES[dtype]) < EMULATED * product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype, side: int = 128) -> float:
    """Return the shortest time of five products of square matrices, in seconds."""
    a, b = torch.ones(2, side, side, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
