"""The epochs of a run: train, validate, save, report, stop when asked to."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from fastcnn.config.progressive import milestones_of, size_at
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.checkpointer import PICTURE, Run
from fastcnn.engine.epoch import LogInterval, train_epoch
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.logger import Report
from fastcnn.engine.state import stop_if_not_finite, unfreeze
from fastcnn.engine.swa import Average, load_averaged
from fastcnn.optim.schedules import learning_rate
from fastcnn.profiling.bottleneck import Bottleneck, Timing, Verdict
from fastcnn.runtime.distributed import any_rank, gather_to_main
from fastcnn.runtime.signals import StopRequest
from fastcnn.tasks.base import Task
from fastcnn.tasks.gallery import Gallery
from fastcnn.tasks.metrics import Metrics

Diagnose = Callable[[list[Timing]], Verdict]


@dataclass
class Pace:
    """Throughput over windows of steps; validation and what is saved after it are left out."""

    world_size: int
    windows: list[LogInterval] = field(default_factory=list)

    def steady(self) -> list[LogInterval]:
        """The windows after start-up and compilation, if there are any."""
        return [window for window in self.windows if not window.cold] or self.windows

    def images_per_second(self) -> float:
        """Over all ranks."""
        windows = self.steady()
        seconds = sum(w.seconds for w in windows)
        return self.world_size * sum(w.samples for w in windows) / seconds if seconds else 0.0

    def data_wait(self) -> float:
        """Share of the time spent waiting for the loader, 0 to 1."""
        windows = self.steady()
        seconds = sum(w.seconds for w in windows)
        return sum(w.data_seconds for w in windows) / seconds if seconds else 0.0

    def timing(self) -> Timing:
        """Where the time went after start-up, on this rank."""
        return sum((w.timing for w in self.windows if not w.cold), Timing())


@dataclass(frozen=True)
class Outcome:
    """How the epochs went."""

    val: dict[str, float]
    """Metrics of the last validation; empty if there was none."""
    images_per_second: float
    stopped_by: int | None
    """Number of the signal that ended the run early."""
    verdict: str
    """What bounds the run; empty if nothing was trained, and on all ranks but the first."""
    seconds: float
    """Of the epochs and their validations."""


def fit_epochs(
    run: Run,
    task: Task,
    val_loader: Loader,
    epoch_metrics: Metrics,
    window_metrics: Metrics,
    report: Report,
    stop: StopRequest,
    log_interval: int,
    diagnose: Diagnose,
) -> Outcome:
    """Trains the epochs that are left, saving into `run`.

    Args:
        epoch_metrics: sums of the epoch under way when the run was saved, else empty.
        window_metrics: sums since the last log line, empty as yet.
        stop: a signal's request; all ranks answer it together at a log line, a single process at once, and
            before a validation, which a resumed run makes up for.
        judge: says what bounds the run, from what all ranks measured.

    Raises:
        fastcnn.errors.TrainingError: the loss became infinite or NaN.
    """
    state, config, world_size = run.state, run.config, run.ranks.world_size
    pace = Pace(world_size)
    val: dict[str, float] = {}
    stopped = told = gives_up = False
    seconds = 0.0

    def verdict() -> Verdict | None:
        timings = gather_to_main(pace.timing())
        return diagnose(timings) if timings and pace.windows else None

    def sums() -> Metrics:
        total = task.metrics(state.device)
        total.add(epoch_metrics.state())
        total.add(window_metrics.state())
        return total

    def on_step() -> None:
        report.step()
        if config.checkpoint_steps is not None and state.step % config.checkpoint_steps == 0:
            run.save(sums())

    saved = time.perf_counter()

    def on_log(epoch: int, window: LogInterval) -> bool:
        nonlocal saved
        stop_if_not_finite(state)
        run.share_bad_files()
        measured = window_metrics.compute()
        epoch_metrics.add(window_metrics.state())
        window_metrics.reset()
        window = dataclasses.replace(window, cold=not pace.windows)
        pace.windows.append(window)
        just_now = Pace(world_size, [window])
        record = {
            "step": state.step,
            "progress": state.step / state.schedule.steps_per_epoch,
            "metrics": measured,
            "main_metric": task.best_metric,
            "lr": learning_rate(state.step - 1, state.schedule),
            "images_per_second": just_now.images_per_second(),
            "data_wait": just_now.data_wait(),
            "shares": _rounded(window.timing.shares()),
        }
        report.window(epoch, task.describe(measured), record)
        minutes = config.checkpoint_minutes
        if minutes is not None:
            due = run.ranks.is_main and time.perf_counter() - saved > 60 * minutes
            if any_rank(due, state.device):
                run.save(epoch_metrics)
                saved = time.perf_counter()
        return any_rank(bool(stop), state.device)

    schedule = state.schedule
    first_averaged = max(0, math.ceil(schedule.epochs) - config.average_last)
    size = 0  # of progressive resizing
    while not state.done:
        epoch = int(state.epoch)
        cut = schedule.total_steps < (epoch + 1) * schedule.steps_per_epoch
        if epoch + 1 == config.unfreeze_epoch and state.frozen is not None:
            unfreeze(state)
            report.say(f"epoch {epoch + 1}: all layers train from here on")
        start = time.perf_counter()
        first_window = len(pace.windows)
        run.loader.set_epoch(epoch)
        if config.progressive is not None:
            before, size = size, size_at(config.progressive, milestones_of(config, schedule.epochs), epoch)
            run.loader.resize(size)
            if size != before:
                report.say(f"epoch {epoch + 1}: images of {size} px from here on")
        report.epoch_begins(epoch, state.step - epoch * schedule.steps_per_epoch)
        finished = train_epoch(
            state,
            task,
            run.loader,
            window_metrics,
            log_interval,
            on_step,
            partial(on_log, epoch),
            should_stop=lambda: bool(stop) and world_size == 1,
            limit=max(0, schedule.total_steps - state.step) if cut else None,
        )
        if not finished or any_rank(bool(stop), state.device):
            run.save(epoch_metrics)
            stopped = True
            break
        trained = epoch_metrics.compute()
        if not cut:  # else a run that is given more epochs goes on with this one
            epoch_metrics.reset()
        state.epoch = schedule.epochs if cut else epoch + 1
        last = state.done
        validates = last or state.epoch % config.val_interval == 0
        gallery = Gallery(task, run.source.class_names, len(val_loader))
        pictured = task.pictured and run.ranks.is_main
        is_best = False
        if validates:
            val = evaluate(state, task, val_loader, gallery.look if pictured else None)
            run.share_bad_files()
            is_best = val[task.best_metric] > run.best.get(task.best_metric, float("-inf"))
        if is_best:
            run.best = {**val, "epoch": state.epoch}
        if validates:
            run.since_best = 0 if is_best else run.since_best + 1
        if epoch == first_averaged:  # what a shorter run averaged is not of the last epochs any more
            run.average = Average()
        if epoch >= first_averaged and not cut:
            run.average.add(state)
        seconds += time.perf_counter() - start
        gives_up = config.patience is not None and run.since_best >= config.patience and not last
        stopped = any_rank(bool(stop), state.device) and not last
        this_epoch = Pace(world_size, pace.windows[first_window:])
        record = {
            "step": state.step,
            "progress": state.step / schedule.steps_per_epoch,
            "epoch": state.epoch,
            "train": trained,
            **({"val": val} if validates else {}),
            "images_per_second": this_epoch.images_per_second(),
            "data_wait": this_epoch.data_wait(),
            "shares": _rounded(this_epoch.timing().shares()),
            "seconds": time.perf_counter() - start,
        }
        stop_if_not_finite(state)
        # Before the save: a resumed run drops records that its checkpoint does not know.
        found = task.describe(val) if validates else None
        report.epoch_ends(epoch, task.describe(trained), found, is_best, record)
        if is_best or last or stopped or gives_up or state.epoch % config.checkpoint_interval == 0:
            run.save(epoch_metrics, is_best)
        if is_best and pictured:
            gallery.save(run.folder / PICTURE)
        if gives_up:
            report.say(f"stopping: the last {run.since_best} validations were no better than the best one")
        if stopped or gives_up:
            break
        if not told and not last and pace.timing().steps:
            told = True
            early = verdict()
            if early is not None and early.avoidable:
                report.say(early.sentence)
    average = run.average
    if config.average_last > 0 and state.done and state.epoch % 1 > 0:
        average = average.including_partial_epoch(state)
    if gives_up and state.epoch <= first_averaged:
        average = Average()
        if config.average_last > 0:
            of = f"{config.average_last} of {math.ceil(schedule.epochs)}"
            report.say(f"no average: the run ended before the last {of} epochs, which --average-last takes")
    if (state.done or (gives_up and not stopped)) and average.epochs > 0 and run.averaged != state.step:
        val = _validate_average(average, run, task, val_loader, report)
    final = verdict()
    if final is not None:
        report.say(final.sentence)
    stopped_by = (stop.signal or signal.SIGTERM) if stopped else None
    sentence = final.sentence if final is not None else ""
    return Outcome(val, pace.images_per_second(), stopped_by, sentence, seconds)


def _validate_average(
    average: Average, run: Run, task: Task, val_loader: Loader, report: Report
) -> dict[str, float]:
    """Puts the average of the last epochs into the network and saves it, as the best if it is."""
    load_averaged(average, run.state, run.loader)
    val = evaluate(run.state, task, val_loader)
    stop_if_not_finite(run.state)
    is_best = val[task.best_metric] > run.best[task.best_metric]
    if is_best:
        run.best = {**val, "epoch": run.state.epoch}
    found = f"{task.describe(val)}{' best' if is_best else ''}"
    report.say(f"average of the last {average.epochs} epochs  val {found}")
    run.save_average(task.metrics(run.state.device), is_best)
    return val


def _rounded(shares: Mapping[Bottleneck, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}
