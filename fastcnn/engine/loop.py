"""The training loop: `Trainer` trains, validates, saves and logs the remaining epochs of a run."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from fastcnn.config.progressive import milestones_of, size_at
from fastcnn.data.batch import Batch
from fastcnn.engine.checkpointer import PICTURE, Checkpointer
from fastcnn.engine.epoch import Callbacks, LogInterval, train_epoch
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.logger import Logger
from fastcnn.engine.state import stop_if_not_finite, unfreeze
from fastcnn.engine.swa import Average, load_averaged
from fastcnn.errors import PeerLostError
from fastcnn.files import BestEffort
from fastcnn.optim.schedules import learning_rate
from fastcnn.profiling.bottleneck import Bottleneck, Diagnosis, Timing
from fastcnn.runtime.distributed import any_rank, call_on_main, gather_to_main, on_main
from fastcnn.runtime.signals import StopRequest
from fastcnn.tasks.base import Task
from fastcnn.tasks.gallery import Gallery
from fastcnn.tasks.metrics import Metrics

OnBatch = Callable[[Batch, object], None]
Diagnose = Callable[[list[Timing]], Diagnosis]
OnEpoch = Callable[[dict[str, Any]], object]
"""Takes the record of an epoch; a true result stops the run."""


@dataclass
class Throughput:
    """Sums over log intervals; they exclude validation and the checkpoint after it.

    The first interval, with start-up and compilation, counts only while there is no other.
    """

    world_size: int
    cold: LogInterval | None = None
    steady: LogInterval | None = None
    """Sum of the intervals after the cold one."""

    def add(self, interval: LogInterval) -> None:
        if interval.cold:
            self.cold = interval
        else:
            self.steady = interval if self.steady is None else self.steady + interval

    def images_per_second(self) -> float:
        """Return the images per second over all ranks."""
        total = self.steady or self.cold
        return self.world_size * total.samples / total.seconds if total and total.seconds else 0.0

    def data_wait(self) -> float:
        """Return the fraction of the time spent waiting for the loader, 0 to 1."""
        total = self.steady or self.cold
        return total.data_seconds / total.seconds if total and total.seconds else 0.0

    def timing(self) -> Timing:
        """Return the time per activity after start-up, on this rank."""
        return self.steady.timing if self.steady is not None else Timing()

    @property
    def empty(self) -> bool:
        return self.cold is None and self.steady is None

    def figures(self, timing: Timing) -> dict[str, object]:
        """Return the figures of a log record, with the shares of a timing."""
        shares: Mapping[Bottleneck, float] = timing.shares()
        return {
            "images_per_second": self.images_per_second(),
            "data_wait": self.data_wait(),
            "shares": {name: round(share, 4) for name, share in shares.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of the training loop."""

    val: dict[str, float]
    """Metrics of the last validation; empty if there was none."""
    images_per_second: float
    stopped_by: int | None
    """Number of the signal that ended the run early, if any."""
    verdict: str
    """Bottleneck of the run; empty if nothing was trained, and on all ranks but the first."""
    seconds: float
    """Duration of the epochs and their validations."""


class ValidationStopped(Exception):
    """A signal stopped a validation."""


class Trainer:
    """Train the remaining epochs of a run and save them into its folder. All ranks make and call one.

    Args:
        checkpointer: saves the run; holds state, loaders and settings.
        stop: stop request of a signal. Several ranks stop together at a log line, a single process after its
            current step. A validation skipped or broken off by a stop runs after the resume.
        diagnose: returns the bottleneck from the timings of all ranks.
        epoch_metrics: sums of the current epoch when the run was saved, else empty.
        interval_metrics: sums since the last log line, empty at first.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        task: Task,
        logger: Logger,
        stop: StopRequest,
        diagnose: Diagnose,
        *,
        epoch_metrics: Metrics,
        interval_metrics: Metrics,
    ) -> None:
        self.checkpointer = checkpointer
        self.state = checkpointer.state
        self.config = checkpointer.config
        self.task = task
        self.logger = logger
        self.stop = stop
        self.diagnose = diagnose
        self.epoch_metrics = epoch_metrics
        self.interval_metrics = interval_metrics
        self.throughput = Throughput(checkpointer.ranks.world_size)
        self.epoch_throughput = Throughput(checkpointer.ranks.world_size)
        self.val: dict[str, float] = {}
        self.on_epoch: OnEpoch | None = None
        self.stopped = False  # True after a signal
        self.out_of_patience = False
        self.stop_requested = False  # True after on_epoch
        self.announced = False  # True after the early report of the bottleneck
        self.seconds = 0.0
        self._pictures = BestEffort(f"the pictures {checkpointer.folder / PICTURE}", logger.info)
        self._saved_at = time.perf_counter()
        self._size = 0  # current size of progressive resizing
        last = math.ceil(self.state.schedule.epochs)
        self._first_averaged = max(0, last - self.config.average_last)

    def fit(self, on_epoch: OnEpoch | None = None) -> Outcome:
        """Train until the last epoch, a signal, the end of patience or a true result of `on_epoch`.

        Args:
            on_epoch: called by rank 0 after each epoch, once it is saved.

        Raises:
            TrainingError: the loss became infinite or NaN.
            WriteError: rank 0 cannot write a checkpoint or the log; raised on every rank.
        """
        self.on_epoch = on_epoch
        while not (self.state.done or self.stopped or self.ended_early):
            epoch = int(self.state.epoch)
            self.unfreeze_layers(epoch)
            start = time.perf_counter()
            self.epoch_throughput = Throughput(self.throughput.world_size)
            self.begin_epoch(epoch)
            if not self.train_epoch(epoch) or any_rank(bool(self.stop), self.state.device):
                self.checkpointer.save(self.epoch_metrics)
                self.stopped = True
            else:
                self.end_epoch(epoch, start)
        self.average_last_epochs()
        final = self.bottleneck()
        if final is not None:
            self.logger.info(final.sentence)
            self.logger.track_text("bottleneck", final.sentence)
        return Outcome(
            val=self.val,
            images_per_second=self.throughput.images_per_second(),
            stopped_by=(self.stop.signal or signal.SIGTERM) if self.stopped else None,
            verdict=final.sentence if final is not None else "",
            seconds=self.seconds,
        )

    @property
    def ended_early(self) -> bool:
        """Whether the run ends before its last epoch, by --patience or on_epoch."""
        return self.out_of_patience or self.stop_requested

    def unfreeze_layers(self, epoch: int) -> None:
        """Unfreeze all layers before the epoch of --unfreeze-epoch."""
        if epoch + 1 == self.config.unfreeze_epoch and self.state.frozen is not None:
            unfreeze(self.state)
            self.logger.info(f"epoch {epoch + 1}: all layers train from here on")

    def begin_epoch(self, epoch: int) -> None:
        """Set the loader to the epoch and to its image size."""
        state, config, loader = self.state, self.config, self.checkpointer.loader
        loader.set_epoch(epoch)
        if config.progressive is not None:
            size = size_at(config.progressive, milestones_of(config, state.schedule.epochs), epoch)
            loader.resize(size)
            if size != self._size:
                self.logger.info(f"epoch {epoch + 1}: images of {size} px from here on")
            self._size = size
        self.logger.begin_epoch(epoch, state.step - epoch * state.schedule.steps_per_epoch)

    def train_epoch(self, epoch: int) -> bool:
        """Train the rest of an epoch; False if it was stopped before its end."""
        state = self.state
        return train_epoch(
            state,
            self.task,
            self.checkpointer.loader,
            self.interval_metrics,
            log_interval=int(self.config.log_interval),
            limit=max(0, state.schedule.total_steps - state.step) if self._is_partial(epoch) else None,
            callbacks=Callbacks(
                on_log=lambda interval: self.on_log(epoch, interval),
                on_step=self.on_step,
                ends_interval=lambda: bool(self.stop) and self.throughput.world_size == 1,
            ),
        )

    def on_step(self) -> None:
        """Advance the progress bar, and save if --checkpoint-steps is due, or for the last time."""
        self.logger.step()
        try:
            self.stop.check_peers()
        except PeerLostError:
            self.checkpointer.save(self._sums(), alone=True)
            raise
        every = self.config.checkpoint_steps
        if every is not None and self.state.step % every == 0:
            self.checkpointer.save(self._sums())

    def _sums(self) -> Metrics:
        """Return the sums of the epoch so far."""
        sums = self.task.metrics(self.state.device)
        sums.add(self.epoch_metrics.state())
        sums.add(self.interval_metrics.state())
        return sums

    def on_log(self, epoch: int, interval: LogInterval) -> bool:
        """Check, log and save after a log interval; True if a signal stops the run."""
        state = self.state
        stop_if_not_finite(state)
        self.checkpointer.share_bad_files()

        # The sums of the interval move into those of the epoch.
        measured = self.interval_metrics.compute()
        self.epoch_metrics.add(self.interval_metrics.state())
        self.interval_metrics.reset()
        interval = dataclasses.replace(interval, cold=self.throughput.empty)
        latest = Throughput(self.throughput.world_size)
        for throughput in (self.throughput, self.epoch_throughput, latest):
            throughput.add(interval)
        record = {
            **self._progress(),
            "metrics": measured,
            "main_metric": self.task.best_metric,
            "lr": learning_rate(state.step - 1, state.schedule),
            **latest.figures(interval.timing),
        }
        described = self.task.describe(measured)
        on_main(lambda: self.logger.log_steps(epoch, described, record), state.device)

        minutes = self.config.checkpoint_minutes
        if minutes is not None:
            due = self.checkpointer.ranks.is_main and time.perf_counter() - self._saved_at > 60 * minutes
            if any_rank(due, state.device):
                self.checkpointer.save(self.epoch_metrics)
                self._saved_at = time.perf_counter()
        return any_rank(bool(self.stop), state.device)

    def end_epoch(self, epoch: int, start: float) -> None:
        """Validate, log and save an epoch that was trained to its end."""
        state, config, run = self.state, self.config, self.checkpointer
        trained = self.epoch_metrics.compute()
        partial = self._is_partial(epoch)
        state.epoch = state.schedule.epochs if partial else epoch + 1

        gallery = Gallery(self.task, run.source.class_names, len(run.val_loader))
        validates = state.done or state.epoch % config.val_interval == 0
        try:
            is_best = validates and self.validate(gallery)
        except (ValidationStopped, PeerLostError) as error:
            state.epoch = epoch  # validated after the resume
            self.stopped = True
            self.checkpointer.save(self.epoch_metrics, alone=isinstance(error, PeerLostError))
            if isinstance(error, PeerLostError):
                raise
            return
        if not partial:  # a resume with more epochs continues a partial one
            self.epoch_metrics.reset()
        if epoch == self._first_averaged:  # discard epochs averaged by a shorter run
            run.average = Average()
        if epoch >= self._first_averaged and not partial:
            run.average.add(state)
        self.seconds += time.perf_counter() - start

        patience = config.patience
        self.out_of_patience = patience is not None and run.since_best >= patience and not state.done
        self.stopped = any_rank(bool(self.stop), state.device) and not state.done
        record = {
            **self._progress(),
            "epoch": state.epoch,
            "train": trained,
            **({"val": self.val} if validates else {}),
            **self.epoch_throughput.figures(self.epoch_throughput.timing()),
            "seconds": time.perf_counter() - start,
        }
        stop_if_not_finite(state)
        # Before the checkpoint: a resumed run drops records later than its checkpoint.
        described = self.task.describe(trained)
        validated = self.task.describe(self.val) if validates else None
        on_main(
            lambda: self.logger.log_epoch(epoch, described, validated, is_best=is_best, record=record),
            state.device,
        )
        saved = self.checkpoint(gallery, is_best=is_best)
        if self._wants_stop(record) and not state.done:
            self.stop_requested = True
            if not saved:
                self.checkpointer.save(self.epoch_metrics)
            self.logger.info("stopping: on_epoch returned true")
        if self.out_of_patience:
            self.logger.info(
                f"stopping: the last {run.since_best} validations were no better than the best one"
            )
        elif not self.stopped and not self.stop_requested:
            self.announce_bottleneck()

    def _wants_stop(self, record: dict[str, Any]) -> bool:
        """Return whether `on_epoch` stops the run. All ranks call it."""
        if self.on_epoch is None:
            return False
        return call_on_main(self.on_epoch, {"kind": "epoch", **deepcopy(record)})

    def validate(self, gallery: Gallery) -> bool:
        """Evaluate on the validation images; True if it is the best epoch so far."""
        run, metric = self.checkpointer, self.task.best_metric
        on_batch = self._poll(gallery.sample if self._is_pictured() else None)
        self.val = evaluate(self.state, self.task, run.val_loader, on_batch)
        run.share_bad_files()
        is_best = self.val[metric] > run.best.get(metric, float("-inf"))
        if is_best:
            run.best = {**self.val, "epoch": self.state.epoch}
        run.since_best = 0 if is_best else run.since_best + 1
        return is_best

    def _poll(self, on_batch: OnBatch | None = None) -> OnBatch:
        """Return a callback of a validation that raises ValidationStopped after a signal.

        Several ranks agree on it every `--log-interval` batches, of which all have as many.
        """
        interval = int(self.config.log_interval) if self.throughput.world_size > 1 else 1
        batches = itertools.count(1)

        def poll(batch: Batch, outputs: object) -> None:
            if on_batch is not None:
                on_batch(batch, outputs)
            self.stop.check_peers()
            if next(batches) % interval == 0 and any_rank(bool(self.stop), self.state.device):
                raise ValidationStopped

        return poll

    def checkpoint(self, gallery: Gallery, *, is_best: bool) -> bool:
        """Save the epoch if a checkpoint is due, and pictures at the best validation; True if it is saved."""
        due = self.state.epoch % self.config.checkpoint_interval == 0
        saves = is_best or self.state.done or self.stopped or self.out_of_patience or due
        if saves:
            self.checkpointer.save(self.epoch_metrics, is_best=is_best)
        picture = self.checkpointer.folder / PICTURE
        if is_best and self._is_pictured() and self._pictures(lambda: gallery.save(picture)):
            self.logger.track_picture(picture)
        return saves

    def bottleneck(self) -> Diagnosis | None:
        """Diagnose the run so far; None on all ranks but the first. All ranks call it."""
        timings = gather_to_main(self.throughput.timing())
        return self.diagnose(timings) if timings and not self.throughput.empty else None

    def announce_bottleneck(self) -> None:
        """Log an avoidable bottleneck once, after the first measured epoch."""
        if self.announced or self.state.done or not self.throughput.timing().steps:
            return
        self.announced = True
        early = self.bottleneck()
        if early is not None and early.avoidable:
            self.logger.info(early.sentence)

    def average_last_epochs(self) -> None:
        """Validate and save the average of the last epochs, if the run ended within them."""
        state, config, run = self.state, self.config, self.checkpointer
        average = run.average
        if config.average_last > 0 and state.done and self.state.epoch % 1 > 0:
            average = average.including_partial_epoch(state)
        if self.ended_early and state.epoch <= self._first_averaged:
            average = Average()
            if config.average_last > 0:
                of = f"{config.average_last} of {math.ceil(state.schedule.epochs)}"
                self.logger.info(
                    f"no average: the run ended before the last {of} epochs, which --average-last takes"
                )
        ended = state.done or (self.ended_early and not self.stopped)
        if not ended or average.epochs == 0 or run.averaged == state.step:
            return

        load_averaged(average, state, run.loader)
        try:
            self.val = evaluate(state, self.task, run.val_loader, self._poll())
        except ValidationStopped:  # all epochs are saved; the average is made again after the resume
            self.stopped = True
            return
        stop_if_not_finite(state)
        metric = self.task.best_metric
        is_best = self.val[metric] > run.best[metric]
        if is_best:
            run.best = {**self.val, "epoch": state.epoch}
        validated = f"{self.task.describe(self.val)}{' best' if is_best else ''}"
        self.logger.info(f"average of the last {average.epochs} epochs  val {validated}")
        run.save_average(self.task.metrics(state.device), is_best=is_best)

    def _is_partial(self, epoch: int) -> bool:
        """Return whether the run ends within this epoch."""
        schedule = self.state.schedule
        return schedule.total_steps < (epoch + 1) * schedule.steps_per_epoch

    def _is_pictured(self) -> bool:
        return self.task.pictured and self.checkpointer.ranks.is_main

    def _progress(self) -> dict[str, float]:
        step = self.state.step
        return {"step": step, "progress": step / self.state.schedule.steps_per_epoch}
