"""Start-up time of commands, each time in a fresh process.

    python -m pytest benchmarks/bench_startup.py
    python -m pytest benchmarks/bench_startup.py -k "not resnet50"
    python -m pytest benchmarks/bench_startup.py --quick        # LeNet-5 alone

`import torch` and the two `--help` are timed to the end of the process. A training on the demo set, with
--log-interval 1, is timed from the start of the command to the first line with a step. "Cold" is the first
training of all, which draws the demo set and reads its headers; with --compile on, the compiler's cache is
empty. Programs and libraries are in the system's cache. The stages of a training are measured in one more
process (startup_stages.py), which is not timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastcnn
from comparison import Comparison
from fastcnn.runtime.distributed import Ranks, choose_device

TARGETS = {"lenet5, cold": 15.0}
"""Target seconds, on two cores."""


@dataclass(frozen=True)
class Side:
    """A Python command.

    Args:
        command: arguments of the interpreter.
        cold: environment variables of the cache folders that are empty each time.
    """

    command: tuple[str, ...]
    cold: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        return "--log-interval" in self.command


def training(arch: str, *flags: str, cold: tuple[str, ...] = ()) -> Side:
    return Side(("-m", "fastcnn.train", "--arch", arch, "--log-interval", "1", *flags), cold)


ROWS: dict[str, dict[str, Side]] = {
    "startup-lenet5": {
        "import torch": Side(("-c", "import torch")),
        "fastcnn --help": Side(("-m", "fastcnn", "--help")),
        "fastcnn.train --help": Side(("-m", "fastcnn.train", "--help")),
        "lenet5, cold": training("lenet5", cold=("FASTCNN_CACHE",)),
        "lenet5": training("lenet5"),
    },
    "startup-resnet50": {
        "resnet50": training("resnet50"),
        "resnet50 --compile on, cold": training(
            "resnet50", "--compile", "on", cold=("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        ),
        "resnet50 --compile on": training("resnet50", "--compile", "on"),
    },
}
NOT_QUICK = "startup-resnet50"


def is_step(line: str) -> bool:
    """True for a line of a run's output that reports a training step."""
    return line.startswith("epoch ") and "  step " in line


def environment(caches: Path, side: Side, fresh: Path) -> dict[str, str]:
    """Environment of a side's process: this code, with warm caches or cold ones in the folder `fresh`."""
    root = Path(fastcnn.__file__).parents[1]
    code = [str(root), str(root / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    names = ("FASTCNN_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    kept = {name: str((fresh if name in side.cold else caches) / name) for name in names}
    return {**os.environ, **kept, "PYTHONPATH": os.pathsep.join(code)}


@contextlib.contextmanager
def process(command: list[str], folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a process; at the end it is killed with all of its children."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as started:
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(started.pid, signal.SIGKILL)


def seconds_until_ready(side: Side, caches: Path, folder: Path) -> float:
    """Seconds until one fresh process in an empty folder is ready.

    Raises:
        RuntimeError: the process ended before; with its last lines.
    """
    lines: list[str] = []
    variables = environment(caches, side, folder / "caches")
    start = time.perf_counter()
    with process([sys.executable, *side.command], folder, variables) as started:
        assert started.stdout is not None
        for line in started.stdout:
            lines.append(line)
            if side.trains and is_step(line):
                return time.perf_counter() - start
        if started.wait() == 0 and not side.trains:
            return time.perf_counter() - start
    raise RuntimeError(f"{' '.join(side.command)}: {''.join(lines[-5:])}")


def stages(side: Side, caches: Path, folder: Path) -> dict[str, float]:
    """Seconds of each stage of a training until its first step; see startup_stages.py."""
    script = str(Path(__file__).with_name("startup_stages.py"))
    command = [sys.executable, script, str(time.time()), *side.command[2:]]
    with process(command, folder, environment(caches, side, folder / "caches")) as started:
        last = started.communicate()[0].splitlines()[-1]
    return {name: round(value, 3) for name, value in json.loads(last).items()}


def measure(row: str, rounds: int, folder: Path, *, with_stages: bool) -> Comparison:
    """Time the sides of a row in turn, after one run of each side with warm caches."""
    sides = ROWS[row]
    caches = folder / "caches"
    numbers = iter(range(1_000))

    def empty() -> Path:
        path = folder / str(next(numbers))
        path.mkdir(parents=True)
        return path

    # Fill the caches, measure the stages, then time the sides.
    for side in sides.values():
        if not side.cold:
            seconds_until_ready(side, caches, empty())
    found = {
        name: {"stages": stages(side, caches, empty())}
        for name, side in sides.items()
        if side.trains and with_stages
    }
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            seconds[name].append(seconds_until_ready(sides[name], caches, empty()))
    return Comparison(
        what=row,
        baseline=next(iter(sides)),
        seconds=seconds,
        device=choose_device("auto", Ranks()),
        unit="start",
        settings={
            "target_seconds": {name: target for name, target in TARGETS.items() if name in sides},
            "commands": {name: " ".join(("python", *side.command)) for name, side in sides.items()},
        },
        sides=found,
    )


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory, quick, save):
    """Comparison of a row, measured on first use."""
    known: dict[str, Comparison] = {}

    def of(row: str) -> Comparison:
        if row not in known:
            known[row] = measure(row, 2 if quick else 3, tmp_path_factory.mktemp(row), with_stages=not quick)
            save(known[row])
        return known[row]

    return of


@pytest.mark.parametrize(
    ("row", "side"), [(row, side) for row, sides in ROWS.items() for side in sides], ids=lambda name: name
)
def test_ready(row, side, comparisons, quick, play):
    if quick and row == NOT_QUICK:  # a compiled start alone takes two minutes
        pytest.skip("takes too long for --quick")
    play(comparisons(row), side)
