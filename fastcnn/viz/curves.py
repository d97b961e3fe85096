"""Loss and metric curves of a run as a PNG, from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TRAIN, VAL, MUTED = "#7a8794", "#c4452d", "#d9dde1"


def draw_curves(log: Path, png: Path) -> None:
    """Plot the loss, and the metric that selects the best epoch, over epochs.

    Training has a point for each log line, validation for each epoch with a validation.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not log.exists():
        return
    records = [json.loads(line) for line in log.read_text().splitlines()]
    intervals = [r for r in records if r["kind"] == "train"]
    epochs = [r for r in records if r["kind"] == "epoch" and "val" in r]
    if not intervals:
        return
    main = intervals[0]["main_metric"]
    names = ["loss", *([main] if epochs or main in intervals[0]["metrics"] else [])]
    figure = Figure(figsize=(5.2 * len(names), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        _panel(axes, name, intervals, epochs)
    figure.savefig(png, dpi=120)


def _panel(axes: Any, name: str, intervals: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> None:
    measured = [r for r in intervals if name in r["metrics"]]  # some metrics exist for validation only
    x = [r["progress"] for r in intervals]
    if measured:
        y = [r["metrics"][name] for r in measured]
        axes.plot(x, y, color=TRAIN, linewidth=1, label="training")
    if epochs:
        val = [r["val"][name] for r in epochs]
        at = [r["epoch"] for r in epochs]
        axes.plot(at, val, color=VAL, linewidth=2, marker="o", markersize=3.5, label="validation")
        best = (min if name == "loss" else max)(range(len(val)), key=val.__getitem__)
        axes.annotate(
            f"{val[best]:.3g}" if name == "loss" else f"{val[best]:.1f}%",
            (at[best], val[best]),
            textcoords="offset points",
            xytext=(0, 7),
            ha="right" if best == len(val) - 1 else "center",
            color=VAL,
        )
    axes.set_title("loss" if name == "loss" else f"{name} (%)", loc="left")
    axes.set_xlabel("epoch")
    axes.set_xlim(0, max([*x, *(r["epoch"] for r in epochs)]) * 1.02)
    axes.grid(color=MUTED, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
