"""Triton, and the C++ compiler of torch.compile on the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator

from fastcnn.doctor.finding import Finding


def check_triton(data: str | None) -> Iterator[Finding]:
    """Compile a kernel; launch it where there is a GPU."""
    import torch

    if importlib.util.find_spec("triton") is None:
        if torch.cuda.is_available():
            yield Finding("Triton", "FAIL", "not installed", "pip install triton")
        else:
            yield Finding("Triton", "OK", "not installed; only a GPU needs it")
        return
    import triton

    from fastcnn.doctor.triton_kernel import compile_ahead, launch

    size = compile_ahead()
    text = f"{triton.__version__} compiles a kernel for compute capability 8.0 ({size:,} bytes)"
    if not torch.cuda.is_available():
        yield Finding("Triton", "OK", text)
    elif launch():
        yield Finding("Triton", "OK", f"{text} and launches one on this GPU")
    else:
        yield Finding("Triton", "FAIL", "a kernel computes wrong values", "install the triton of this torch")


def check_compile(data: str | None) -> Iterator[Finding]:
    """Compile a function for the CPU."""
    from fastcnn.runtime.machine import has_compiler

    name = "torch.compile"
    if not has_compiler():
        advice = "apt install g++" if sys.platform.startswith("linux") else "install a C++ compiler"
        yield Finding(name, "WARN", "no C++ compiler, so not on the CPU", advice)
        return
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else a pool of processes starts
    import torch

    def double(x: torch.Tensor) -> torch.Tensor:
        return (2 * x).sin()

    x = torch.arange(64.0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # a cached result would show nothing
        same = torch.allclose(torch.compile(double)(x), double(x))
    if same:
        yield Finding(name, "OK", "compiles for the CPU")
    else:
        yield Finding(name, "FAIL", "computes wrong values", "use --compile off")
