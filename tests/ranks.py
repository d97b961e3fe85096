"""Functions that two ranks run together, in processes forked from a server that has imported everything.

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
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from fastcnn.distributed import Ranks, process_group

SERVER = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PRELOAD = ["fastcnn.worker", "fastcnn.wire", "fastcnn.loop", "fastcnn.tasks", "torchvision", "ranks"]
"""What the server imports once; a fork has it in milliseconds. It starts no threads and no DALI."""


def warm() -> Any:
    """The server's context, for processes of other kinds."""
    if hasattr(SERVER, "set_forkserver_preload"):
        SERVER.set_forkserver_preload(PRELOAD)
    return SERVER


def start_command(folder: Path, *flags: str) -> BaseProcess:
    """Starts `python -m fastcnn.train` with these flags in a folder; its output goes to out.txt there."""
    process = warm().Process(target=_command, args=(folder, flags))
    process.start()
    return process


def _command(folder: Path, flags: tuple[str, ...]) -> None:
    from fastcnn.train import main

    _share_the_machine()
    os.chdir(folder)
    os.dup2(os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os._exit(main(list(flags)))


def run_ranks(work: Callable[..., Any], *args: Any, world_size: int = 2, timeout: float = 120) -> list[Any]:
    """What `work(*args)` returns on each rank of a gloo group, by rank.

    Each call has fresh processes, which see the environment variables of torchrun. `work` is a function of a
    module; arguments and results can be pickled.

    Raises:
        AssertionError: a rank failed, with its traceback, or did not answer in `timeout` seconds.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = SERVER.Pipe()
        job = theirs, rank, world_size, port, work, args
        process = warm().Process(target=_serve, args=job, daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        answers = [_answer(pipe, rank, timeout) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
    return answers


def _share_the_machine() -> None:
    """A loading thread that gives way would wait for the other tests."""
    if hasattr(os, "setpriority"):
        os.setpriority = lambda *priority: None


def _answer(pipe: Connection, rank: int, timeout: float) -> Any:
    assert pipe.poll(timeout), f"rank {rank} did not answer in {timeout:g} s"
    try:
        failure, result = pickle.loads(pipe.recv_bytes())
    except EOFError:
        raise AssertionError(f"rank {rank} ended without a result") from None
    assert not failure, f"rank {rank}\n{failure}"
    return result


def _serve(
    pipe: Connection, rank: int, world_size: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    ranks = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _share_the_machine()
    torch.set_num_threads(1)
    failure, result = "", None
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            with process_group(Ranks.from_environment(), torch.device("cpu")):
                result = work(*args)
        except BaseException:
            failure = traceback.format_exc()
    pipe.send_bytes(pickle.dumps((failure, result)))
