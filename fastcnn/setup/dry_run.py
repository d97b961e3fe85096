"""Dry runs: real training steps before a run, undone afterwards, to measure speed or learning rates.

with preserve_state(state, loader):
    seconds = time_updates(state, task, loader, at_most=10.0)
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch

from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.engine import checkpoint
from fastcnn.engine.cuda_graph import WARMUP_STEPS
from fastcnn.engine.evaluate import evaluate_batch
from fastcnn.engine.state import TrainState, to_training
from fastcnn.engine.step import train_step
from fastcnn.runtime.distributed import gather_to_all
from fastcnn.tasks.base import Task

MIN_TIMED_STEPS = 3
"""Min number of timed updates."""


@contextmanager
def preserve_state(state: TrainState, loader: Loader) -> Iterator[None]:
    """Undo the training inside the block, bit for bit. All ranks enter it.

    Restores weights, their moving average, optimizer, counters, random generators and the loader's position.
    """
    content = copy.deepcopy(checkpoint.pack_state(state))
    random, position, schedule = checkpoint.random_state(state.device), loader.state_dict(), state.schedule
    found_inf, bad_steps = state.guard.found_inf.clone(), state.guard.bad_steps.clone()
    try:
        yield
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        checkpoint.unpack_weights(state, content)
        checkpoint.unpack_progress(state, content)
        checkpoint.restore_random_state(random, state.device)
        state.guard.found_inf.copy_(found_inf)
        state.guard.bad_steps.copy_(bad_steps)
        state.schedule = schedule
        loader.load_state_dict(position)


def updates(loader: Loader, accum_steps: int) -> Iterator[list[Batch]]:
    """Yield the batches of each update, epoch after epoch."""
    for epoch in itertools.count(loader.state_dict()["epoch"]):
        loader.set_epoch(epoch)
        batches = iter(loader)
        while len(group := list(islice(batches, accum_steps))) == accum_steps:
            yield group


def time_updates(state: TrainState, task: Task, loader: Loader, at_most: float) -> float:
    """Return the seconds of an update with its data, on the slowest rank.

    All ranks call it, within `preserve_state`.

    Args:
        at_most: max duration in seconds, unless `MIN_TIMED_STEPS` updates take longer.
    """
    metrics = task.metrics(state.device)
    to_training(state)
    batches = updates(loader, state.options.accum_steps)
    for _ in range(1 if state.recorded is None else WARMUP_STEPS + 1):  # compile, allocate and capture
        train_step(state, task, next(batches), metrics)
    state.guard.wait()
    start, count = time.perf_counter(), 0
    while True:
        train_step(state, task, next(batches), metrics)
        state.guard.wait()
        count += 1
        seconds = time.perf_counter() - start
        if count >= MIN_TIMED_STEPS and max(gather_to_all(seconds)) >= at_most / 2:
            return max(gather_to_all(seconds / count))


@torch.no_grad()
def time_validation(state: TrainState, task: Task, loader: Loader, at_most: float) -> float:
    """Return the seconds of a validation, estimated from its first batches, on the slowest rank.

    All ranks call it.
    """
    metrics = task.metrics(state.device, train=False)
    state.eval_model.eval()
    batches = iter(loader)
    evaluate_batch(state, task, next(batches), metrics)
    state.guard.wait()
    start, count = time.perf_counter(), 0
    for batch in itertools.chain(batches, loader):  # the first may have been the only one
        evaluate_batch(state, task, batch, metrics)
        state.guard.wait()
        count += 1
        if time.perf_counter() - start >= at_most:
            break
    seconds = (time.perf_counter() - start) / count * len(loader)
    return max(gather_to_all(seconds))
