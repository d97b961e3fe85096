"""Speed of reading the files of a data folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fastcnn import files
from fastcnn.doctor.finding import Finding

MAX_FILES, MAX_BYTES, MAX_SECONDS = 2000, 512 * 10**6, 5.0
SLOW = 50e6
"""Bytes a second; a GPU reads about ten times as many."""


def check(data: str | None) -> Iterator[Finding]:
    if data is not None:
        yield speed(Path(data))


def speed(folder: Path) -> Finding:
    """Read some files, without those parts that are in memory where the system can drop them."""
    paths = list(islice(_files(folder), MAX_FILES))
    cold = _drop(paths)
    count = total = 0
    start = time.perf_counter()
    for path in paths:
        with suppress(OSError):
            total += len(path.read_bytes())
            count += 1
        if total > MAX_BYTES or time.perf_counter() - start > MAX_SECONDS:
            break
    seconds = max(time.perf_counter() - start, 1e-6)
    if not total:
        return Finding("data", "FAIL", f"no readable file in {folder}", "use the folder of the images")
    how = "" if cold else ", perhaps from memory"
    text = (
        f"{total / seconds / 1e6:,.0f} MB/s, {count / seconds:,.0f} files/s: {count:,} files of {folder}, "
        f"{files.in_units(total / count)} each, by one thread{how}"
    )
    if total / seconds < SLOW and count / seconds < 1000:
        advice = "copy them to a local disk, or pack them: fastcnn pack FOLDER SHARDS"
        return Finding("data", "WARN", text, advice)
    return Finding("data", "OK", text)


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _drop(paths: list[Path]) -> bool:
    """Drop files from the system's memory; return False where this is not possible."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    return True
