"""Errors that end a run; the command converts each to one line and an exit status."""

from __future__ import annotations

import io
import sys

NAMED_AT_MOST = 50
"""Max lines of a list in the log; the full list is in the run's folder."""


RESUMABLE = 3
"""Exit status of a run that stopped for a reason outside of it; --resume continues it."""


def escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks as escapes, such as a file name's stray bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class UserError(ValueError):
    """A user's mistake; the message names the error, its place and the correction.

    Every rank raises the same one. Line breaks, as of a name out of a file, are escaped.
    """

    status = 2
    """Exit status of the command."""

    def __init__(self, message: str) -> None:
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))

    def shared(self) -> UserError:
        """Return the error that all ranks raise in its place."""
        return UserError(str(self))


class LocalError(UserError):
    """A user's mistake that one process may meet alone, so that it prints the message itself."""


class WriteError(UserError):
    """A file that cannot be written, such as on a full disk; its former content stays.

    A run that it ends can be resumed from its last checkpoint.

    Args:
        code: value of `errno`, if any.
    """

    status = RESUMABLE

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code

    def shared(self) -> WriteError:
        return WriteError(str(self), self.code)


class BadImageError(LocalError):
    """Too many undecodable images, found by one process alone, or no decodable image."""


class ReadError(LocalError):
    """A file that this machine cannot read now; the file itself may be good.

    A run that it ends can be resumed from its last checkpoint.
    """

    status = RESUMABLE

    def shared(self) -> ReadError:
        return ReadError(str(self))


class TrainingError(RuntimeError):
    """The run cannot continue; the message names the step and settings to try."""

    status = 1


class PeerLostError(RuntimeError):
    """Another rank is lost; the message names it."""

    def __init__(self, message: str, status: int = RESUMABLE) -> None:
        super().__init__(message)
        self.status = status

    def __str__(self) -> str:
        return f"{self.args[0]}; --resume continues from the last save"
