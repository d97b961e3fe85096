"""Real runs for tests of faults: a small training, started from scratch by python or torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from processes import is_running
from runs import QUICK

FLAGS = (
    *QUICK,
    "--data-backend",
    "torch",
    "--deterministic",
    "--lr",
    "0.05",
    "--checkpoint-steps",
    "1",
    "--val-interval",
    "3",
)
FLAGS += ("--val-interval", "3", "--log-interval", "2", "--resume", "auto", "--output-dir", "run")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TRAIN = ("-m", "fastcnn.train", *FLAGS)


class Launch:
    """A run in a folder, with its output in out.txt. torchrun starts its workers in sessions of their own."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "out.txt"
        self.begin = time.monotonic()
        self.mark = f"FASTCNN_LAUNCH={uuid.uuid4()}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict([self.mark.split("=")])}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=output, start_new_session=True, env=environment
            )

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.running():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def running(self) -> list[int]:
        """Return the processes that the run has started and that run, in whatever session."""
        return [pid for pid in _pids() if self.mark in _environment(pid) and is_running(pid)]

    def worker(self, rank: int) -> int | None:
        """Return torchrun's process of a rank; None if there is none now."""
        for pid in self.running():
            if f"RANK={rank}" in _environment(pid):
                return pid
        return None

    def wait(self, seconds: float) -> int:
        """Return the exit status, -n after signal n, once all processes of the session have ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None or self.running():
            assert time.monotonic() < deadline, f"still running after {seconds:g} s:\n{self.text()}"
            time.sleep(0.02)
        return self.process.returncode

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.text()
            assert self.process.poll() is None, self.text()
            time.sleep(0.02)

    def text(self) -> str:
        return self.output.read_text()


def flags(data: Path, epochs: int) -> tuple[str, ...]:
    return (*TRAIN, "--data", str(data), "--epochs", str(epochs))


def alone(folder: Path, data: Path, epochs: int) -> Launch:
    return Launch(folder, [sys.executable, *flags(data, epochs)])


def by_torchrun(folder: Path, data: Path, epochs: int, *, max_restarts: int = 0) -> Launch:
    """Start two ranks."""
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", str(max_restarts))
    return Launch(folder, [*TORCHRUN, *options, *flags(data, epochs)])


def check_whole(folder: Path) -> None:
    """Check that no partial file and no lock is left in a run's folder."""
    left = [path.name for path in (folder / "run").glob(".*")]
    assert left == [], left


def check_equal(folder: Path, whole: Path) -> None:
    """Check that two runs ended with the same weights, bit for bit."""
    first, second = (torch.load(path / "run" / "last.pt") for path in (folder, whole))
    assert first["step"] == second["step"]
    for name, tensor in second["model"].items():
        assert torch.equal(tensor, first["model"][name]), name


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_text().split("\0")
    except (OSError, UnicodeDecodeError):  # it has ended, or is not ours
        return []
