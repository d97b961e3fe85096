"""Settings that need a dry run of the training: `--lr find` and `--time-budget`."""

from __future__ import annotations

import dataclasses
import time

from fastcnn.config import Config
from fastcnn.config.auto import warmup_of
from fastcnn.config.time_budget import epochs_within, parse_time
from fastcnn.engine.swa import statistics_batches
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import gather_to_all
from fastcnn.setup.build import Training
from fastcnn.setup.dry_run import preserve_state, time_updates, time_validation
from fastcnn.setup.lr_finder import ADAPTIVE, RANGES, draw_trials, range_test, steepest

MEASURING = 0.05
"""Fraction of the time budget spent on measuring the speed of the training."""
PICTURE = "lr_find.png"

Choice = tuple[Config, dict[str, str]]
"""Settings, and the reasons of those that were chosen."""


def autotune(training: Training, started: float) -> Choice:
    """Find the learning rate and the epochs where they are to be found, and set the state's schedule.

    All ranks call it.

    Args:
        started: start of the run, as of `time.perf_counter`.

    Returns:
        The settings with numbers in their place, and the reasons of those that were chosen.

    Raises:
        UserError: no learning rate was found, or the time is too short for one update or the warm-up.
    """
    choice = training.plan.config, training.plan.reasons
    if training.plan.config.lr == "find":
        choice = _find_lr(training, *choice)
    if training.plan.config.time_budget is not None:
        choice = _fit_time_budget(training, *choice, started)
    return choice


def _find_lr(training: Training, config: Config, reasons: dict[str, str]) -> Choice:
    state, loader = training.state, training.checkpointer.loader
    low, high = RANGES.get(config.opt, ADAPTIVE)
    with preserve_state(state, loader):
        trials = range_test(state, training.task, loader, low, high)
    rate = float(f"{steepest(trials):.2g}")
    picture = training.checkpointer.folder / PICTURE
    if training.ranks.is_main:
        draw_trials(trials, rate, picture)
    state.schedule = dataclasses.replace(state.schedule, peak=rate)
    why = f"range test of {len(trials)} updates: {picture}"
    return dataclasses.replace(config, lr=rate), {**reasons, "lr": why}


def _fit_time_budget(training: Training, config: Config, reasons: dict[str, str], started: float) -> Choice:
    state, loader, val_loader = training.state, training.checkpointer.loader, training.checkpointer.val_loader
    flag = f"--time-budget {config.time_budget}"
    budget = parse_time(str(config.time_budget))

    # Measure an update, a validation, and the average at the end.
    with preserve_state(state, loader):
        step = time_updates(state, training.task, loader, MEASURING * budget / 2)
        val = time_validation(state, training.task, val_loader, MEASURING * budget / 4)
    average = 0.0
    if config.average_last > 0:  # a forward pass takes no longer than an update
        batches = statistics_batches(state.network, loader)
        average = batches * step / state.options.accum_steps + val
    elapsed = max(gather_to_all(time.perf_counter() - started))
    least = elapsed + step + val + average
    if least > budget:
        raise UserError(f"{flag}: one update and its validation would end after {least:.0f} s; write more")

    epochs = epochs_within(
        budget=budget,
        elapsed=elapsed,
        step_seconds=step,
        steps_per_epoch=state.schedule.steps_per_epoch,
        val_seconds=val,
        val_interval=config.val_interval,
        at_the_end=average,
    )
    why = (
        f"what {config.time_budget} allow: {1000 * step:.0f} ms an update, {val:.1f} s a validation, "
        + (f"{average:.1f} s the average at the end, " if average else "")
        + f"{elapsed:.0f} s until here"
    )
    warmup = warmup_of(config.sched, epochs)[0] if "warmup_epochs" in reasons else float(config.warmup_epochs)
    if warmup > epochs:
        raise UserError(
            f"--warmup-epochs {warmup:g}: longer than the {epochs:.3g} epochs that {flag} allows; write less"
        )
    state.schedule = dataclasses.replace(state.schedule, epochs=epochs, warmup_epochs=warmup)
    # The budget has become epochs: a resumed run keeps these.
    config = dataclasses.replace(config, epochs=epochs, time_budget=None)
    if "warmup_epochs" in reasons:
        config = dataclasses.replace(config, warmup_epochs=warmup)
    return config, {**reasons, "epochs": why}
