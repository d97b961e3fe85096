"""Curves of a run, or of several ones, as plain data: a page and a PNG draw the same charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastcnn.report.log import is_number, numbers
from fastcnn.report.run import ACTIVITIES
from fastcnn.viz.curves import Series

MAX_METRICS = 12
"""Metrics with a chart."""
MAX_POINTS = 1000
"""Points of a line in a page."""
COUNTS = {"samples", "bad"}
"""Entries of the metrics that are counts of images."""


@dataclass(kw_only=True)
class Line:
    """A curve over epochs."""

    label: str
    color: int
    """Number in the palette."""
    points: Series = field(default_factory=Series)
    role: str = "plain"
    """"plain"; "marked", with its points and its best one; "faint", behind the others; "area"."""


@dataclass(kw_only=True)
class Chart:
    """A chart over epochs, without lines that have no points."""

    key: str
    title: str
    unit: str = ""
    """"%" or ""."""
    lines: list[Line]
    zero: bool = False
    """The vertical axis begins at 0."""
    low_is_best: bool = False

    def as_plain(self) -> dict[str, Any]:
        """Return types of JSON, with a bounded number of points."""
        most = min(MAX_POINTS, 4 * MAX_POINTS // max(1, len(self.lines)))
        series = []
        for line in self.lines:
            x, y = thinned(line.points.x, most), thinned(line.points.y, most)
            points = {"x": [float(f"{v:.6g}") for v in x], "y": [float(f"{v:.5g}") for v in y]}
            series.append({"label": line.label, "color": line.color, "role": line.role, **points})
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "zero": self.zero,
            "lowIsBest": self.low_is_best,
            "series": series,
        }


def thinned(values: list[float], most: int) -> list[float]:
    """Return at most `most` values, each the mean of as many neighbors; the last one may have fewer."""
    stride = -(-len(values) // most)
    groups = [values[i : i + stride] for i in range(0, len(values), max(stride, 1))]
    return [sum(group) / len(group) for group in groups]


class Curves:
    """The curves of one run.

    Args:
        records: of its metrics.jsonl.
        metric: the one that selects the best epoch, which comes first.
    """

    def __init__(self, records: Iterable[dict[str, Any]], metric: str | None) -> None:
        self.metric = metric
        self.train: dict[str, Series] = {}
        """Metrics of the training by log line."""
        self.val: dict[str, Series] = {}
        """Metrics of the validation by epoch."""
        self.lr, self.rate, self.data_wait = Series(), Series(), Series()
        self.shares = {name: Series() for name in ACTIVITIES}
        for record in records:
            if record["kind"] == "train":
                self._add_interval(record)
            elif record["kind"] == "epoch":
                for name, value in numbers(record.get("val")).items():
                    self.val.setdefault(name, Series()).add(record["epoch"], value)

    def _add_interval(self, record: dict[str, Any]) -> None:
        x = record["progress"]
        for name, value in numbers(record.get("metrics")).items():
            self.train.setdefault(name, Series()).add(x, value)
        for name, series in (("lr", self.lr), ("images_per_second", self.rate)):
            if is_number(record.get(name)):
                series.add(x, record[name])
        if is_number(record.get("data_wait")):
            self.data_wait.add(x, 100 * record["data_wait"])
        shares = numbers(record.get("shares"))
        if shares:
            for name, series in self.shares.items():
                series.add(x, 100 * shares.get(name, 0.0))

    def metrics(self) -> list[str]:
        """Return the names of the metrics but the loss, the main one first."""
        names = [self.metric] if self.metric is not None else []
        found = dict.fromkeys((*names, *self.val, *self.train))
        return [n for n in found if n not in COUNTS and n != "loss" and (n in self.val or n in self.train)]


def charts_of(curves: Curves) -> list[Chart]:
    """Return the charts of one run: loss, metrics, learning rate, throughput, data wait, time."""
    charts = []
    for name in ("loss", *curves.metrics()[:MAX_METRICS]):
        lines = [
            Line(label="training", color=0, points=curves.train.get(name, Series()), role="faint"),
            Line(label="validation", color=1, points=curves.val.get(name, Series()), role="marked"),
        ]
        unit = "" if name == "loss" else "%"
        charts.append(Chart(key=name, title="Loss" if name == "loss" else name, unit=unit, lines=lines))
        charts[-1].low_is_best = name == "loss"
    for key, title, unit, series in (
        ("lr", "Learning rate", "", curves.lr),
        ("rate", "Throughput (img/s)", "", curves.rate),
        ("data_wait", "Data wait", "%", curves.data_wait),
    ):
        line = Line(label=title.partition(" (")[0].lower(), color=0, points=series)
        charts.append(Chart(key=key, title=title, unit=unit, lines=[line], zero=True))
    charts.append(shares_chart(curves))
    return with_points(charts)


def shares_chart(curves: Curves) -> Chart:
    """Return the share of the time by activity, without those that never take any."""
    lines = [
        Line(label=label, color=number, points=curves.shares[name], role="area")
        for number, (name, label) in enumerate(ACTIVITIES.items())
        if any(value >= 0.05 for value in curves.shares[name].y)
    ]
    return Chart(key="shares", title="Share of the training time", unit="%", lines=lines, zero=True)


def compared(names: Sequence[str], runs: Sequence[Curves]) -> list[Chart]:
    """Return charts with the curves of several runs together.

    Args:
        names: labels of the runs.
    """
    metrics = list(dict.fromkeys(name for curves in runs for name in curves.metrics()[:MAX_METRICS]))
    charts = []
    for metric in metrics[:MAX_METRICS]:
        lines = _each(names, [curves.val.get(metric, Series()) for curves in runs], "marked")
        charts.append(Chart(key=metric, title=f"{metric}, validation", unit="%", lines=lines))
    for key, title, found, role in (
        ("val_loss", "Loss, validation", [curves.val.get("loss", Series()) for curves in runs], "marked"),
        ("loss", "Loss, training", [curves.train.get("loss", Series()) for curves in runs], "plain"),
        ("lr", "Learning rate", [curves.lr for curves in runs], "plain"),
        ("rate", "Throughput (img/s)", [curves.rate for curves in runs], "plain"),
        ("data_wait", "Data wait", [curves.data_wait for curves in runs], "plain"),
    ):
        chart = Chart(key=key, title=title, lines=_each(names, found, role))
        chart.zero = key in ("lr", "rate", "data_wait")
        chart.unit = "%" if key == "data_wait" else ""
        chart.low_is_best = key == "val_loss"
        charts.append(chart)
    return with_points(charts)


def _each(names: Sequence[str], series: Sequence[Series], role: str) -> list[Line]:
    return [
        Line(label=name, color=number, points=points, role=role)
        for number, (name, points) in enumerate(zip(names, series))
    ]


def with_points(charts: list[Chart]) -> list[Chart]:
    """Drop lines without points, and charts without lines."""
    for chart in charts:
        chart.lines = [line for line in chart.lines if line.points.x]
    return [chart for chart in charts if chart.lines]
