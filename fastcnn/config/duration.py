"""Durations, as in `--time-budget 1h30m`. Torch-free."""

from __future__ import annotations

import re

from fastcnn.errors import UserError


def parse_time(text: str, flag: str = "--time-budget") -> float:
    """Parse a duration such as 90s, 10m or 1h30m into seconds.

    Args:
        flag: name in the message.

    Raises:
        UserError: `text` is not a duration.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = 0
    if match is not None:
        seconds = sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1)))
    if seconds == 0:
        raise UserError(f"{flag} {text}: use a time such as 90s, 10m or 1h30m")
    return float(seconds)
