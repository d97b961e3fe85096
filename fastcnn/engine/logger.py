"""The log of a run: progress bar or plain lines, metrics.jsonl, trackers, curves as a PNG.

Only rank 0 logs. Nothing here waits for the device. A metrics.jsonl that cannot be written ends the run;
lines and curves are tried again later, and a tracker that fails is reported.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcnn import files
from fastcnn.engine.state import TrainState
from fastcnn.files import BestEffort
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime.distributed import on_main
from fastcnn.trackers.tracking import Tracking
from fastcnn.viz.curves import Curves
from fastcnn.viz.notebook import CellPicture, in_notebook

CURVES_EVERY = 30.0
"""Min seconds between updates of the curves during a run."""
CURVES_SHARE = 0.01
"""Max fraction of the time spent on them."""
CELL_EVERY, CELL_SHARE = 2.0, 0.05
"""The same in a notebook, whose cell shows them."""
LOG, CURVES = "metrics.jsonl", "curves.png"


class Logger:
    """The log of one run.

    Args:
        folder: folder of the run.
        schedule: length of the run.
        enabled: False on all ranks but the first; every method is then a no-op.
        tracking: trackers that get the records too.
        step, epoch: updates and finished epochs before this start of a resumed run.
    """

    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        *,
        enabled: bool,
        tracking: Tracking | None = None,
        step: int = 0,
        epoch: float = 0,
    ) -> None:
        self.folder = folder
        self.enabled = enabled
        self.schedule = schedule
        self.epochs = math.ceil(schedule.total_steps / schedule.steps_per_epoch)
        self.first_step = self.step_count = step
        self.epoch = epoch
        self.started = time.perf_counter()
        self.steady = False
        self.cell = CellPicture() if enabled and in_notebook() else None
        self.live = enabled and (self.cell is not None or (sys.stdout.isatty() and sys.stderr.isatty()))
        self.bar: Any = None
        self.tracking = tracking if enabled else None
        self.history: list[dict[str, Any]] = []
        """Records of the epochs, also of those before a resume."""
        self.curves = Curves()
        self.draw_at = self.started + (CURVES_EVERY if self.cell is None else 0.0)
        self.closed = False
        self._draws = BestEffort(f"the curves {folder / CURVES}", self.info)
        self._prints = BestEffort("lines on standard output", _print_error)

    def open(self) -> None:
        """Read the records of a resumed run, without those that it logs again.

        Raises:
            WriteError: the log cannot be written.
        """
        if self.enabled:
            self._drop_later_records(self.step_count / self.schedule.steps_per_epoch, self.epoch)
            if self.tracking is not None:
                self.tracking.start()

    def info(self, line: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            above_bar = self.live and self.cell is None
            self._prints(lambda: tqdm.write(line, file=sys.stdout) if above_bar else print(line, flush=True))

    def begin_epoch(self, epoch: int, done: int) -> None:
        """Start the bar of an epoch, counted from 0, with `done` updates already made."""
        if self.bar is not None:  # a notebook would keep a finished one of each epoch
            self.bar.reset(self._steps_of(epoch))
            self.bar.update(done)
            self.bar.set_description_str(f"epoch {epoch + 1}/{self.epochs}")
        elif self.live:
            self.bar = self._bar_type()(
                total=self._steps_of(epoch),
                initial=done,
                desc=f"epoch {epoch + 1}/{self.epochs}",
                leave=False,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def step(self) -> None:
        """Count an update."""
        self.step_count += 1
        if self.bar is not None:
            self.bar.update()

    def log_steps(self, epoch: int, described: str, record: dict[str, Any]) -> None:
        """Log the steps since the last call: `described` for people, `record` for machines."""
        if not self.enabled:
            return
        text = (
            f"{described}  {record['images_per_second']:,.0f} img/s  "
            f"data wait {record['data_wait']:.0%}  {self._time_left()} left"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            in_epoch = record["step"] - epoch * self.schedule.steps_per_epoch
            self.info(f"epoch {epoch + 1}/{self.epochs}  step {in_epoch}/{self._steps_of(epoch)}  {text}")
        self._write({"kind": "train", **record})
        if self.cell is not None and time.perf_counter() > self.draw_at:
            self._draw()
        if not self.steady:  # start-up and compilation, in the first interval, do not repeat
            self.steady, self.started, self.first_step = True, time.perf_counter(), self.step_count

    def log_epoch(
        self, epoch: int, train: str, val: str | None, *, is_best: bool, record: dict[str, Any]
    ) -> None:
        """Log an epoch: `train` and `val` for people, None without a validation; `record` for machines."""
        if not self.enabled:
            return
        if self.cell is None:
            self._close_bar()
        validated = "not validated" if val is None else f"val {val}{' best' if is_best else '     '}"
        self.info(
            f"epoch {epoch + 1}/{self.epochs}  train {train}  {validated}  "
            f"{record['images_per_second']:,.0f} img/s  data wait {record['data_wait']:.0%}  "
            f"took {clock(record['seconds'])}"
        )
        self._write({"kind": "epoch", **record})
        if time.perf_counter() > self.draw_at:
            self._draw()

    def log_test(self, described: str, record: dict[str, Any]) -> None:
        """Log the evaluation of held-out images: `described` for people, `record` for machines."""
        if self.enabled:
            self.info(f"test {described}")
            self._write({"kind": "test", **record})

    def track(self, record: dict[str, Any]) -> None:
        """Give a record to the trackers alone."""
        if self.tracking is not None:
            self.tracking.log(record)

    def track_picture(self, path: Path) -> None:
        """Give a PNG file of the run's folder to the trackers, if there is one."""
        if self.tracking is not None and path.exists():
            self.tracking.picture(self.step_count, path)

    def track_text(self, name: str, text: str) -> None:
        """Give a text to the trackers."""
        if self.tracking is not None:
            self.tracking.text(self.step_count, name, text)

    def close(self, *, failed: bool = False) -> None:
        """Draw the curves, close the bar, and end the trackers within a limited time; again: do nothing.

        Args:
            failed: an error ends the run.
        """
        self._close_bar()
        if not self.enabled or self.closed:
            return
        self.closed = True
        self._draw()
        if self.tracking is not None:
            self.track_picture(self.folder / CURVES)
            self.tracking.finish(self.info, failed=failed)
            self._warn()

    def _warn(self) -> None:
        """Print what the trackers report."""
        for line in self.tracking.lines() if self.tracking is not None else ():
            self.info(line)

    def _bar_type(self) -> type[tqdm]:
        if self.cell is None:
            return tqdm
        from tqdm.auto import tqdm as widget

        return widget

    def _draw(self) -> None:
        start = time.perf_counter()
        self._draws(self._draw_curves)
        now = time.perf_counter()
        every, share = (CURVES_EVERY, CURVES_SHARE) if self.cell is None else (CELL_EVERY, CELL_SHARE)
        self.draw_at = now + max(every, (now - start) / share)

    def _draw_curves(self) -> None:
        figure = self.curves.figure()
        if figure is not None:
            path = self.folder / CURVES
            files.save_picture(figure, path, "the curves")
            if self.cell is not None:
                self.cell.show(path.read_bytes())

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _steps_of(self, epoch: int) -> int:
        """Return the updates of an epoch, counted from 0; the last one may be partial."""
        s = self.schedule
        return min(s.steps_per_epoch, s.total_steps - epoch * s.steps_per_epoch)

    def _time_left(self) -> str:
        done = self.step_count - self.first_step
        left = max(0, self.schedule.total_steps - self.step_count)
        return clock((time.perf_counter() - self.started) / max(done, 1) * left)

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        files.append(self.folder / LOG, (line + "\n").encode(), "the log")
        self._add(json.loads(line))
        self.track(record)
        self._warn()

    def _add(self, record: dict[str, Any]) -> None:
        """Add a record of metrics.jsonl to the curves and the history."""
        self.curves.add(record)
        if record["kind"] == "epoch":
            self.history.append(record)

    def _drop_later_records(self, progress: float, epoch: float) -> None:
        """Drop records later than the checkpoint, and of the test: they are logged again."""
        path = self.folder / LOG
        if path.exists():
            kept = []
            text = path.read_text()
            for line in text.splitlines(keepends=True):
                record: dict[str, Any] = json.loads(line) if line.endswith("\n") else {"kind": "test"}
                if record["kind"] != "test" and (
                    record["epoch"] <= epoch if "epoch" in record else record["progress"] <= progress
                ):
                    kept.append(line)
                    self._add(record)
            if "".join(kept) != text:
                files.write_text(path, "".join(kept), "the log")


@contextmanager
def open_logger(
    folder: Path, state: TrainState, *, enabled: bool, tracking: Tracking | None = None
) -> Iterator[Logger]:
    """Open the log of a run that starts or resumes from `state`; close it at the end.

    All ranks call it; `enabled` on rank 0, with its trackers.

    Raises:
        WriteError: rank 0 cannot write the log; raised on every rank.
    """
    logger = Logger(
        folder, state.schedule, enabled=enabled, tracking=tracking, step=state.step, epoch=state.epoch
    )
    failed = True
    try:
        on_main(logger.open, state.device)
        yield logger
        failed = False
    finally:
        logger.close(failed=failed)


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def _print_error(line: str) -> None:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
