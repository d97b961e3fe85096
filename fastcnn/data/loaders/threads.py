"""Threads that load beside the training."""

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
    """`items` in at most `count` parts: handing over a small image costs a thread as much as decoding it."""
    size = -(-len(items) // max(1, count))
    return [items[i : i + size] for i in range(0, len(items), size)]


def needs_one_thread(split: Split) -> bool:
    """Small images hold Python's lock most of the time: a second thread only waits for it."""
    return bool(split.sizes.astype(np.int64).prod(axis=1).mean() < SMALL_IMAGE**2)


def pool_for(split: Split, workers: int, gives_way: bool = False) -> ThreadPoolExecutor:
    """Threads in each of which torch computes alone: OpenMP would start a team for every one of them.

    Args:
        gives_way: for where they share the cores with the training step: a core that is taken from one of
            OpenMP's threads makes all of them wait (benchmarks/LOG.md). So they load while the step leaves a
            core idle, or waits for them. On Linux alone threads have priorities of their own.
    """
    workers = 1 if needs_one_thread(split) else max(1, workers)
    # Asked for before the threads change it: a thread that has computed nothing yet takes over the last
    # number that any thread set.
    own = torch.get_num_threads()
    together = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread, and of those that are made later
        if gives_way and sys.platform.startswith("linux"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        together.wait()

    pool = ThreadPoolExecutor(workers, "fastcnn-loader", begin)
    for _ in range(workers):
        pool.submit(int)
    together.wait()
    torch.set_num_threads(own)  # later threads have this one's number again
    return pool
