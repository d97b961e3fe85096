"""Figures and tables as text. Names out of files are printed without characters that a terminal obeys."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import Any

from fastcnn.report.run import Run

UNKNOWN = "-"


def plain(text: object, at_most: int = 200) -> str:
    """Return a text in one line without control characters, cut if it is long."""
    line = "".join(character if character.isprintable() else "?" for character in str(text))
    return line if len(line) <= at_most else line[: at_most - 3] + "..."


def value(setting: Any) -> str:
    """Format a setting as on the command line."""
    if isinstance(setting, bool):
        return "on" if setting else "off"
    if setting is None:
        return "none"
    if isinstance(setting, (list, tuple)):
        shown = " ".join(map(value, setting[:30]))
        return plain(shown if len(setting) <= 30 else f"{shown} ...")
    if isinstance(setting, float):
        return f"{setting:.0f}" if setting.is_integer() and abs(setting) < 1e6 else f"{setting:.4g}"
    return plain(setting)


def duration(seconds: float | None) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    if seconds is None:
        return UNKNOWN
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def moment(unix: float | None) -> str:
    """Format a time in the local zone."""
    try:
        return UNKNOWN if unix is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))
    except (OverflowError, OSError, ValueError):  # a time out of a file
        return UNKNOWN


def best(run: Run) -> str:
    """Format the best validation, such as "acc1 91.20%"."""
    return UNKNOWN if run.best is None else f"{plain(run.metric)} {run.best[0]:.2f}%"


def epochs(run: Run) -> str:
    """Format the finished epochs of the planned ones."""
    return f"{run.done:g}/{UNKNOWN if run.planned is None else f'{run.planned:g}'}"


def rate(images_per_second: float | None) -> str:
    return UNKNOWN if images_per_second is None else f"{images_per_second:,.0f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return a table in aligned columns.

    Args:
        right: numbers of the columns that are aligned to the right.
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def wide_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are split over several ones where the terminal is too narrow.

    Each begins with the first column.
    """
    width = shutil.get_terminal_size((120, 24)).columns
    widths = [max(len(row[i]) for row in (header, *rows)) + 2 for i in range(len(header))]
    blocks: list[list[int]] = []
    for column in range(1, len(header)):
        block = blocks[-1] if blocks else []
        if block and widths[0] + sum(widths[i] for i in block) + widths[column] <= width + 2:
            block.append(column)
        else:
            blocks.append([column])
    parts = []
    for block in blocks:
        shown = [[row[0], *(row[i] for i in block)] for row in (header, *rows)]
        parts.append(table(shown[0], shown[1:]))
    return "\n\n".join(parts)
