"""SIGTERM and Ctrl-C as requests that the training loop answers at its next look at the device."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HARD_EXIT_DELAY = 3.0
"""Seconds after which a further Ctrl-C ends the program at once. Not sooner: torchrun passes on the Ctrl-C
that the terminal has sent already."""
HARD_EXIT_MESSAGE = (
    "fastcnn: ended at once by another Ctrl-C; --resume continues from the last save, if there was one\n"
)


class StopRequest:
    """Set by a signal; `signal` is its number. Another Ctrl-C raises KeyboardInterrupt, or with `exits` ends
    the process."""

    def __init__(self, *, exits: bool) -> None:
        self.signal: int | None = None
        self.exits = exits
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > HARD_EXIT_DELAY:
            if self.exits:
                _exit()
            raise KeyboardInterrupt


def _exit() -> None:
    """Ends the process without cleaning up, which may take long; and in the middle of `torch.save`
    KeyboardInterrupt becomes another error. Checkpoints are whole at any instant."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, HARD_EXIT_MESSAGE.encode())  # a print may be under way
    os._exit(128 + signal.SIGINT)


@contextmanager
def stop_on_signals(*, exits: bool = False) -> Iterator[StopRequest]:
    """Catches SIGTERM and SIGINT inside the block; elsewhere than in the main thread it catches nothing.

    Args:
        exits: whether a further Ctrl-C ends the process; else it raises KeyboardInterrupt.
    """
    request = StopRequest(exits=exits)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
