"""Figures of an evaluation: confusion matrix, calibration, precision over recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RIGHT, WRONG, MUTED, TEXT = "#2f6db3", "#c4452d", "#d9dde1", "#20252b"
NUMBERED, LABELED = 25, 120
"""Max classes whose cells of a confusion matrix have numbers, and whose rows have names."""
MAX_CELLS = 1000
"""Max rows of a drawn confusion matrix; neighbors of more classes are summed."""
LISTED = 10
"""Max curves with names."""


def confusion(counts: np.ndarray, names: Sequence[str], unit: str = "images") -> Any:
    """Draw a confusion matrix: rows are the truth, columns the prediction.

    A color is a root of the share of its row, so that rare mistakes are visible.

    Args:
        counts: int64 [C, C].
        unit: noun for what is counted.
    """
    count = len(counts)
    merged = -(-count // MAX_CELLS)
    drawn = _merged(counts, merged)
    shares = drawn / drawn.sum(axis=1, keepdims=True).clip(min=1)
    side = 3.5 + (0.52 * count if count <= NUMBERED else min(12.0, 5 + 0.13 * count))
    figure, axes = _figure(side, side)
    axes.imshow(_colors(shares, 2 if count <= LABELED else 4), interpolation="nearest")
    if count <= LABELED:
        short = [_short(name) for name in names]
        size = 9 if count <= NUMBERED else max(4.0, 9 - 0.05 * count)
        axes.set_xticks(range(count), short, rotation=90, fontsize=size)
        axes.set_yticks(range(count), short, fontsize=size)
    for row, column in np.argwhere(counts > 0).tolist() if count <= NUMBERED else ():
        share = shares[row, column]
        text = _compact(int(counts[row, column])) if unit == "images" else f"{100 * share:.0f}"
        color = "white" if share > 0.35 else TEXT
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xlabel("prediction" if merged == 1 else f"prediction ({merged} classes a cell)")
    axes.set_ylabel("truth")
    what = unit if unit == "images" else f"% of the {unit} of a class"
    axes.set_title(f"{what}; blue: right, red: wrong\ndark: a large share of the row", loc="left", fontsize=9)
    return figure


def _merged(counts: np.ndarray, by: int) -> np.ndarray:
    """Return the sums of squares of `by` x `by` cells."""
    if by == 1:
        return counts
    starts = np.arange(0, len(counts), by)
    return np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)


def _colors(shares: np.ndarray, root: int) -> np.ndarray:
    """Return RGB [C, C, 3]: white for 0, blue on the diagonal and red beside it for 1."""
    from matplotlib.colors import to_rgb

    full = np.broadcast_to(np.array(to_rgb(WRONG)), (*shares.shape, 3)).copy()
    diagonal = np.arange(len(shares))
    full[diagonal, diagonal] = to_rgb(RIGHT)
    return 1 - shares[..., None] ** (1 / root) * (1 - full)


def calibration(bins: Sequence[Mapping[str, Any]], error: float) -> Any:
    """Draw the reliability diagram: accuracy over confidence, and the images of each bin."""
    figure, (axes, below) = _figures(5.2, 6.2, rows=2, ratios=(3, 1))
    width = bins[0]["high"] - bins[0]["low"]
    full = [row for row in bins if row["count"]]
    places = [row["low"] for row in full]
    axes.bar(places, [row["accuracy"] for row in full], width, align="edge", color=RIGHT, edgecolor="white")
    axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1, linestyle="--", label="calibrated")
    axes.plot(
        [r["confidence"] for r in full],
        [r["accuracy"] for r in full],
        "o",
        color=WRONG,
        markersize=4,
        label="mean confidence",
    )
    axes.set_ylabel("accuracy")
    axes.set_title(f"expected calibration error {error:.2f}%", loc="left")
    axes.legend(frameon=False, loc="upper left")
    below.bar(
        [r["low"] for r in bins],
        [r["count"] for r in bins],
        width,
        align="edge",
        color=RIGHT,
        edgecolor="white",
    )
    below.set_xlabel("confidence: probability of the predicted class")
    below.set_ylabel("images")
    for part in (axes, below):
        part.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return figure


def box_curves(curves: Mapping[str, Sequence[float]], mean_ap: float | None) -> Any:
    """Draw precision over recall at an IoU of 0.5.

    Args:
        curves: precision at the recalls 0, 0.01, ..., 1 by class, 0 to 1.
        mean_ap: mean of their areas, in percent.
    """
    recall = np.linspace(0, 1, 101)
    title = "no boxes" if mean_ap is None else f"IoU 0.5: mAP {mean_ap:.1f}%"
    return _curves({name: (recall, np.array(values)) for name, values in curves.items()}, title, mean=True)


def label_curves(
    probabilities: np.ndarray, truths: np.ndarray, per_class: Sequence[Mapping[str, Any]]
) -> Any:
    """Draw precision over recall of each class with labels.

    Args:
        probabilities: [N, C].
        truths: bool [N, C].
    """
    curves = {}
    for number, row in enumerate(per_class):
        if row["count"]:
            hits = np.cumsum(truths[np.argsort(-probabilities[:, number], kind="stable"), number])
            curves[row["name"]] = hits / hits[-1], hits / np.arange(1, len(hits) + 1)
    return _curves(curves, "precision over recall", mean=False)


def _curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, *, mean: bool) -> Any:
    from matplotlib import colormaps

    figure, axes = _figure(6.4, 5.2)
    listed = len(curves) <= LISTED
    for i, (name, (recall, precision)) in enumerate(curves.items()):
        color = colormaps["tab10"](i) if listed else MUTED
        axes.plot(recall, precision, color=color, linewidth=1.2, label=_short(name) if listed else None)
    if mean and curves:
        recall = next(iter(curves.values()))[0]
        average = np.mean([precision for _, precision in curves.values()], axis=0)
        axes.plot(recall, average, color=TEXT, linewidth=2.4, label="mean over classes")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title(title, loc="left")
    axes.grid(color=MUTED, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _compact(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Return a figure of matplotlib, in inches, and its axes."""
    figure, (axes,) = _figures(width, height, rows=1, ratios=(1,))
    return figure, axes


def _figures(width: float, height: float, *, rows: int, ratios: Sequence[float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, squeeze=False, height_ratios=list(ratios))[:, 0]
