"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: a word or two.
        status: WARN if a run works, but not as well as it could.
        text: the state, with figures.
        advice: an imperative; "" with OK.
    """

    name: str
    status: Status
    text: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f": {self.advice}" if self.advice else ""
        return f"{self.status:<4}  {self.name:<16}  {self.text}{advice}"
