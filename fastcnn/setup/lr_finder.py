"""`--lr find`: learning rate range test (Smith, "Cyclical Learning Rates for Training Neural Networks",
WACV 2017, section 3.3)."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

from fastcnn import files
from fastcnn.config import Config
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.state import TrainState, to_training
from fastcnn.engine.step import train_step
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import gather_to_all
from fastcnn.setup.build import Training
from fastcnn.setup.dry_run import preserve_state, updates
from fastcnn.tasks.base import Task

UPDATES = 100
SMOOTHING = 0.9
"""Decay of the moving average of the losses."""
DIVERGED = 4.0
"""Divergence threshold, as a multiple of the lowest smoothed loss."""
RANGES = {"sgd": (1e-5, 10.0), "nesterov": (1e-5, 10.0), "muon": (1e-4, 10.0)}
"""Range of learning rates by optimizer; `ADAPTIVE` for others."""
ADAPTIVE = 1e-7, 1.0


PICTURE = "lr_find.png"


class Trial(NamedTuple):
    rate: float
    loss: float
    """Smoothed loss."""


def find_lr(training: Training, config: Config, reasons: dict[str, str]) -> tuple[Config, dict[str, str]]:
    """Find the learning rate by a range test, and set it in the state's schedule. All ranks call it.

    Returns:
        The settings with the learning rate, and the reasons of those that were chosen.

    Raises:
        UserError: the loss falls at no learning rate.
    """
    state, loader = training.state, training.checkpointer.loader
    low, high = RANGES.get(config.opt, ADAPTIVE)
    with preserve_state(state, loader):
        trials = range_test(state, training.task, loader, low, high)
    rate = float(f"{steepest(trials):.2g}")
    picture = training.checkpointer.folder / PICTURE
    if training.ranks.is_main:
        files.BestEffort("the pictures of --lr find", print)(lambda: draw_trials(trials, rate, picture))
    state.schedule = dataclasses.replace(state.schedule, peak=rate)
    why = f"range test of {len(trials)} updates: {picture}"
    return dataclasses.replace(config, lr=rate), {**reasons, "lr": why}


def range_test(state: TrainState, task: Task, loader: Loader, low: float, high: float) -> list[Trial]:
    """Train with an exponentially rising learning rate, from `low` to `high`, until the loss diverges.

    All ranks call it, within `preserve_state`. It waits for the loss of each update.
    """
    to_training(state)
    trials: list[Trial] = []
    average = 0.0
    for number, group in zip(range(UPDATES), updates(loader, state.options.accum_steps)):
        rate = low * (high / low) ** (number / (UPDATES - 1))
        state.schedule = dataclasses.replace(
            state.schedule, peak=rate, kind="constant", warmup_epochs=0.0, warmup_factor=0.0
        )
        metrics = task.metrics(state.device)
        train_step(state, task, group, metrics)
        loss = metrics.compute()["loss"]
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smooth = average / (1 - SMOOTHING ** (number + 1))
        lost = not math.isfinite(loss) or (bool(trials) and smooth > DIVERGED * min(t.loss for t in trials))
        if any(gather_to_all(lost)):
            break
        trials.append(Trial(rate, smooth))
    return trials


def steepest(trials: list[Trial]) -> float:
    """Return the rate at which the loss falls fastest per decade, over a fifth of the trials.

    Raises:
        UserError: the loss does not fall.
    """
    width = max(2, len(trials) // 5)
    slopes = [
        ((b.loss - a.loss) / math.log10(b.rate / a.rate), math.sqrt(a.rate * b.rate))
        for a, b in zip(trials, trials[width:])
    ]
    if not slopes or min(slopes)[0] >= -0.02 * trials[0].loss:
        raise UserError(
            "--lr find: the loss falls at no learning rate within "
            f"{len(trials)} updates; use a number, or omit --lr"
        )
    return min(slopes)[1]


def draw_trials(trials: list[Trial], chosen: float, png: Path) -> None:
    """Plot the smoothed loss over the learning rate, with the chosen one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([t.rate for t in trials], [t.loss for t in trials], color="#7a8794", linewidth=1.6)
    axes.axvline(chosen, color="#c4452d", linewidth=1.2)
    axes.annotate(
        f"{chosen:.2g}",
        (chosen, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, -12),
        textcoords="offset points",
        color="#c4452d",
    )
    axes.set_xscale("log")
    axes.set_title("smoothed training loss, and where it falls most steeply", loc="left", fontsize=10)
    axes.set_xlabel("learning rate")
    axes.grid(color="#d9dde1", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    files.save_picture(figure, png, "the picture")
