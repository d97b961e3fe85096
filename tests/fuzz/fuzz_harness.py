"""Harness of the fuzzing: seeded inputs, each checked within bounds of time, memory and files.

A kind makes valid input once, and from then on mutates it. A case passes if the program accepts the input, or
refuses it with one line: no other error, no more than `SECONDS` and `MEMORY`, no file outside its folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastcnn.errors import TrainingError, UserError

SECONDS, MEMORY, LENGTH = 10.0, 3 << 30, 10_000
"""Bounds of a case: seconds, bytes of additional address space, and characters of a message."""


class Hang(BaseException):
    """A case took too long; nothing in the program catches it."""


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    name: str
    prepare: Callable[[Path], None]
    """Write valid input into an empty folder, in which all others run."""
    mutate: Callable[[random.Random], object]
    """Write one mutated input; return what describes it."""
    check: Callable[[], object]
    """Give the input to the program."""


@dataclass
class Outcome:
    """Counts of the cases of a kind."""

    accepted: int = 0
    refused: int = 0
    messages: list[str] = field(default_factory=list)
    """Messages of the refusals."""
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.accepted + self.refused + len(self.failures):5} cases: {self.accepted} accepted, "
            f"{self.refused} refused, {len(self.failures)} failed, slowest {self.slowest:.1f} s"
        )


def run(kind: Kind, seeds: range, seconds: float = float("inf")) -> Outcome:
    """Run a case for each seed, until the time is over."""
    outcome, end = Outcome(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{kind.name}-") as scratch, _inside(Path(scratch) / "work"):
        with _quiet():
            kind.prepare(Path())
        known = _files(Path(scratch))
        for seed in seeds:
            if time.monotonic() > end:
                break
            _run_case(kind, seed, outcome)
            written = _files(Path(scratch)) - known
            if written:
                outcome.failures.append(f"{kind.name} seed {seed}: wrote {sorted(written)[:3]}")
                known |= written
    return outcome


def _run_case(kind: Kind, seed: int, outcome: Outcome) -> None:
    shutil.rmtree("out", ignore_errors=True)
    described = kind.mutate(random.Random(f"{kind.name} {seed}"))
    started = time.monotonic()
    try:
        with _quiet(), _bounded():
            kind.check()
        outcome.accepted += 1
    except (UserError, TrainingError) as error:
        message = str(error)
        if "\n" in message or len(message) > LENGTH:
            outcome.failures.append(f"{kind.name} seed {seed}: {described}: not one line: {message[:300]!r}")
        outcome.refused += 1
        outcome.messages.append(message)
    except (Exception, Hang):
        lines = traceback.format_exc().strip().splitlines()[-9:]
        outcome.failures.append(f"{kind.name} seed {seed}: {described}\n    " + "\n    ".join(lines))
    outcome.slowest = max(outcome.slowest, time.monotonic() - started)


def _files(folder: Path) -> set[str]:
    """Return all files but those that cases may write: the folders `input` and `out`."""
    found = set()
    for place, folders, names in os.walk(folder):
        if Path(place) == folder / "work":
            folders[:] = [name for name in folders if name not in ("input", "out")]
        found |= {os.path.join(place, name) for name in names}
    return found


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Enter an empty folder, with a cache of its own and `evil.py`, which leaves a file when imported."""
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'EVIL')!r}, 'w')\nmake = dict\n")
    before, path, cache = os.getcwd(), list(sys.path), os.environ.get("FASTCNN_CACHE")
    cached = tempfile.TemporaryDirectory(prefix="fuzz-cache-")
    os.environ["FASTCNN_CACHE"] = cached.name
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        sys.modules.pop("evil", None)
        cached.cleanup()
        os.environ.pop("FASTCNN_CACHE")
        if cache is not None:
            os.environ["FASTCNN_CACHE"] = cache


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        open(os.devnull, "w") as sink,
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raise `Hang` after `SECONDS`, and let allocations beyond `MEMORY` fail."""

    started, computed = time.monotonic(), time.process_time()

    def stop(*_: object) -> None:
        """Raise, or wait on if other programs kept the processor."""
        busy = time.process_time() - computed < SECONDS / 2 and time.monotonic() - started < 5 * SECONDS
        if not busy:
            raise Hang(f"more than {SECONDS:g} s")
        signal.setitimer(signal.ITIMER_REAL, SECONDS)

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    former = signal.signal(signal.SIGALRM, stop)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        if remaining:  # the time limit of pytest goes on
            left = remaining - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
