"""Work of two ranks for tests/test_train.py: trainings and validations in sequence."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import fastcnn
from fastcnn.train import main


def results(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the final validation metrics of each run."""
    return [fastcnn.fit(**settings).val for settings in runs]


def command(folder: str, *flags: str) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of the command in a folder."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(list(flags))
    return status, out.getvalue(), err.getvalue()
