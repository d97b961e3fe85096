"""What a run may end with besides success; the command turns each into one line and an exit status."""

from __future__ import annotations

NAMED_AT_MOST = 50
"""Lines; a list of all is in the run's folder."""


class UserError(ValueError):
    """A mistake in what the user wrote: the message says what is wrong, where, and what to write instead.

    Every rank raises the same one.
    """


class BadImageError(UserError):
    """Too many images cannot be decoded, as a process that is alone finds out; or all of them."""


class TrainingError(RuntimeError):
    """The run cannot go on: the message says since when and what to try."""
