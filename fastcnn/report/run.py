"""`Run`: the figures of a run, read from its folder, whatever is there of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcnn.config.yaml_file import parse_yaml
from fastcnn.errors import UserError
from fastcnn.report.log import LOG, Log, is_number, numbers
from fastcnn.setup.run_lock import is_running
from fastcnn.setup.run_record import RECORD, read_record

CONFIG = "config.yaml"
MARKS = CONFIG, LOG, RECORD
"""Files of which a run's folder has at least one."""
LEADING = re.compile(r"^(?:arch|data|epochs): .*$", re.MULTILINE)
ACTIVITIES = {
    "computing": "compute",
    "data": "data wait",
    "launching": "launch overhead",
    "synchronising": "host sync",
    "communication": "communication",
}
"""Activities of `fastcnn.profiling.bottleneck.Timing`, and their names in reports."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its folder shows it; what is not recorded is None or empty."""

    folder: Path
    settings: Mapping[str, Any]
    """config.yaml; only arch, data and epochs in a list of runs."""
    record: Mapping[str, Any]
    """run.json."""
    epochs: list[dict[str, Any]]
    """Records of the epochs, in their order."""
    test: dict[str, float]
    """Metrics of the held-out images."""
    metric: str | None
    """Validation metric that selects the best epoch."""
    running: bool
    notes: list[str] = field(default_factory=list)
    """Lines about damaged files."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Starts and resumes, the latest one last."""
        return self.record.get("sessions", [])

    @property
    def arch(self) -> str:
        return str(self.settings.get("arch", "?"))

    @property
    def data(self) -> str:
        return str(self.settings.get("data", "?"))

    @property
    def planned(self) -> float | None:
        """Planned epochs."""
        for epochs in (self.record.get("epochs"), self.settings.get("epochs")):
            if is_number(epochs):
                return epochs
        return None

    @property
    def done(self) -> float:
        """Finished epochs."""
        return self.epochs[-1]["epoch"] if self.epochs else 0

    @property
    def best(self) -> tuple[float, float] | None:
        """The best validation: its value, and its epoch."""
        if self.metric is None:
            return None
        stated = numbers(self._latest("best"))
        found = [(stated[self.metric], stated.get("epoch", self.done))] if self.metric in stated else []
        for record in self.epochs:
            val = numbers(record.get("val"))
            if self.metric in val:
                found.append((val[self.metric], record["epoch"]))
        return max(found, key=lambda pair: pair[0], default=None)

    @property
    def images_per_second(self) -> float | None:
        """Training throughput: of the last ended session, else the mean over the epochs."""
        stated = self._latest("images_per_second")
        if is_number(stated) and stated > 0:
            return stated
        rates = [r["images_per_second"] for r in self.epochs if is_number(r.get("images_per_second"))]
        rates = [rate for rate in rates if rate > 0]
        return len(rates) / sum(1 / rate for rate in rates) if rates else None

    @property
    def epoch_seconds(self) -> float | None:
        """Duration of the epochs and their validations."""
        seconds = [record["seconds"] for record in self.epochs if is_number(record.get("seconds"))]
        return sum(seconds) if seconds else None

    @property
    def seconds(self) -> float | None:
        """Duration of all sessions; of the epochs alone, if one of the sessions has no end."""
        seconds = [session.get("seconds") for session in self.sessions]
        if seconds and all(map(is_number, seconds)):
            return sum(seconds)  # type: ignore[arg-type]
        return self.epoch_seconds

    @property
    def started(self) -> float | None:
        """Unix time of the latest start; of the last change of a file, in older runs."""
        started = self._latest("started")
        if is_number(started):
            return started
        times = []
        for name in MARKS:
            try:
                times.append((self.folder / name).stat().st_mtime)
            except OSError:
                continue
        return max(times, default=None)

    @property
    def status(self) -> str:
        """running, finished, stopped or failed."""
        if self.running:
            return "running"
        last = self.sessions[-1] if self.sessions else {}
        if last.get("error"):
            return "failed"
        ended = is_number(last.get("seconds")) and last.get("stopped_by") is None
        reached = self.planned is not None and self.done >= self.planned
        return "finished" if ended or reached else "stopped"

    @property
    def shares(self) -> dict[str, float]:
        """Fraction of the training time by activity, weighted over the epochs; empty if not measured."""
        return mean_shares(self.epochs)

    @property
    def bottleneck(self) -> str | None:
        """Name of the bottleneck as the run diagnosed it; None without a diagnosis."""
        return ACTIVITIES.get(str(self._latest("bottleneck")))

    @property
    def verdict(self) -> str:
        """The run's own sentence about its bottleneck, with advice."""
        return str(self._latest("verdict") or "")

    def _latest(self, name: str) -> Any:
        """Return a fact of the latest session that states it."""
        return next((s[name] for s in reversed(self.sessions) if s.get(name) is not None), None)


def mean_shares(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the shares of the activities over records of epochs, weighted by their seconds."""
    sums, total = dict.fromkeys(ACTIVITIES, 0.0), 0.0
    for record in records:
        shares, seconds = numbers(record.get("shares")), record.get("seconds")
        if not shares or not is_number(seconds) or seconds <= 0:  # type: ignore[operator]
            continue
        total += seconds  # type: ignore[operator]
        for name in ACTIVITIES:
            sums[name] += seconds * shares.get(name, 0.0)  # type: ignore[operator]
    return {name: value / total for name, value in sums.items()} if total else {}


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKS)


def open_run(path: Path, *, brief: bool = False) -> Run:
    """Read a run.

    Args:
        path: its folder, or a file in it, such as a checkpoint.
        brief: only what a list of runs shows: fast, also for long runs.

    Raises:
        UserError: no such folder, or not a run's.
    """
    try:
        folder = path.parent if path.is_file() else path
        if not folder.is_dir():
            raise UserError(f"{path}: no such folder; use that of a run, such as runs/resnet50-demo")
        if not is_run(folder):
            raise UserError(f"{path}: not the folder of a run: it has none of {', '.join(MARKS)}")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; use the folder of a run") from error
    record, notes = read_record(folder), []
    if not record and (folder / RECORD).exists():
        notes.append(f"{RECORD} is damaged, and skipped")
    settings, note = _read_settings(folder, record, brief=brief)
    log, epochs, test = Log(folder, only_epochs=brief), {}, {}
    metric = record.get("metric")
    for entry in log:
        if entry["kind"] == "epoch":
            epochs[entry["epoch"]] = entry
        elif entry["kind"] == "test":
            test = numbers(entry.get("metrics"))
        elif not isinstance(metric, str):
            metric = entry.get("main_metric")
    if log.damaged:
        notes.append(f"{LOG}: {log.damaged:,} damaged {'line' if log.damaged == 1 else 'lines'} skipped")
    return Run(
        folder=folder,
        settings=settings,
        record=record,
        epochs=[epochs[number] for number in sorted(epochs)],
        test=test,
        metric=metric if isinstance(metric, str) else None,
        running=is_running(folder),
        notes=[*notes, *note],
    )


def _read_settings(
    folder: Path, record: Mapping[str, Any], *, brief: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings, and lines about a damaged file."""
    known = {name: record[name] for name in ("arch", "data", "epochs") if name in record}
    if brief and len(known) == 3:
        return known, []
    path = folder / CONFIG
    if not path.is_file():
        return known, [f"it has no {CONFIG}"]
    try:
        text = path.read_bytes()[:2_000_001].decode("utf-8", "surrogateescape")
        settings = None
        if brief:  # a whole file takes the pure Python parser some 30 ms
            settings = parse_yaml("\n".join(LEADING.findall(text)))
        if not isinstance(settings, dict) or len(settings) < 3:
            settings = parse_yaml(text)
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        return known, [f"{CONFIG} is damaged, and skipped"]
    return {str(name): value for name, value in settings.items()}, []
