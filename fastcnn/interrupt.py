"""SIGTERM and Ctrl-C as requests that the training loop answers at its next look at the device."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPATIENCE = 3.0
"""Seconds after which a further Ctrl-C ends the program at once. Not sooner: torchrun passes on the Ctrl-C
that the terminal has sent already."""


class StopRequest:
    """Set by a signal; `signal` is its number."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > IMPATIENCE:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catches SIGTERM and SIGINT inside the block; elsewhere than in the main thread it catches nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
