"""Errors that end a run; the command converts each to one line and an exit status."""

from __future__ import annotations

NAMED_AT_MOST = 50
"""Max lines of a list in the log; the full list is in the run's folder."""


class UserError(ValueError):
    """A user's mistake; the message names the error, its place and the correction.

    Every rank raises the same one.
    """


class LocalError(UserError):
    """A user's mistake that one process may meet alone, so that it prints the message itself."""


class BadImageError(LocalError):
    """Too many undecodable images, found by one process alone, or no decodable image."""


class TrainingError(RuntimeError):
    """The run cannot continue; the message names the step and settings to try."""
