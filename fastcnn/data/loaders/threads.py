"""Loader threads, which run concurrently with the training."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fastcnn.data.sources.dataset import SMALL_IMAGE, Split


def chunks(items: Sequence[int], count: int) -> list[Sequence[int]]:
    """Split `items` into at most `count` parts: dispatching a small image costs as much as decoding it."""
    size = -(-len(items) // max(1, count))
    return [items[i : i + size] for i in range(0, len(items), size)]


def needs_one_thread(split: Split) -> bool:
    """Return whether a second thread would only wait: small images hold the GIL most of the time."""
    return bool(split.sizes.astype(np.int64).prod(axis=1).mean() < SMALL_IMAGE**2)


def pool_for(split: Split, workers: int, *, gives_way: bool = False) -> ThreadPoolExecutor:
    """Return a pool of threads with one OpenMP thread each, as OpenMP would start a team for every one.

    Args:
        gives_way: lowest priority, for threads that share the cores with the training step. A core taken from
            one of OpenMP's threads stalls them all (benchmarks/LOG.md), so loading uses only cores that the
            step leaves idle. Linux only: elsewhere threads have no priorities of their own.
    """
    workers = 1 if needs_one_thread(split) else max(1, workers)
    # Read before the threads change it: a thread that has computed nothing yet inherits the last number set
    # by any thread.
    own = torch.get_num_threads()
    together = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.set_num_threads(1)  # also the default of later threads
        if gives_way and sys.platform.startswith("linux"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        together.wait()

    # Start all threads now; the barrier waits for their setup.
    pool = ThreadPoolExecutor(workers, "fastcnn-loader", begin)
    for _ in range(workers):
        pool.submit(int)
    together.wait()
    torch.set_num_threads(own)  # restores the default of later threads
    return pool
