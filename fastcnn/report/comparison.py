"""`fastcnn compare`: what differs between runs in settings and results, and their curves together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcnn import files
from fastcnn.errors import UserError
from fastcnn.report import words
from fastcnn.report.charts import Chart, Curves, compared
from fastcnn.report.log import Log
from fastcnn.report.page import render
from fastcnn.report.run import Run

WHERE = {"output_dir", "resume", "config"}
"""Settings that differ by nature."""
MAX_CELL = 40
"""Max characters of a setting in the table."""
COLORS = "#2b79bd", "#c8453b", "#2c9467", "#8257b8", "#b57a00", "#12899a", "#b4407a", "#6a7480"
"""The palette of a page."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs, in the order given, under names that differ."""

    runs: Sequence[Run]
    names: Sequence[str]
    settings: list[list[str]]
    """A row for each setting that differs: its name, and its value in each run."""
    results: list[list[str]]
    """A row for each result: its name, and its value in each run."""
    charts: list[Chart]


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs of any tasks.

    Raises:
        UserError: fewer than two runs.
    """
    if len({run.folder.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError("fastcnn compare: name two runs or more, each once")
    names = names_of(runs)
    curves = [Curves(Log(run.folder), run.metric) for run in runs]
    return Comparison(
        runs=runs,
        names=names,
        settings=differences(runs),
        results=results_of(runs),
        charts=compared(names, curves),
    )


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return the names of the folders, with those above them as far as they are the same."""
    parts = [[words.plain(part, 60) for part in run.folder.resolve().parts] for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [words.plain(run.folder.resolve()) for run in runs]


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Return the settings that differ between the runs that have settings."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        if name in WHERE:
            continue
        values = [words.value(run.settings[name]) if name in run.settings else words.UNKNOWN for run in runs]
        if len(set(values)) > 1:
            shown = [words.plain(value, MAX_CELL) for value in values]
            rows.append([words.plain(name.replace("_", "-"), MAX_CELL), *shown])
    return rows


def results_of(runs: Sequence[Run]) -> list[list[str]]:
    """Return the results: the best of each metric, then time and speed."""
    rows = []
    for metric in dict.fromkeys(run.metric for run in runs if run.best is not None):
        bests = [run.best if run.metric == metric else None for run in runs]
        rows.append(
            [f"best {words.plain(metric)}", *("-" if best is None else f"{best[0]:.2f}%" for best in bests)]
        )
    for metric in dict.fromkeys(run.metric for run in runs if run.metric in run.test):
        tests = [run.test.get(str(metric)) if run.metric == metric else None for run in runs]
        rows.append(
            [f"test {words.plain(metric)}", *("-" if value is None else f"{value:.2f}%" for value in tests)]
        )
    at = [run.best[1] if run.best is not None else None for run in runs]
    rows += [
        ["best epoch", *(words.UNKNOWN if epoch is None else f"{epoch:g}" for epoch in at)],
        ["epochs", *(words.epochs(run) for run in runs)],
        ["status", *(run.status for run in runs)],
        ["time", *(words.duration(run.seconds) for run in runs)],
        ["img/s", *(words.rate(run.images_per_second) for run in runs)],
        ["data wait", *(f"{run.shares['data']:.0%}" if run.shares else words.UNKNOWN for run in runs)],
        ["bottleneck", *(run.bottleneck or words.UNKNOWN for run in runs)],
    ]
    return rows


def as_text(comparison: Comparison) -> str:
    """Return the tables for a terminal."""
    settings, results = comparison.settings, comparison.results
    parts = [words.wide_table(["results", *comparison.names], results)]
    if settings:
        parts.append(words.wide_table(["settings", *comparison.names], settings))
    else:
        parts.append("The settings are the same.")
    return "\n\n".join(parts)


def as_page(comparison: Comparison) -> str:
    """Return the page with tables and charts."""
    return render(
        "compare.html.j2",
        comparison.charts,
        title=f"{', '.join(comparison.names)[:100]}: fastcnn compare",
        comparison=comparison,
    )


def save_png(comparison: Comparison, path: Path) -> None:
    """Draw the charts into a picture, in the format of the path's suffix.

    Raises:
        UserError: no curves to draw, an unknown suffix, or a file that cannot be written.
    """
    if not comparison.charts:
        raise UserError("--png: the runs have logged no steps yet; wait for their first log line")
    path = files.expand_user(path, "--png")
    try:
        with files.of_flag("--png"):
            files.save_picture(figure_of(comparison.charts), path, "the picture")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"--png {path}: {' '.join(str(error).split())}; use a name such as runs.png"
        ) from error


def figure_of(charts: Sequence[Chart], columns: int = 2) -> Any:
    """Return the charts as a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(6.2 * columns, 3.3 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, chart in zip(places, charts):
        for line in chart.lines:
            marked = line.role == "marked"
            axes.plot(
                line.points.x,
                line.points.y,
                color=COLORS[line.color % len(COLORS)],
                linestyle="-" if line.color < len(COLORS) else "--",
                linewidth=1.8 if marked else 1.1,
                marker="o" if marked and len(line.points.x) <= 60 else None,
                markersize=3.5,
                label=line.label.replace("$", r"\$"),
            )
        axes.set_title(f"{chart.title} (%)" if chart.unit else chart.title, loc="left", parse_math=False)
        axes.set_xlabel("epoch")
        axes.grid(color="#d9dde1", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if chart.zero:
            axes.set_ylim(bottom=0)
    for axes in places[len(charts) :]:
        axes.set_visible(False)
    handles = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4, frameon=False)
    return figure
