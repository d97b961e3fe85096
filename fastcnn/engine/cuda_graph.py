"""A training step as a CUDA graph: captured once, then launched by one call for all its kernels.

A graph repeats the same work on the same memory, so batches are copied into the tensors that it reads.
All that differs between steps (learning rate, mixing parameters) is a tensor written before the launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from fastcnn.data.batch import Batch
from fastcnn.errors import UserError

Work = Callable[[Sequence[Batch]], None]
WARMUP_STEPS = 2
"""Eager steps of each shape before the capture, to compile, allocate and choose algorithms."""


class Recorder(Protocol):
    """A device that captures work and replays it."""

    def prepare(self, work: Callable[[], None]) -> None:
        """Do the work as in the capture."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work without doing it; return a function that replays it."""

    def reset(self) -> None:
        """Release all captures."""


class CudaRecorder:
    """CUDA graphs that share a memory pool: one runs at a time, and none keeps data in it."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None

    def prepare(self, work: Callable[[], None]) -> None:
        """Do the work on the capturing stream: libraries initialize a stream on its first use."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Threads that load images meanwhile may allocate memory.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            work()
        self._pool = graph.pool()
        return graph.replay

    def reset(self) -> None:
        self._pool = None  # it belongs to released graphs


class RecordedSteps:
    """One CUDA graph for each shape of batches.

    Args:
        optimizer: updates the weights within the captured work.
    """

    def __init__(self, optimizer: Optimizer, recorder: Recorder) -> None:
        self.optimizer = optimizer
        self.recorder = recorder
        self._done: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, tuple[list[Batch], Callable[[], None]]] = {}

    def run(self, work: Work, batches: Sequence[Batch], *of: object) -> None:
        """Do `work` with `batches`: eagerly the first times, then by its graph.

        Args:
            of: other objects that the work reads; new ones cause a new capture. Their tensors, and those of
                the network and the optimizer, keep their memory until `reset`.

        Raises:
            UserError: the work cannot be captured, for example because the host waits for the device.
        """
        key = (*of, *(t if t is None else (t.shape, t.dtype) for batch in batches for t in batch))
        if key not in self._recordings:
            if self._done[key] < WARMUP_STEPS:
                self._done[key] += 1
                self.recorder.prepare(lambda: work(batches))
                return
            inputs = [Batch._make(t if t is None else t.clone() for t in batch) for batch in batches]
            self._recordings[key] = inputs, self._record(lambda: work(inputs))
        inputs, replay = self._recordings[key]
        for into, batch in zip(inputs, batches):
            for target, value in zip(into, batch):
                if target is not None and value is not None:
                    target.copy_(value, non_blocking=True)
        replay()

    def reset(self) -> None:
        """Discard all captures, for example after a load."""
        self._done.clear()
        self._recordings.clear()
        self.recorder.reset()

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            with _capturable(self.optimizer):
                return self.recorder.record(work)
        except RuntimeError as error:
            first = error.__context__ or error  # a later CUDA error repeats it with less detail
            reason = str(first).strip().partition("\n")[0]
            raise UserError(
                f"--cuda-graph: a step of this network cannot be recorded ({reason}); omit it"
            ) from error


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Mark an optimizer as capturable: Adam requires the mark, though its fused form needs no change."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(groups, before):
            group["capturable"] = value
