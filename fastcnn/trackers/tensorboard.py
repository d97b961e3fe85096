"""TensorBoard's file of a run, as torch's SummaryWriter writes it, without a thread that fails later."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcnn import files
from fastcnn.trackers.base import TrackedRun, Tracker


class TensorBoard(Tracker):
    """An event file in the run's folder; a resumed run adds another one."""

    def start(self, run: TrackedRun, resume: str | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self.path = run.folder / name
        lines = [f"    {name}: {value}" for name, value in run.settings.items()]
        settings = _text("settings", "\n".join(lines))
        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        # Written with the first records, also after a time without room on the disk.
        self.pending = [version, Event(wall_time=time.time(), step=0, summary=Summary(value=[settings]))]

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step, [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])

    def picture(self, step: int, name: str, path: Path) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        content = path.read_bytes()
        width, height = Image.open(io.BytesIO(content)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._write(step, [Summary.Value(tag=name, image=image)])

    def text(self, step: int, name: str, text: str) -> None:
        self._write(step, [_text(name, text)])

    def finish(self, *, failed: bool) -> None:
        pass

    def _write(self, step: int, values: list[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        events = [Event(wall_time=now, step=step, summary=Summary(value=[value])) for value in values]
        stream = io.BytesIO()
        for event in (*self.pending, *events):
            RecordWriter(stream).write(event.SerializeToString())
        files.append(self.path, stream.getvalue(), "TensorBoard's file")
        self.pending = []


def _text(name: str, text: str) -> Any:
    """Return a Summary.Value of Markdown."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(name, text).value[0]
