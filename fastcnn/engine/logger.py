"""The log of a run: progress bar or plain lines, metrics.jsonl, TensorBoard, curves as a PNG.

Only rank 0 logs. Nothing here waits for the device. A metrics.jsonl that cannot be written ends the run;
lines, TensorBoard and curves are tried again later.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import socket
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
from fastcnn.viz.curves import Curves

CURVES_EVERY = 30.0
"""Min seconds between updates of the curves during a run."""
CURVES_SHARE = 0.01
"""Max fraction of the time spent on them."""
LOG, CURVES = "metrics.jsonl", "curves.png"


class Logger:
    """The log of one run.

    Args:
        folder: folder of the run.
        schedule: length of the run.
        enabled: False on all ranks but the first; every method is then a no-op.
        step, epoch: updates and finished epochs before this start of a resumed run.
    """

    def __init__(
        self, folder: Path, schedule: Schedule, *, enabled: bool, step: int = 0, epoch: float = 0
    ) -> None:
        self.folder = folder
        self.enabled = enabled
        self.schedule = schedule
        self.epochs = math.ceil(schedule.total_steps / schedule.steps_per_epoch)
        self.first_step = self.step_count = step
        self.epoch = epoch
        self.started = time.perf_counter()
        self.steady = False
        self.live = enabled and sys.stdout.isatty() and sys.stderr.isatty()
        self.bar: Any = None
        self.board = Board(folder, BestEffort("TensorBoard's records", self.info))
        self.curves = Curves()
        self.draw_at = self.started + CURVES_EVERY
        self._draws = BestEffort(f"the curves {folder / CURVES}", self.info)
        self._prints = BestEffort("lines on standard output", _print_error)

    def open(self) -> None:
        """Read the records of a resumed run, without those that it logs again.

        Raises:
            WriteError: the log cannot be written.
        """
        if self.enabled:
            self._drop_later_records(self.step_count / self.schedule.steps_per_epoch, self.epoch)

    def info(self, line: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            self._prints(lambda: tqdm.write(line, file=sys.stdout) if self.live else print(line, flush=True))

    def begin_epoch(self, epoch: int, done: int) -> None:
        """Start the bar of an epoch, counted from 0, with `done` updates already made."""
        if self.live:
            self.bar = tqdm(
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
        if not self.steady:  # start-up and compilation, in the first interval, do not repeat
            self.steady, self.started, self.first_step = True, time.perf_counter(), self.step_count

    def log_epoch(
        self, epoch: int, train: str, val: str | None, *, is_best: bool, record: dict[str, Any]
    ) -> None:
        """Log an epoch: `train` and `val` for people, None without a validation; `record` for machines."""
        if not self.enabled:
            return
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

    def close(self) -> None:
        """Draw the curves and close the bar."""
        self._close_bar()
        if self.enabled:
            self._draw()

    def _draw(self) -> None:
        start = time.perf_counter()
        self._draws(self._draw_curves)
        now = time.perf_counter()
        self.draw_at = now + max(CURVES_EVERY, (now - start) / CURVES_SHARE)

    def _draw_curves(self) -> None:
        figure = self.curves.figure()
        if figure is not None:
            files.save_picture(figure, self.folder / CURVES, "the curves")

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
        files.append(self.folder / LOG, (json.dumps(record) + "\n").encode(), "the log")
        self.curves.add(record)
        self.board.add(record)

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
                    self.curves.add(record)
            if "".join(kept) != text:
                files.write_text(path, "".join(kept), "the log")


class Board:
    """TensorBoard's file of a run, as torch's SummaryWriter writes it, without a thread that fails later.

    Args:
        attempt: calls what may fail.
    """

    def __init__(self, folder: Path, attempt: BestEffort) -> None:
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self.attempt = attempt
        self.enabled = importlib.util.find_spec("tensorboard") is not None
        self.begun = False

    def add(self, record: dict[str, Any]) -> None:
        """Add the numbers of a record of metrics.jsonl."""
        if self.enabled:
            self.attempt(lambda: self._add(record))

    def _add(self, record: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        events = [] if self.begun else [Event(wall_time=now, file_version="brain.Event:2")]
        for name, value in flatten(record):
            point = Summary.Value(tag=f"{record['kind']}/{name}", simple_value=value)
            events.append(Event(wall_time=now, step=record["step"], summary=Summary(value=[point])))
        stream = io.BytesIO()
        for event in events:
            RecordWriter(stream).write(event.SerializeToString())
        files.append(self.path, stream.getvalue(), "TensorBoard's file")
        self.begun = True


@contextmanager
def open_logger(folder: Path, state: TrainState, *, enabled: bool) -> Iterator[Logger]:
    """Open the log of a run that starts or resumes from `state`; draw its curves at the end.

    All ranks call it; `enabled` on rank 0.

    Raises:
        WriteError: rank 0 cannot write the log; raised on every rank.
    """
    logger = Logger(folder, state.schedule, enabled=enabled, step=state.step, epoch=state.epoch)
    try:
        on_main(logger.open, state.device)
        yield logger
    finally:
        logger.close()


def flatten(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Flatten the numbers of a nested record to names like "val/acc1"."""
    numbers: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            numbers += flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("step", "epoch", "progress"):
            numbers.append((prefix + name, value))
    return numbers


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def _print_error(line: str) -> None:
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
