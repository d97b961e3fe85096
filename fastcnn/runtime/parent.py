"""The end of a child process with its parent, so that none trains on alone. Torch-free.

torchrun ends its workers when it stops in an orderly way. After a SIGKILL of torchrun they would train on.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time

GRACE = 10.0
"""Seconds from the parent's end to this process's: time for a save at the next log line."""
PERIOD = 0.5
"""Seconds between two looks at the parent."""
PR_SET_PDEATHSIG = 1


def is_torchruns() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@functools.cache
def end_with_parent(grace: float = GRACE) -> None:
    """End this process after its parent: SIGTERM at once, and the end without cleanup `grace` seconds later.

    For a child process that must not outlive its parent, never for one that a user started: a run under nohup
    outlives its shell. Call it in the child, from its main thread. The kernel sends the signal when the
    parent's thread that started the child ends (Linux); a thread looks at the parent on every POSIX system.
    """
    if os.name != "posix":
        return
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    threading.Thread(target=_follow, args=(parent, grace), name="fastcnn-parent", daemon=True).start()


def _follow(parent: int, grace: float) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)
