"""`Result`: figures of an export, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcnn import files


@dataclass(frozen=True)
class Side:
    """PyTorch or a file, on the same images."""

    name: str
    """eager, the format, or int8"""
    score: float
    """Metric of the validation, in percent."""
    seconds: dict[int, dict[str, float]]
    """Median and quartiles of the seconds of a call, by the batch size."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures of an export."""

    file: Path
    bytes: int
    format: str
    precision: str
    arch: str
    images: int
    """Validation images of the comparison."""
    difference: float
    """Largest difference, relative to the largest of the eager outputs."""
    tolerance: float | None
    """Its limit; None: none, in int8."""
    agreement: float
    """Share of equal predictions, 0 to 1."""
    metric: str
    """Metric of `Side.score`, such as acc1."""
    sides: tuple[Side, ...]
    """PyTorch first."""
    environment: dict[str, Any]

    @property
    def json_file(self) -> Path:
        """JSON file of these figures, beside the exported file."""
        return self.file.with_name(f"{self.file.name}.json")

    def to_plain(self) -> dict[str, Any]:
        """Return the content of `json_file`."""
        return {**dataclasses.asdict(self), "file": self.file.name}

    def describe(self) -> str:
        """Format the figures as a table, a row for each side."""
        limit = "" if self.tolerance is None else f" (limit {self.tolerance:.0e})"
        heads = [
            "",
            self.metric,
            *(f"{unit}, batch {n}" for n in self._batches() for unit in ("ms", "img/s")),
        ]
        rows = [heads, *(self._row(side) for side in self.sides)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join(
            [
                f"{self.arch} as {self.format}, {self.precision}, {files.in_units(self.bytes)}",
                f"on {self.images} validation images: largest difference {self.difference:.1e} of the "
                f"largest output{limit}, {100 * self.agreement:.2f}% equal predictions",
                *lines,
            ]
        )

    def _batches(self) -> list[int]:
        return list(self.sides[0].seconds)

    def _row(self, side: Side) -> list[str]:
        cells = [side.name, f"{side.score:.2f}%"]
        for count, seconds in side.seconds.items():
            cells += [f"{1000 * seconds['median']:.2f}", f"{count / seconds['median']:.1f}"]
        return cells
