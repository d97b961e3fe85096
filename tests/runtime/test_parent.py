"""A child process ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from processes import is_running

pytestmark = pytest.mark.skipif(os.name != "posix", reason="parents are looked at on POSIX systems")

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()  # it runs
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import signal, sys, time
from fastcnn.runtime import parent
parent.PERIOD = 0.05
{before}
parent.end_with_parent({grace})
parent.end_with_parent({grace})  # once is enough
print(flush=True)
time.sleep(60)
"""
NO_PRCTL = "sys.platform = 'another'"
DEAF = "signal.signal(signal.SIGTERM, lambda *_: None)"


@pytest.mark.parametrize("before", ["", NO_PRCTL, DEAF, f"{NO_PRCTL}; {DEAF}"])
def test_a_child_ends_with_its_parent(before):
    grace = 0.3 if DEAF in before else 60
    code = CHILD.format(before=before, grace=grace)
    with subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    begin = time.monotonic()
    while is_running(child):
        assert time.monotonic() - begin < 5
        time.sleep(0.01)
    assert time.monotonic() - begin >= (0.2 if DEAF in before else 0)
