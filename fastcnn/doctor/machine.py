"""Python, cores, limits, memory, disks, clock and extras. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fastcnn import files
from fastcnn.doctor.finding import Finding

MIN_FILES = 1024
MIN_SHARED = 10**9
MIN_FREE = 5 * 10**9
MAX_DRIFT = 0.05
"""Seconds between the clocks after `CLOCK_SECONDS`."""
CLOCK_SECONDS = 0.5


def check(data: str | None) -> Iterator[Finding]:
    yield Finding("python", "OK", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield cores(usable_cores(), quota())
    yield from open_files()
    yield from shared_memory()
    yield from free_space("disk, runs", Path.cwd())
    yield from free_space("disk, temporary", Path(tempfile.gettempdir()))
    yield clock()
    yield from extras()


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the cores that a container's limit allows; None without a limit."""
    with suppress(OSError, ValueError):
        limit, period = (root / "cpu.max").read_text().split()  # cgroup v2
        return None if limit == "max" else int(limit) / int(period)
    with suppress(OSError, ValueError):
        limit, period = ((root / "cpu" / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return None if int(limit) <= 0 else int(limit) / int(period)
    return None


def cores(usable: int, limit: float | None) -> Finding:
    text = f"{usable} of {os.cpu_count()} usable"
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        text += f", OMP_NUM_THREADS={threads}"
    if limit is not None and limit < usable:
        whole = max(1, int(limit))
        advice = f"start it with taskset -c 0-{whole - 1}, or raise the container's limit"
        return Finding("cores", "WARN", f"{text}, but a limit of {limit:g} cores stalls more threads", advice)
    return Finding("cores", "OK", text)


def open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,}" if soft != resource.RLIM_INFINITY else "no limit"
    if 0 <= soft < MIN_FILES:
        advice = f"run ulimit -n {MIN_FILES if hard < 0 else min(4096, hard)} first"
        yield Finding("open files", "WARN", f"at most {text}", advice)
    else:
        yield Finding("open files", "OK", text)


def shared_memory(place: Path = Path("/dev/shm")) -> Iterator[Finding]:
    if not place.is_dir():
        return
    total = shutil.disk_usage(place).total
    if total < MIN_SHARED:
        advice = "in a container, add --shm-size 8g to docker run: NCCL needs it for several GPUs"
        yield Finding("shared memory", "WARN", files.in_units(total), advice)
    else:
        yield Finding("shared memory", "OK", files.in_units(total))


def free_space(name: str, place: Path) -> Iterator[Finding]:
    free = files.free_bytes(place)
    if free is None:
        return
    if free < MIN_FREE:
        advice = "free some: checkpoints and the cache of torch.compile need space"
        yield Finding(name, "WARN", f"{files.in_units(free)} free in {place}", advice)
    else:
        yield Finding(name, "OK", f"{files.in_units(free)} free in {place}")


def clock(seconds: float = CLOCK_SECONDS) -> Finding:
    """Compare the wall clock with the monotonic one."""
    wall, steady = time.time(), time.perf_counter()
    time.sleep(seconds)
    drift = abs((time.time() - wall) - (time.perf_counter() - steady))
    if drift > MAX_DRIFT:
        advice = "check the time service of this machine: figures and peers' heartbeats rely on it"
        return Finding("clock", "WARN", f"jumped by {drift:.2f} s in {seconds:g} s", advice)
    return Finding("clock", "OK", f"{1000 * drift:.1f} ms apart after {seconds:g} s")


def extras() -> Iterator[Finding]:
    """List the packages of the extras."""
    try:
        wanted = importlib.metadata.requires("fastcnn") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("extras", "WARN", "fastcnn is not installed", "run pip install -e . in its folder")
        return
    found, missing = [], []
    for requirement in wanted:
        match = re.match(r"([\w.-]+).*extra == ['\"](\w[\w-]*)['\"]", requirement)
        if match is None or match[2] in ("test", "dev") or match[1] == "fastcnn":
            continue
        try:
            found.append(f"{match[1]} {importlib.metadata.version(match[1])}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(match[2])
    text = ", ".join(dict.fromkeys(found)) or "none"
    others = f"; not installed: {', '.join(dict.fromkeys(missing))}" if missing else ""
    yield Finding("extras", "OK", text + others)
