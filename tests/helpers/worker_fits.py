"""What two ranks run for tests/test_train.py: trainings and validations, one after the other."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import fastcnn
from fastcnn.train import main


def results(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What each run, given by its settings, validated at its end."""
    return [fastcnn.fit(**settings).val for settings in runs]


def command(folder: str, *flags: str) -> tuple[int, str, str]:
    """Exit status, output and errors of the command in a folder."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(list(flags))
    return status, out.getvalue(), err.getvalue()
