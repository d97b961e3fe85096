"""SIGTERM and Ctrl-C: the end of the process before the training, stop requests in it. Torch-free."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

HARD_EXIT_DELAY = 3.0
"""Min seconds between the first Ctrl-C and one that ends the program at once.

torchrun forwards the Ctrl-C that the terminal has already sent, so earlier ones are ignored."""
HARD_EXIT_MESSAGE = (
    "fastcnn: ended at once by another Ctrl-C; --resume continues from the last save, if there was one\n"
)


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, as SIGTERM does, without KeyboardInterrupt and its traceback.

    KeyboardInterrupt within an import may become any other error, or be caught. A process that ignores
    SIGINT, as in the background of a script, goes on to.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_at_once(status: int) -> NoReturn:
    """End the process without cleanup, which may take long, or wait for a lost rank."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed pipe
            stream.flush()
    os._exit(status)


class StopRequest:
    """Stop request set by a signal; `signal` is its number.

    Another Ctrl-C raises KeyboardInterrupt, or with `exits` ends the process.
    """

    def __init__(self, *, exits: bool, check_peers: Callable[[], None] = lambda: None) -> None:
        self.signal: int | None = None
        self.exits = exits
        self.check_peers = check_peers
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
def stop_on_signals(
    *, exits: bool = False, check_peers: Callable[[], None] = lambda: None
) -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT inside the block; without effect outside the main thread.

    Args:
        exits: a further Ctrl-C ends the process; else it raises KeyboardInterrupt.
        check_peers: raises PeerLostError if another rank is lost.
    """
    request = StopRequest(exits=exits, check_peers=check_peers)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
