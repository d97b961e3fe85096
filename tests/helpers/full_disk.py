"""Disks that refuse writes: simulated in this process, or by a limit of file sizes on a rank."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import pytest

import worker_fits
from fastcnn import files


def refuse_writes(
    monkeypatch: pytest.MonkeyPatch, code: int, when: Callable[[str, int], bool] = lambda name, count: True
) -> None:
    """Let writes through `fastcnn.files` fail with an error as soon as `when(name, bytes so far)` holds."""
    written = 0

    class Device(io.FileIO):
        def write(self, content: Any) -> int:
            nonlocal written
            written += memoryview(content).nbytes
            if when(str(self.name), written):
                raise OSError(code, os.strerror(code))
            return super().write(content)

    monkeypatch.setattr(files, "_Raw", type("_Raw", (files._Raw, Device), {}))


def limited(folder: str, limit: int, *flags: str) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of the command; rank 0 writes no file beyond `limit` bytes."""
    import resource

    if os.environ.get("RANK", "0") == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return worker_fits.command(folder, *flags)
