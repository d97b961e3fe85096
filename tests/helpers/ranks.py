"""Run functions on two ranks, in processes forked from a server with all imports done.

first, second = run_ranks(train, "lenet5")
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from fastcnn.runtime.distributed import Ranks, process_group

SERVER = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PRELOAD = [
    "fastcnn.bench.worker",
    "fastcnn.setup.build",
    "fastcnn.engine.loop",
    "fastcnn.tasks.build",
    "torchvision",
]
"""Modules that the server imports once; a fork then takes milliseconds. No threads, no DALI."""


def warm() -> Any:
    """Return the server's context, for other kinds of processes."""
    if hasattr(SERVER, "set_forkserver_preload"):
        SERVER.set_forkserver_preload(PRELOAD)
    return SERVER


@contextlib.contextmanager
def command(folder: Path, *flags: str) -> Iterator[BaseProcess]:
    """Run `python -m fastcnn.train` in a folder, with output in out.txt; kill it at the end of the block."""
    process = warm().Process(target=_command, args=(folder, flags, dict(os.environ)))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _command(folder: Path, flags: tuple[str, ...], environment: dict[str, str]) -> None:
    from fastcnn.train import main

    _become(environment)
    os.chdir(folder)
    os.dup2(os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os._exit(main(list(flags)))


def run_ranks(work: Callable[..., Any], *args: Any, world_size: int = 2, timeout: float = 120) -> list[Any]:
    """Return the results of `work(*args)` on each rank of a gloo group, in rank order.

    Each call starts fresh processes with torchrun's environment variables. `work` is a module-level function;
    its arguments and results are picklable.

    Raises:
        AssertionError: ranks failed, with their tracebacks, or gave no result in `timeout` seconds.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = SERVER.Pipe()
        ranks = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
        variables = {name: str(value) for name, value in ranks.items()}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        job = theirs, {**os.environ, **variables}, work, args
        process = warm().Process(target=_serve, args=job, daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        answers = [_answer(pipe, timeout) for pipe in pipes]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
    failures = [f"rank {rank}: {failure}" for rank, (failure, _) in enumerate(answers) if failure]
    assert not failures, "\n".join(failures)
    return [result for _, result in answers]


def _answer(pipe: Connection, timeout: float) -> tuple[str, Any]:
    """Return the failure, "" if there is none, and the result."""
    if not pipe.poll(timeout):
        return f"no answer in {timeout:g} s", None
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return "ended without a result", None


def _serve(
    pipe: Connection, environment: dict[str, str], work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    _become(environment)
    torch.set_num_threads(1)
    failure, result = "", None
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            with process_group(Ranks.from_environment(), torch.device("cpu")):
                result = work(*args)
        except BaseException:
            failure = traceback.format_exc()
    pipe.send_bytes(pickle.dumps((failure, result)))


def _become(environment: dict[str, str]) -> None:
    """Set the environment of the test in place of the server's; keep the priority of loading threads."""
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "setpriority"):
        os.setpriority = lambda *priority: None
