"""How many epochs a time allows. Torch-free."""

from __future__ import annotations

import math
import re

from fastcnn.errors import UserError

RESERVE = 0.03
"""Share of the time that is left for what was not measured."""


def parse_time(text: str) -> float:
    """Seconds of a time such as 90s, 10m or 1h30m.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = 0
    if found is not None:
        seconds = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1)))
    if seconds == 0:
        raise UserError(f"--time-budget {text}: write a time such as 90s, 10m or 1h30m")
    return float(seconds)


def validations(steps: int, steps_per_epoch: int, interval: int) -> int:
    """Of a run of so many updates that validates every so many epochs, and at its end."""
    epochs = steps // steps_per_epoch
    at_the_end = epochs * steps_per_epoch != steps or epochs % interval != 0
    return epochs // interval + at_the_end


def epochs_within(
    *,
    budget: float,
    elapsed: float,
    step_seconds: float,
    steps_per_epoch: int,
    val_seconds: float,
    val_interval: int = 1,
    at_the_end: float = 0.0,
) -> float:
    """Return the most epochs, a multiple of 1 / steps_per_epoch, whose updates and validations fit a time.

    Args:
        budget: seconds of the whole run.
        elapsed: seconds that have passed already.
        at_the_end: seconds of what follows the last validation.

    Returns:
        At least one update.
    """

    def fits(steps: int) -> bool:
        taken = steps * step_seconds + validations(steps, steps_per_epoch, val_interval) * val_seconds
        return elapsed + taken + at_the_end <= budget * (1 - RESERVE)

    low, high = 1, 2 + math.ceil(budget / step_seconds)
    while high - low > 1:  # the first update is trained in any case
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low / steps_per_epoch
