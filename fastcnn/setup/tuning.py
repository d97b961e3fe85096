"""Settings that only training itself tells: `--lr find` and `--time-budget`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from fastcnn.config import Config
from fastcnn.config.auto import warmup_of
from fastcnn.config.time_budget import epochs_within, parse_time
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.state import TrainState
from fastcnn.engine.swa import batches_looked_at
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks, gather_to_all
from fastcnn.setup.dry_run import preserve_state, time_updates, time_validation
from fastcnn.setup.lr_finder import ADAPTIVE, RANGES, draw_trials, range_test, steepest
from fastcnn.tasks.base import Task

MEASURING = 0.05
"""Share of the time budget that is spent on finding out how fast the training is."""
PICTURE = "lr_find.png"


def autotune(
    config: Config,
    reasons: dict[str, str],
    state: TrainState,
    task: Task,
    loaders: tuple[Loader, Loader],
    folder: Path,
    ranks: Ranks,
    started: float,
) -> tuple[Config, dict[str, str]]:
    """Finds them out, and puts them into the state's schedule. All ranks call it.

    Args:
        started: when the run began, as of `time.perf_counter`.

    Returns:
        The settings with numbers for them, and the reasons of those that were chosen.

    Raises:
        UserError: no learning rate was found, or the time is too short for one update or the warm-up.
    """
    train_loader, val_loader = loaders
    if config.lr == "find":
        low, high = RANGES.get(config.opt, ADAPTIVE)
        with preserve_state(state, train_loader):
            trials = range_test(state, task, train_loader, low, high)
        rate = float(f"{steepest(trials):.2g}")
        if ranks.is_main:
            draw_trials(trials, rate, folder / PICTURE)
        config = dataclasses.replace(config, lr=rate)
        reasons = {**reasons, "lr": f"range test of {len(trials)} updates: {folder / PICTURE}"}
        state.schedule = dataclasses.replace(state.schedule, peak=rate)
    if config.time_budget is not None:
        budget = parse_time(config.time_budget)
        with preserve_state(state, train_loader):
            step = time_updates(state, task, train_loader, MEASURING * budget / 2)
            val = time_validation(state, task, val_loader, MEASURING * budget / 4)
        average = 0.0
        if config.average_last > 0:  # looking at a batch takes no longer than training on it
            looks = batches_looked_at(state.network, train_loader)
            average = looks * step / state.accum_steps + val
        elapsed = max(gather_to_all(time.perf_counter() - started))
        least = elapsed + step + val + average
        if least > budget:
            raise UserError(
                f"--time-budget {config.time_budget}: one update and its validation would end after "
                f"{least:.0f} s; write more"
            )
        per_epoch = state.schedule.steps_per_epoch
        epochs = epochs_within(budget, elapsed, step, per_epoch, val, config.val_interval, average)
        why = (
            f"what {config.time_budget} allow: {1000 * step:.0f} ms an update, {val:.1f} s a validation, "
            + (f"{average:.1f} s the average at the end, " if average else "")
            + f"{elapsed:.0f} s until here"
        )
        config, reasons = dataclasses.replace(config, epochs=epochs), {**reasons, "epochs": why}
        if "warmup_epochs" in reasons:
            config = dataclasses.replace(config, warmup_epochs=warmup_of(config.sched, epochs)[0])
        if float(config.warmup_epochs) > epochs:
            raise UserError(
                f"--warmup-epochs {config.warmup_epochs:g}: longer than the {epochs:.3g} epochs that "
                f"--time-budget {config.time_budget} allows; write less"
            )
        state.schedule = dataclasses.replace(
            state.schedule, epochs=epochs, warmup_epochs=float(config.warmup_epochs)
        )
        config = dataclasses.replace(config, time_budget=None)  # it has done its work
    return config, reasons
