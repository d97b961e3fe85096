"""Steps in processes of their own that take turns; allocator, compiler and memory are not shared.

with Worker(partial(build_step, "resnet50")) as ours, Worker(partial(build_step, "other")) as other:
    seconds = time_workers({"ours": ours, "other": other}, rounds=15)
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fastcnn.bench import timing
from fastcnn.profiling.clock import HostClock
from fastcnn.runtime import machine

Step = Callable[[], Any]
"""One unit of work; may return a loss."""

MIN_FIRST_CALLS, FIRST_SECONDS = 3, 1.0
"""Minimum number of first calls, and the time limit for further ones in seconds, without the first call."""


class WorkerError(RuntimeError):
    """An error in a worker, in one line."""


class WorkerLimitError(WorkerError):
    """A worker exceeded its time limit and was killed."""


@dataclass
class Start:
    """Times and losses of a worker's first calls."""

    build_seconds: float
    first_seconds: list[float] = field(default_factory=list)
    """First calls, which include compilation, choice of algorithms and allocation."""
    losses: list[float] = field(default_factory=list)
    """Numbers that they returned."""
    peak_bytes: int | None = None
    """Peak memory of the device; on the CPU of the process, without its libraries. None if unknown."""


class Worker:
    """A process that builds a step and calls it on request.

    Args:
        build: returns the step. It is pickled, so it is a module's function or a `partial` of one.
        device: synchronized at the end of each turn.
        keep_memory: let glibc keep freed memory, as `fastcnn train` does on the CPU.
        first_calls: calls at the start, timed one by one; fewer, down to `MIN_FIRST_CALLS`, if they take
            longer than `FIRST_SECONDS`.
        limit: time limit in seconds for the start and for each result, after which the process is killed;
            None: no limit.
    """

    def __init__(
        self,
        build: Callable[[], Step],
        device: torch.device,
        *,
        keep_memory: bool = False,
        first_calls: int = 3,
        limit: float | None = None,
    ) -> None:
        self.device, self._limit, self._over_limit = device, limit, False
        if "forkserver" in multiprocessing.get_all_start_methods():
            context: Any = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])  # imports torch once for all workers
        else:
            context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        threads = torch.get_num_threads()
        self._process = context.Process(
            target=_serve,
            args=(theirs, build, device),
            kwargs={"keep_memory": keep_memory, "first_calls": first_calls, "threads": threads},
            daemon=True,
        )
        self._process.start()
        theirs.close()
        try:
            self.start: Start = self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, function: Callable[[Step], Any]) -> Any:
        """Return `function(step)`, evaluated in the process; function and result are pickled.

        Raises:
            WorkerError: the step failed, took longer than the limit, or the process ended.
        """
        try:
            self._pipe.send(function)
        except OSError:
            raise self._ended() from None
        return self._receive()

    def turn(self, calls: int = 1) -> float:
        """Seconds per call, for several calls of the step with one synchronization at the end."""
        return self.call(_Turn(calls, self.device))

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            if not self._pipe.poll(self._limit):
                self._process.kill()
                self._over_limit = True
                raise self._ended()
            ok, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if not ok:
            raise WorkerError(value)
        return value

    def _ended(self) -> WorkerError:
        self._process.join(10)
        if self._over_limit:
            return WorkerLimitError(f"took longer than {self._limit:g} s")
        code = self._process.exitcode
        return WorkerError(
            "the process was killed: there was too little memory, as a rule"
            if code == -signal.SIGKILL
            else f"the process ended with status {code}"
        )


def calls_of_a_turn(slowest: Worker, device: torch.device) -> int:
    """Calls per turn: 1 on a CPU; on a GPU 2 to 10, about half a second of the slowest step.

    A GPU's host runs ahead of it, so a single call would include the time to launch it.
    """
    if device.type == "cpu":
        return 1
    return max(2, min(10, round(0.5 / slowest.start.first_seconds[-1])))


def time_workers(
    workers: Mapping[str, Worker], rounds: int, warmup: int = 1, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds per call. The workers take turns in every round, and the order rotates by one."""
    turns = {name: partial(worker.turn, calls) for name, worker in workers.items()}
    return timing.in_turn(turns, rounds, warmup)


@dataclass(frozen=True)
class _Turn:
    calls: int
    device: torch.device

    def __call__(self, step: Step) -> float:
        start = time.perf_counter()
        for _ in range(self.calls):
            step()
        timing.wait_for(self.device)
        return (time.perf_counter() - start) / self.calls


def _serve(
    pipe: Connection,
    build: Callable[[], Step],
    device: torch.device,
    *,
    keep_memory: bool,
    first_calls: int,
    threads: int,
) -> None:
    """Main function of the process: build the step, time its first calls, then serve `Worker.call`."""
    torch.set_num_threads(threads)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of missing CUDA
    if keep_memory:
        machine.keep_freed_memory()
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
        idle = _peak_bytes(device) or 0
        begin = time.perf_counter()
        step = build()
        start = Start(time.perf_counter() - begin)
        for _ in range(first_calls):
            begin = time.perf_counter()
            result = step()
            timing.wait_for(device)
            start.first_seconds.append(time.perf_counter() - begin)
            if isinstance(result, torch.Tensor) and result.numel() == 1:
                start.losses.append(float(result))
            if sum(start.first_seconds[1:]) > FIRST_SECONDS and len(start.first_seconds) >= MIN_FIRST_CALLS:
                break
        peak = _peak_bytes(device)
        start.peak_bytes = None if peak is None else peak - idle
        gc.collect()
        gc.freeze()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # others share the device
        pipe.send((True, start))
        while True:
            function = pipe.recv()
            pipe.send((True, function(step)))
    except EOFError:  # the worker was closed
        return
    except Exception as error:
        cause = error.__cause__ or error  # Inductor wraps the error
        line = f"{type(cause).__name__}: {cause}".strip().partition("\n")[0]
        frame = traceback.extract_tb(cause.__traceback__)[-1]
        pipe.send((False, f"{line} ({Path(frame.filename).name}:{frame.lineno})"))


def cpu_contention(step: Step) -> float:
    """Share of its runnable time that the main thread waited for a core; 0 where the system has no counter.

    A function for `Worker.call`.
    """
    waited = HostClock().cpu_contention()
    return waited / (waited + time.thread_time())


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
