"""The log of a run: progress bar or plain lines, metrics.jsonl, TensorBoard, curves as a PNG.

Only rank 0 logs. Nothing here waits for the device.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcnn.engine.state import TrainState
from fastcnn.optim.schedules import Schedule
from fastcnn.viz.curves import draw_curves

CURVES_EVERY = 30.0
"""Seconds between updates of the curves during a run."""


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
        self.started = time.perf_counter()
        self.steady = False
        self.curves_drawn = self.started
        self.live = enabled and sys.stdout.isatty() and sys.stderr.isatty()
        self.bar: Any = None
        self.board: Any = None
        if enabled:
            self._drop_later_records(step / schedule.steps_per_epoch, epoch)
            self.board = _tensorboard(folder)

    def info(self, line: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            tqdm.write(line, file=sys.stdout) if self.live else print(line, flush=True)

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
            print(
                f"epoch {epoch + 1}/{self.epochs}  step {in_epoch}/{self._steps_of(epoch)}  {text}",
                flush=True,
            )
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
        if time.perf_counter() - self.curves_drawn > CURVES_EVERY:
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
        if self.board is not None:
            self.board.close()

    def _draw(self) -> None:
        draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png")
        self.curves_drawn = time.perf_counter()

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
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in flatten(record):
                self.board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def _drop_later_records(self, progress: float, epoch: float) -> None:
        """Drop records later than the checkpoint, and of the test: they are logged again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            records = map(json.loads, lines)
            kept = [
                line
                for line, record in zip(lines, records)
                if record["kind"] != "test"
                and (record["epoch"] <= epoch if "epoch" in record else record["progress"] <= progress)
            ]
            temporary = path.with_name(".metrics.jsonl.new")
            temporary.write_text("".join(kept))
            os.replace(temporary, path)


@contextmanager
def open_logger(folder: Path, state: TrainState, *, enabled: bool) -> Iterator[Logger]:
    """Open the log of a run that starts or resumes from `state`; draw its curves at the end."""
    logger = Logger(folder, state.schedule, enabled=enabled, step=state.step, epoch=state.epoch)
    try:
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


def _tensorboard(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
