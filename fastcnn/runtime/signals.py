"""SIGTERM and Ctrl-C as stop requests, which the training loop polls."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HARD_EXIT_DELAY = 3.0
"""Min seconds between the first Ctrl-C and one that ends the program at once.

torchrun forwards the Ctrl-C that the terminal has already sent, so earlier ones are ignored."""
HARD_EXIT_MESSAGE = (
    "fastcnn: ended at once by another Ctrl-C; --resume continues from the last save, if there was one\n"
)


class StopRequest:
    """Stop request set by a signal; `signal` is its number.

    Another Ctrl-C raises KeyboardInterrupt, or with `exits` ends the process.
    """

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
    """End the process without cleanup, which may take long.

    Within `torch.save`, KeyboardInterrupt would become another error. Checkpoints are complete at any
    instant.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, HARD_EXIT_MESSAGE.encode())  # unlike print, safe within another print
    os._exit(128 + signal.SIGINT)


@contextmanager
def stop_on_signals(*, exits: bool = False) -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT inside the block; without effect outside the main thread.

    Args:
        exits: a further Ctrl-C ends the process; else it raises KeyboardInterrupt.
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
