"""What a run compiles and records before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastcnn.data.loaders.base import Loader
from fastcnn.data.transforms.mixing import plain
from fastcnn.engine.checkpoint import random_state, restore_random_state
from fastcnn.engine.cuda_graph import WARMUP_STEPS
from fastcnn.engine.state import TrainState, to_training
from fastcnn.engine.step import update
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks
from fastcnn.setup.dry_run import updates
from fastcnn.tasks.base import Task
from fastcnn.tasks.metrics import Metrics
from fastcnn_kernels.precompile import Call, calls_of, precompiling
from fastcnn_kernels.support import why_not_triton


@contextmanager
def kernels_ahead(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[int],
    val_size: int,
    batch_size: int,
    channels: int,
    ranks: Ranks,
) -> Iterator[None]:
    """On a GPU, compiles the Triton kernels of a network's layers in processes of their own, beside what is
    done inside; the first process of each machine does it.

    Args:
        dtype: of activations.
        sizes: pixels a side of the training images.
    """
    if device.type != "cuda" or ranks.local_rank > 0 or why_not_triton(device) is not None:
        yield
        return
    calls: list[Call] = []
    with suppress(RuntimeError):  # a network that needs numbers: its kernels are compiled as they come
        for size in (*sizes, val_size):
            found = calls_of(network, (batch_size, channels, size, size), dtype)
            calls += [call for call in found if size in sizes or call.kind in ("forward", "norm")]
    capability, cores = torch.cuda.get_device_capability(device), machine.cores_per_process(ranks)
    with precompiling(list(dict.fromkeys(calls)), capability, cores):
        yield


def warm_up_sizes(
    state: TrainState, sizes: Sequence[int], val_size: int, batch_size: int, channels: int
) -> None:
    """Runs forward and backward on random images of each size, and validation of its own; nothing of it
    stays: weights, statistics, gradients and random states are as before. All ranks call it.

    It raises torch's limit on recompilations, 8 by default, behind which a network runs eagerly: unfreezing
    compiles each graph once more.

    Args:
        sizes: pixels a side of the training images to come.
        batch_size: images of a batch.
    """
    limit = 2 * (len(sizes) + 1)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    generators = random_state(state.device)
    buffers = list(state.network.buffers())
    before = [buffer.clone() for buffer in buffers]

    state.eval_model.eval()
    with torch.no_grad(), state.autocast():
        state.eval_model(random_images(batch_size, val_size, channels, state.device))
    to_training(state)
    mix = torch.from_numpy(plain()).to(state.device) if state.mixing is not None else None
    for size in sizes:
        with state.autocast():
            outputs = state.train_model(random_images(batch_size, size, channels, state.device), mix)
        any_loss(outputs).backward()
        state.optimizer.zero_grad(set_to_none=True)

    with torch.no_grad():
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
    restore_random_state(generators, state.device)


def record_ahead(state: TrainState, task: Task, loader: Loader, metrics: Metrics) -> None:
    """Records the step for the batches of `loader` and these metrics, if it is to be recorded; nothing of it
    stays: as after a loss that is not finite, updates change nothing."""
    if state.recorded is None:
        return
    generators, place = random_state(state.device), loader.state_dict()
    flags = state.guard.found_inf, state.guard.bad_steps
    changed = [*flags, *state.network.buffers()]
    before = [tensor.clone() for tensor in changed]
    to_training(state)
    state.guard.found_inf.fill_(1)
    for batches in islice(updates(loader, state.accum_steps), WARMUP_STEPS + 1):
        update(state, task, batches, metrics)
    metrics.reset()
    loader.load_state_dict(place)
    with torch.no_grad():
        for tensor, value in zip(changed, before):
            tensor.copy_(value)
    restore_random_state(generators, state.device)


def any_loss(outputs: object) -> Tensor:
    """A scalar to which all outputs of a network contribute, whatever they are."""
    trained = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack([leaf.float().mean() for leaf in trained]).sum()


def random_images(count: int, size: int, channels: int, device: torch.device) -> Tensor:
    """As a loader yields them."""
    shape = (count, size, size, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
