"""Steps that take turns, each in a process of its own: its allocator, compiler and memory meet nobody else's.

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
from fastcnn.profiling.step_timer import HostClock
from fastcnn.runtime import machine

Step = Callable[[], Any]
"""Does something once; what it returns may be a loss."""


MIN_FIRST_CALLS, FIRST_SECONDS = 3, 1.0
"""So many first calls are made in any case; after so many seconds, without the first call's, no others."""


class WorkerError(RuntimeError):
    """What went wrong in a worker, in one line."""


class WorkerLimitError(WorkerError):
    """A worker was killed because it took too long."""


@dataclass
class Start:
    """How a worker's first calls went."""

    build_seconds: float
    first_seconds: list[float] = field(default_factory=list)
    """Of the first calls: compilation, choice of algorithms, allocation."""
    losses: list[float] = field(default_factory=list)
    """What they returned, where it is a number."""
    peak_bytes: int | None = None
    """Most memory so far: of the device, on the CPU of the process beyond its libraries; None if unknown."""


class Worker:
    """A process that builds a step, and then calls it when asked.

    Args:
        build: returns the step; a module's function, or a `partial` of one, since it is sent there.
        device: waited for at the end of each turn.
        keep_memory: whether glibc keeps freed memory there, as in a training of fastcnn's on the CPU.
        first_calls: calls at the start, timed one by one; fewer, down to `MIN_FIRST_CALLS`, if they take
            longer than `FIRST_SECONDS`.
        limit: seconds for the start and for each answer, after which the process is killed; None: no limit.
    """

    def __init__(
        self,
        build: Callable[[], Step],
        device: torch.device,
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
            target=_serve, args=(theirs, build, device, keep_memory, first_calls, threads), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            self.start: Start = self._receive()
        except BaseException:
            self.close()
            raise

    def ask(self, question: Callable[[Step], Any]) -> Any:
        """`question(step)` of the process; both must be possible to send.

        Raises:
            WorkerError: the step failed, took longer than the limit, or the process ended.
        """
        try:
            self._pipe.send(question)
        except OSError:
            raise self._ended() from None
        return self._receive()

    def turn(self, calls: int = 1) -> float:
        """Seconds of a call, when the step is called so many times and the device waited for."""
        return self.ask(_Turn(calls, self.device))

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
    """1 on a CPU; on a GPU, which the host runs ahead of, up to 10, but half a second of the slowest step."""
    if device.type == "cpu":
        return 1
    return max(2, min(10, round(0.5 / slowest.start.first_seconds[-1])))


def time_workers(
    workers: Mapping[str, Worker], rounds: int, warmup: int = 1, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds of a call: the workers take turns in every round, and the order turns by one."""
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
    keep_memory: bool,
    first_calls: int,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA is known
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
            question = pipe.recv()
            pipe.send((True, question(step)))
    except EOFError:  # nobody asks any more
        return
    except Exception as error:
        cause = error.__cause__ or error  # Inductor wraps what went wrong
        line = f"{type(cause).__name__}: {cause}".strip().partition("\n")[0]
        frame = traceback.extract_tb(cause.__traceback__)[-1]
        pipe.send((False, f"{line} ({Path(frame.filename).name}:{frame.lineno})"))


def cpu_contention(step: Step) -> float:
    """A question to a worker: of the time that its main thread had something to do, the share without a core;
    0 where nobody tells."""
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
