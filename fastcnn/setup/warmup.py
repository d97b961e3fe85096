"""Compilation and CUDA graph capture before the first step of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from fastcnn.runtime.distributed import Ranks, wait_for_all
from fastcnn.setup.cpu_trials import Shape, random_images
from fastcnn.setup.dry_run import updates
from fastcnn.tasks.base import Task
from fastcnn.tasks.metrics import Metrics
from fastcnn_kernels.precompile import Call, calls_of, precompiling
from fastcnn_kernels.support import why_not_triton


@dataclass(frozen=True, kw_only=True)
class InputShapes:
    """Shapes of the images of a run."""

    sizes: Sequence[int]
    """Image sizes of the remaining training, in pixels."""
    val_size: int
    """Image size of the validation, in pixels."""
    batch_size: int
    channels: int

    def batch(self, size: int) -> Shape:
        """Return the shape [N, C, H, W] of a batch of images of a size."""
        return self.batch_size, self.channels, size, size


@contextmanager
def kernels_ahead(
    network: nn.Module, shapes: InputShapes, *, device: torch.device, dtype: torch.dtype, ranks: Ranks
) -> Iterator[None]:
    """On a GPU, compile the Triton kernels of a network's layers in other processes while the block runs.

    Only the first process of each machine compiles. At the end the others wait for it and find the kernels
    in the cache, instead of compiling them one by one. All ranks call it.

    Args:
        dtype: data type of the activations.
    """
    if device.type != "cuda":
        yield
        return
    if ranks.local_rank > 0 or why_not_triton(device) is not None:
        yield
    else:
        capability, cores = torch.cuda.get_device_capability(device), machine.cores_per_process(ranks)
        with precompiling(_calls(network, shapes, dtype), capability, cores):
            yield
    wait_for_all()


def _calls(network: nn.Module, shapes: InputShapes, dtype: torch.dtype) -> list[Call]:
    """Return the distinct calls of Triton kernels in the training and validation of a network."""
    calls: list[Call] = []
    with suppress(RuntimeError):  # a network with data-dependent control flow compiles at its first step
        for size in (*shapes.sizes, shapes.val_size):
            layer_calls = calls_of(network, shapes.batch(size), dtype)
            calls += [
                call for call in layer_calls if size in shapes.sizes or call.kind in ("forward", "norm")
            ]
    return list(dict.fromkeys(calls))


def warm_up_sizes(state: TrainState, shapes: InputShapes) -> None:
    """Compile the network for each image size, by forward and backward passes on random images.

    Weights, statistics, gradients and random states are restored. All ranks call it. Torch's limit on
    recompilations, 8 by default, is raised: beyond it a network runs eagerly, and unfreezing compiles again.
    """
    limit = 2 * (len(shapes.sizes) + 1)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    generators = random_state(state.device)
    buffers = list(state.network.buffers())
    before = [buffer.clone() for buffer in buffers]

    state.eval_model.eval()
    with torch.no_grad(), state.autocast():
        state.eval_model(random_images(shapes.batch(shapes.val_size), state.device))
    to_training(state)
    mix = torch.from_numpy(plain()).to(state.device) if state.options.mixing is not None else None
    for size in shapes.sizes:
        with state.autocast():
            outputs = state.train_model(random_images(shapes.batch(size), state.device), mix)
        any_loss(outputs).backward()
        state.optimizer.zero_grad(set_to_none=True)

    with torch.no_grad():
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
    restore_random_state(generators, state.device)


def record_ahead(state: TrainState, task: Task, loader: Loader, metrics: Metrics) -> None:
    """Capture the CUDA graph of the step for the loader's batches and these metrics, if the run has one.

    The state stays unchanged: updates are skipped, as after a non-finite loss.
    """
    if state.recorded is None:
        return
    generators, position = random_state(state.device), loader.state_dict()
    flags = state.guard.found_inf, state.guard.bad_steps
    changed = [*flags, *state.network.buffers()]
    before = [tensor.clone() for tensor in changed]
    to_training(state)
    state.guard.found_inf.fill_(1)
    for batches in islice(updates(loader, state.options.accum_steps), WARMUP_STEPS + 1):
        update(state, task, batches, metrics)
    metrics.reset()
    loader.load_state_dict(position)
    with torch.no_grad():
        for tensor, value in zip(changed, before):
            tensor.copy_(value)
    restore_random_state(generators, state.device)


def any_loss(outputs: object) -> Tensor:
    """Return a scalar to which all outputs of a network contribute, in any structure."""
    trained = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack([leaf.float().mean() for leaf in trained]).sum()
