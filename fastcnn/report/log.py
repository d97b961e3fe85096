"""The records of a run's metrics.jsonl, read with limits: lines may be damaged, or not written yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "metrics.jsonl"
MAX_LINE, MAX_BYTES = 100_000, 500_000_000
"""Limits of a line and of the whole log: longer lines are damaged, later ones are not read."""
KINDS = "train", "epoch", "test"
EPOCH = b'{"kind": "epoch"'
"""Beginning of the line of an epoch."""


class Log:
    """Iterable over the valid records of a log; none if there is no log.

    Args:
        only_epochs: skip the records of log lines after the first one, which are most of the file.
    """

    def __init__(self, folder: Path, *, only_epochs: bool = False) -> None:
        self.path = folder / LOG
        self.only_epochs = only_epochs
        self.damaged = 0
        """Lines of the last iteration that are no records."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.damaged = 0
        for number, line in enumerate(self._lines()):
            if self.only_epochs and number and not line.startswith(EPOCH):
                continue
            record = _parse(line)
            if record is None:
                self.damaged += 1
            else:
                yield record

    def _lines(self) -> Iterator[bytes]:
        try:
            if not self.path.is_file():  # a pipe would wait for ever
                return
            with self.path.open("rb") as file:
                while (line := file.readline(MAX_LINE)) and file.tell() < MAX_BYTES:
                    if line.endswith(b"\n") or len(line) == MAX_LINE:  # else it is being written
                        yield line
        except OSError:
            self.damaged += 1


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a record with finite numbers where readers expect them; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        return None
    needed = ("progress", "epoch") if record["kind"] == "epoch" else ("progress",)
    if not all(is_number(record.get(name)) for name in needed):
        return None
    return record


def is_number(value: object) -> bool:
    """Return whether a value out of a file is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300  # not of NaN, and without an overflow of large integers


def numbers(value: object) -> dict[str, float]:
    """Return the finite numbers of a dict out of a file; {} for anything else."""
    if not isinstance(value, dict):
        return {}
    return {str(name): number for name, number in value.items() if is_number(number)}
