"""`--time-budget`: number of epochs that fit a time, from a timed update and validation."""

from __future__ import annotations

import dataclasses
import math
import time

from fastcnn.config import Config
from fastcnn.config.auto import warmup_of
from fastcnn.config.duration import parse_time
from fastcnn.engine.swa import statistics_batches
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import gather_to_all
from fastcnn.setup.build import Training
from fastcnn.setup.dry_run import preserve_state, time_updates, time_validation

MEASURING = 0.05
"""Fraction of the time budget spent on measuring the speed of the training."""
RESERVE = 0.03
"""Fraction of the time budget reserved for everything that was not measured."""


def fit_time_budget(
    training: Training, config: Config, reasons: dict[str, str], started: float
) -> tuple[Config, dict[str, str]]:
    """Return the settings with the epochs that fit the time budget, and set the state's schedule.

    All ranks call it.

    Args:
        started: start of the run, a time of `time.perf_counter`.

    Returns:
        The settings with the epochs, and the reasons of those that were chosen.

    Raises:
        UserError: the time is too short for one update, or for the warmup.
    """
    state, loader, val_loader = training.state, training.checkpointer.loader, training.checkpointer.val_loader
    flag = f"--time-budget {config.time_budget}"
    budget = parse_time(str(config.time_budget))

    # Measure an update, a validation, and the average at the end.
    with preserve_state(state, loader):
        step = time_updates(state, training.task, loader, MEASURING * budget / 2)
        val = time_validation(state, training.task, val_loader, MEASURING * budget / 4)
    average = 0.0
    if config.average_last > 0:  # upper bound: a forward pass takes no longer than an update
        batches = statistics_batches(state.network, loader)
        average = batches * step / state.options.accum_steps + val
    elapsed = max(gather_to_all(time.perf_counter() - started))
    shortest = elapsed + step + val + average
    if shortest > budget:
        raise UserError(f"{flag}: one update and its validation would end after {shortest:.0f} s; raise it")

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
            f"--warmup-epochs {warmup:g}: longer than the {epochs:.3g} epochs that {flag} allows; lower it"
        )
    state.schedule = dataclasses.replace(state.schedule, epochs=epochs, warmup_epochs=warmup)
    # The budget has become epochs: a resumed run keeps these.
    config = dataclasses.replace(config, epochs=epochs, time_budget=None)
    if "warmup_epochs" in reasons:
        config = dataclasses.replace(config, warmup_epochs=warmup)
    return config, {**reasons, "epochs": why}


def validations(steps: int, steps_per_epoch: int, interval: int) -> int:
    """Return the number of validations of a run: every `interval` epochs, and at its end."""
    epochs = steps // steps_per_epoch
    at_the_end = epochs * steps_per_epoch != steps or epochs % interval != 0
    return epochs // interval + at_the_end


def epochs_within(
    *,
    budget: float,
    elapsed: float,
    step_seconds: float,
    steps_per_epoch: int,
    val_seconds: float,
    val_interval: int = 1,
    at_the_end: float = 0.0,
) -> float:
    """Return the max epochs, a multiple of 1 / steps_per_epoch, whose updates and validations fit a time.

    Args:
        budget: seconds of the whole run.
        elapsed: seconds already spent.
        at_the_end: seconds of the work after the last validation.

    Returns:
        The epochs; at least one update.
    """

    def fits(steps: int) -> bool:
        needed = steps * step_seconds + validations(steps, steps_per_epoch, val_interval) * val_seconds
        return elapsed + needed + at_the_end <= budget * (1 - RESERVE)

    low, high = 1, 2 + math.ceil(budget / step_seconds)
    while high - low > 1:  # the first update is trained in any case
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low / steps_per_epoch
