"""Signals before the training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fastcnn.runtime.signals import end_on_interrupt

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
INTERRUPTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    pass  # as some modules do
"""


@pytest.mark.parametrize("program", ["fastcnn.train", "fastcnn"])
def test_ctrl_c_while_modules_are_imported_ends_the_process_without_a_word(tmp_path, program):
    (tmp_path / "annotated_types.py").write_text(INTERRUPTED)  # imported by fastcnn.config
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    words = ["train"] if program == "fastcnn" else []
    done = subprocess.run(
        [sys.executable, "-m", program, *words, "--help"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_process_that_ignores_ctrl_c_goes_on_to():
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler, expected in (
            (signal.SIG_IGN, signal.SIG_IGN),
            (signal.default_int_handler, signal.SIG_DFL),
        ):
            signal.signal(signal.SIGINT, handler)
            end_on_interrupt()
            assert signal.getsignal(signal.SIGINT) == expected
    finally:
        signal.signal(signal.SIGINT, before)
