"""Helpers for tests of whole runs: quick settings, a run's log, a killed run, pytest in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcnn.config import flag
from fastcnn.engine import checkpoint

QUICK_SETTINGS: dict[str, Any] = {
    "amp_dtype": "fp32",  # this and the next two skip the timed trials
    "channels_last": "on",
    "compile": "off",
    "batch_size": 16,
    "workers": 1,
}


def as_flags(settings: dict[str, Any]) -> tuple[str, ...]:
    """Convert settings of `fastcnn.fit` to command-line flags."""
    words: list[str] = []
    for name, value in settings.items():
        words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return tuple(words)


QUICK = as_flags({"arch": "lenet5", **QUICK_SETTINGS})


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of a kind ("train" or "epoch") in a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


class Killed(BaseException):
    """Simulated kill: nothing in the program catches it."""


def interrupt_after(step: int, run: Callable[[], Any]) -> None:
    """Kill a run right after the checkpoint of a step."""
    real = checkpoint.save

    def save_then_die(path: Path, content: dict[str, Any], best: Path | None = None) -> None:
        real(path, content, best)
        if content["step"] == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        with pytest.raises(Killed):
            run()


def start_pytest(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start pytest as a user would: the variables that mark a child process of pytest are not inherited.

    Under PYTEST_XDIST_WORKER, for example, pytest-benchmark measures nothing and writes no file.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=cwd,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_pytest(*words: str, cwd: Path) -> str:
    """Return the output of a pytest that must pass."""
    process = start_pytest(*words, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output
