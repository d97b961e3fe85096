"""The device's work of a training step as a CUDA graph: recorded once, and from then on launched by one call
of the host, however many kernels it has.

What is recorded does the same to the same memory each time. So batches are copied into the tensors that the
recording reads, and what the host says anew in each step (the learning rate, how a batch is mixed) has to be
a tensor that it writes before.
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
"""Steps of each shape that are done as they are, before one is recorded: they compile, allocate and choose
algorithms."""


class Recorder(Protocol):
    """A device that can repeat what it was told once."""

    def prepare(self, work: Callable[[], None]) -> None:
        """Does it, as it will be recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does it again, without doing it now."""

    def reset(self) -> None:
        """Nothing that it recorded is needed any more."""


class CudaRecorder:
    """CUDA graphs that share their memory, since only one of them runs at a time and none leaves anything in
    it."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None

    def prepare(self, work: Callable[[], None]) -> None:
        """On the stream that records: libraries set themselves up for a stream when it is first used."""
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
        self._pool = None  # which belongs to graphs that are gone


class RecordedSteps:
    """One recording for each shape of batches.

    Args:
        optimizer: makes its updates in the recorded work.
    """

    def __init__(self, optimizer: Optimizer, recorder: Recorder) -> None:
        self.optimizer = optimizer
        self.recorder = recorder
        self._done: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, tuple[list[Batch], Callable[[], None]]] = {}

    def run(self, work: Work, batches: Sequence[Batch], *of: object) -> None:
        """Does `work` with `batches`: itself the first times, later by its recording.

        Args:
            of: the objects that the work reaches besides; with others it is recorded anew. Their tensors, and
                those of the network and the optimizer, stay where they are until `reset` is called.

        Raises:
            UserError: it cannot be recorded, as where the host waits for the device.
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
        """What was recorded is not true any more."""
        self._done.clear()
        self._recordings.clear()
        self.recorder.reset()

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            with _capturable(self.optimizer):
                return self.recorder.record(work)
        except RuntimeError as error:
            first = error.__context__ or error  # CUDA reports once more, in fewer words, at the end
            reason = str(first).strip().partition("\n")[0]
            raise UserError(
                f"--cuda-graph: a step of this network cannot be recorded ({reason}); leave it out"
            ) from error


@contextmanager
def _capturable(optimizer: Optimizer) -> Iterator[None]:
    """Adam refuses to be recorded unless it is told, though fused it is fit for it."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(groups, before):
            group["capturable"] = value
