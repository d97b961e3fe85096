"""Trackio."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from fastcnn.trackers.base import PROJECT, TrackedRun, Tracker


class Trackio(Tracker):
    """A run of Trackio in $TRACKIO_DIR, or at $TRACKIO_SPACE_ID or $TRACKIO_SERVER_URL."""

    def start(self, run: TrackedRun, resume: str | None) -> str:
        import trackio

        name = resume or f"{run.name}-{uuid.uuid4().hex[:6]}"  # resumed by name
        self.run = trackio.init(
            project=run.project or os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        return name

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        import trackio

        self.run.log({name: trackio.Image(str(path))}, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        import trackio

        self.run.log({name: trackio.Markdown(text)}, step=step)

    def finish(self, *, failed: bool) -> None:
        self.run.finish()
