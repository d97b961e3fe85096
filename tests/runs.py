"""What tests of whole runs share: quick settings, the log of a run, and a run that is killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcnn import checkpoint
from fastcnn.config import flag

QUICK_SETTINGS: dict[str, Any] = {
    "amp_dtype": "fp32",  # these three: else the machine is tried for them
    "channels_last": "on",
    "compile": "off",
    "batch_size": 16,
    "workers": 1,
}


def as_flags(settings: dict[str, Any]) -> tuple[str, ...]:
    """What `fastcnn.fit` takes, for the command line."""
    words: list[str] = []
    for name, value in settings.items():
        words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return tuple(words)


QUICK = as_flags({"arch": "lenet5", **QUICK_SETTINGS})


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Those of a kind ("train" or "epoch") in a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def interrupt_after(step: int, run: Callable[[], Any]) -> None:
    """Kills a run right after the checkpoint of a step."""
    real = checkpoint.save

    def save_then_die(path: Path, content: dict[str, Any], best: Path | None = None) -> None:
        real(path, content, best)
        if content["step"] == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        with pytest.raises(Killed):
            run()
