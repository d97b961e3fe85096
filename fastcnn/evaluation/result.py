"""`Evaluation`: the result for Python, for metrics.json and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcnn.version import __version__

FORMAT = 1
"""Version of metrics.json; it rises when a key changes its meaning."""
LISTED = 40
"""Max classes of the table in the terminal."""
UNITS = {"segmentation": "pixels", "detection": "boxes"}
"""What counts of classes are of; images for other tasks."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of an evaluation, in plain types. Metrics are in percent, except "loss"."""

    task: str
    """classification, multi-label, segmentation or detection."""
    checkpoint: str
    """File of the weights."""
    arch: str
    data: str
    """Value of `--data`."""
    split: str
    """train, val or test."""
    images: int
    """Number of judged images."""
    undecodable: list[str]
    """A line for each image that cannot be decoded: its file and the reason."""
    settings: dict[str, Any]
    """Settings of the evaluation: image size, test-time augmentation, data type, device, processes."""
    metrics: dict[str, float | None]
    """Metrics over all images; None if undefined."""
    per_class: list[dict[str, Any]]
    """Name, count and metrics of each class."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further keys of metrics.json, such as "confused" or "calibration"."""
    lines: tuple[str, ...] = ()
    """Remarks of the terminal's report."""
    folder: Path | None = None
    """Folder of the files; None if nothing was written."""

    def to_json(self, files: Sequence[str] = ()) -> dict[str, Any]:
        """Return the content of metrics.json.

        Args:
            files: names of the files beside it.
        """
        return {
            "kind": "evaluation",
            "format": FORMAT,
            "fastcnn": __version__,
            "task": self.task,
            "checkpoint": self.checkpoint,
            "arch": self.arch,
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "undecodable": self.undecodable,
            "settings": self.settings,
            "metrics": self.metrics,
            "per_class": self.per_class,
            **self.details,
            "files": list(files),
        }

    def describe(self) -> str:
        """Return the report for the terminal."""
        columns = [key for key in self.per_class[0] if key != "name"]
        bad = f" without {len(self.undecodable):,} undecodable ones" if self.undecodable else ""
        head = f"{self.checkpoint}: {self.split} of {self.data}, {self.images:,} images{bad}"
        values = [f"{name} {_shown(name, value)}" for name, value in self.metrics.items()]
        return "\n".join([head, *_wrapped(values), "", *self._table(columns), *self.lines])

    def _table(self, columns: Sequence[str]) -> list[str]:
        """Return the lines of the classes, only the worst ones if they are many."""
        rows, note = self.per_class, []
        if len(rows) > LISTED:
            key = columns[-1] if self.task == "classification" else columns[1]
            present = [row for row in rows if row["count"] and row[key] is not None]
            rows = sorted(present, key=lambda row: row[key])[:LISTED]
            note = [
                f"the {len(rows)} classes of lowest {key} of {len(self.per_class):,}, all in classes.csv:"
            ]
        heading = ["class", *(UNITS.get(self.task, "images") if c == "count" else c for c in columns)]
        cells = [[row["name"], *(_shown(c, row[c]) for c in columns)] for row in rows]
        widths = [max(map(len, column)) for column in zip(heading, *cells)]
        return [
            *note,
            *(
                "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
                for line in (heading, *cells)
            ),
        ]


def _shown(name: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if name == "count" else f"{value:.4f}" if name == "loss" else f"{value:.2f}%"


def _wrapped(values: Sequence[str], width: int = 100) -> list[str]:
    """Return the values in lines of up to `width` characters."""
    lines = [""]
    for value in values:
        longer = f"{lines[-1]}  {value}" if lines[-1] else value
        if len(longer) > width:
            lines.append(value)
        else:
            lines[-1] = longer
    return lines
