"""Loss and metric curves of a run: a bounded number of points, drawn again and again into one figure."""

from __future__ import annotations

from typing import Any

TRAIN, VAL, MUTED = "#7a8794", "#c4452d", "#d9dde1"
POINTS = 2000
"""Max points of a curve."""


class Series:
    """A curve of at most `POINTS` points, however many values are added.

    A point is the mean of `stride` consecutive values; neighbors are merged when the points become too many.
    """

    def __init__(self) -> None:
        self.x: list[float] = []
        self.y: list[float] = []
        self.stride = 1
        self._count = 0
        self._sums = 0.0, 0.0

    def add(self, x: float, y: float) -> None:
        self._sums = self._sums[0] + x, self._sums[1] + y
        self._count += 1
        if self._count == self.stride:
            self.x.append(self._sums[0] / self.stride)
            self.y.append(self._sums[1] / self.stride)
            self._count, self._sums = 0, (0.0, 0.0)
        if len(self.x) == POINTS:
            self.x, self.y = _pair_means(self.x), _pair_means(self.y)
            self.stride *= 2


class Curves:
    """Loss, and the metric that selects the best epoch, over epochs.

    Training has points of log lines, validation of epochs with a validation. The figure is kept: a new one
    for each drawing would leave reference cycles of several MB behind.
    """

    def __init__(self) -> None:
        self.train: dict[str, Series] = {}
        self.val: dict[str, Series] = {}
        self.best: dict[str, tuple[float, float]] = {}
        """Epoch and value of the best validation by curve."""
        self.metric: str | None = None
        """The metric that selects the best epoch."""
        self.end = 0.0
        """Epochs so far."""
        self._figure: Any = None
        self._drawn: dict[str, dict[str, Any]] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Add a record of metrics.jsonl."""
        if record["kind"] == "train":
            self.metric = self.metric or record["main_metric"]
            self.end = max(self.end, record["progress"])
            for name in self._names():
                if name in record["metrics"]:  # some metrics exist for validation only
                    self.train.setdefault(name, Series()).add(record["progress"], record["metrics"][name])
        elif record["kind"] == "epoch":
            self.end = max(self.end, record["epoch"])
            for name in self._names() if "val" in record else ():
                at, value = record["epoch"], record["val"][name]
                self.val.setdefault(name, Series()).add(at, value)
                sign = -1 if name == "loss" else 1
                if name not in self.best or sign * value > sign * self.best[name][1]:
                    self.best[name] = at, value

    def _names(self) -> list[str]:
        return ["loss"] if self.metric is None else list(dict.fromkeys(("loss", self.metric)))

    def figure(self) -> Any:
        """Return the matplotlib figure, with all that was added so far; None before the first log line.

        The next call draws into the same figure.
        """
        shown = [name for name in self._names() if name in self.train or name in self.val]
        if self.metric is None or not shown:
            return None
        lines = {name: [kind for kind in ("train", "val") if name in getattr(self, kind)] for name in shown}
        if {name: list(artists)[1:] for name, artists in self._drawn.items()} != lines:
            self._figure, self._drawn = self._new_figure(lines)
        for name, artists in self._drawn.items():
            axes = artists["axes"]
            for kind in lines[name]:
                series = getattr(self, kind)[name]
                artists[kind].set_data(series.x, series.y)
            for text in list(axes.texts):
                text.remove()
            if name in self.best:
                self._mark_best(axes, name)
            axes.relim()
            axes.autoscale_view()
            axes.set_xlim(0, self.end * 1.02)
        return self._figure

    def _new_figure(self, lines: dict[str, list[str]]) -> tuple[Any, dict[str, dict[str, Any]]]:
        """Return a figure with empty lines, and its axes and lines by curve."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2 * len(lines), 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        drawn: dict[str, dict[str, Any]] = {}
        for axes, (name, kinds) in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines.items()):
            drawn[name] = {"axes": axes}
            if "train" in kinds:
                (drawn[name]["train"],) = axes.plot([], [], color=TRAIN, linewidth=1, label="training")
            if "val" in kinds:
                (drawn[name]["val"],) = axes.plot(
                    [], [], color=VAL, linewidth=2, marker="o", markersize=3.5, label="validation"
                )
            axes.set_title("loss" if name == "loss" else f"{name} (%)", loc="left")
            axes.set_xlabel("epoch")
            axes.grid(color=MUTED, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        return figure, drawn

    def _mark_best(self, axes: Any, name: str) -> None:
        at, value = self.best[name]
        axes.annotate(
            f"{value:.3g}" if name == "loss" else f"{value:.1f}%",
            (at, value),
            textcoords="offset points",
            xytext=(0, 7),
            ha="right" if at >= self.end else "center",
            color=VAL,
        )


def _pair_means(values: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(values[::2], values[1::2])]
