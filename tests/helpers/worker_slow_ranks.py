"""Work of two ranks for tests/profiling/test_bottleneck.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.epoch import Callbacks, LogInterval, train_epoch
from fastcnn.engine.state import TrainState, unfreeze
from fastcnn.models import build
from fastcnn.profiling.bottleneck import Timing
from fastcnn.runtime.distributed import Ranks, gather_to_main
from fastcnn.tasks.classification import Classification
from small_state import small_state

CPU = torch.device("cpu")
NAP = 0.1


def slow_reduce(_, bucket):  # without annotations: DDP rejects strings
    """Average over all ranks, with a nap before the result."""
    work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)

    def late(future: Any) -> Tensor:
        time.sleep(NAP)
        return future.value()[0]

    assert work is not None
    return work.get_future().then(late)


def make_slow(state: TrainState) -> None:
    cast(DistributedDataParallel, state.train_model).register_comm_hook(None, slow_reduce)


def timings(
    reduce: bool = False,
    load: float = 0.0,
    forward: float = 0.0,
    backward: float = 0.0,
    accumulate: int = 1,
    frozen: bool = False,
) -> list[Timing]:
    """Return the timings of the steps after the first two, by rank.

    Args:
        reduce: delay the average of the gradients by 0.1 s.
        load, forward, backward: delays of these in this process, in seconds.
        frozen: freeze all but the classifier in the first two steps.
    """
    torch.manual_seed(0)
    network = build("lenet5", num_classes=10)
    state = small_state(network, frozen, accumulate)
    if reduce:
        make_slow(state)
    network.register_forward_pre_hook(lambda *_: time.sleep(forward))
    if backward:
        conv = cast(nn.Module, network.conv3)
        conv.register_full_backward_hook(lambda *_: time.sleep(backward))
    image = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(image, torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.bool))

    def load_batches(steps: int) -> Iterator[Batch]:
        for _ in range(accumulate * steps):
            time.sleep(load)
            yield batch

    seen: list[Timing] = []

    def on_log(interval: LogInterval) -> bool:
        seen.append(interval.timing)
        return False

    callbacks = Callbacks(on_log=on_log)

    task = Classification(10)
    train_epoch(
        state, task, cast(Loader, load_batches(2)), task.metrics(CPU), log_interval=2, callbacks=callbacks
    )
    if frozen:
        unfreeze(state)
        if reduce:
            make_slow(state)
    train_epoch(
        state, task, cast(Loader, load_batches(4)), task.metrics(CPU), log_interval=4, callbacks=callbacks
    )
    return gather_to_main(seen[-1])


def results() -> dict[str, list[Timing]]:
    """Return the timings of all ranks, on rank 0, by the slow part."""
    nap = 2 * NAP if Ranks.from_environment().rank == 1 else 0.0
    return {
        "reduce": timings(reduce=True),
        "loader of rank 1": timings(load=nap),
        "network of rank 1": timings(forward=nap),
        "accumulated": timings(reduce=True, forward=2 * NAP, accumulate=2),
        "unfrozen": timings(reduce=True, backward=2 * NAP, frozen=True),
    }
