"""One training step through a `Task`: independent of network, data and kernels.

Losses, counts and the flag for a non-finite loss stay on the device. The host waits for it only at log lines,
before a save and at the end of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastcnn.config.settings import ClipMode
from fastcnn.data.batch import Batch
from fastcnn.data.transforms.mixing import Mixing, mix_of, plain
from fastcnn.engine.state import TrainState
from fastcnn.optim.build import set_learning_rate
from fastcnn.optim.schedules import learning_rate
from fastcnn.runtime.distributed import is_distributed
from fastcnn.runtime.to_device import to_device
from fastcnn.tasks.base import Task
from fastcnn.tasks.metrics import Metrics


def train_step(state: TrainState, task: Task, batches: Sequence[Batch], metrics: Metrics) -> None:
    """Update the weights by the mean gradient of `batches`, without waiting for the device."""
    update(state, task, batches, metrics)
    if state.ema is not None:
        state.ema.update()
    state.step += 1


def update(state: TrainState, task: Task, batches: Sequence[Batch], metrics: Metrics) -> None:
    """Forward, backward and update on the device; the host supplies learning rate and mixing parameters."""
    mixing = state.options.mixing
    if mixing is not None:
        batches = [
            batch._replace(mix=_draw_mix(state, mixing, i, batch.images.shape[-1]))
            for i, batch in enumerate(batches)
        ]
    set_learning_rate(state.optimizer, learning_rate(state.step, state.schedule))
    if state.recorded is None:
        _update(state, task, metrics, batches)
    else:
        state.recorded.run(partial(_update, state, task, metrics), batches, task, metrics)


def _update(state: TrainState, task: Task, metrics: Metrics, batches: Sequence[Batch]) -> None:
    """Run the device's part. All that differs between steps is in tensors, for a replay by a CUDA graph."""
    for i, batch in enumerate(batches):
        last = i + 1 == len(batches)
        with _no_sync(state.train_model, skip=not last):
            with state.autocast():
                outputs = state.train_model(batch.images, batch.mix)
                loss = task.loss(outputs, batch, train=True)
            state.guard.check(loss)
            part = loss / len(batches)
            if state.scaler.is_enabled():
                part = state.scaler.scale(state.guard.nan_if_bad(part))
            if last:
                state.guard.share()
            part.backward()
        if last:
            state.timer.after_allreduce()
        metrics.update(loss, outputs, batch)

    # Gradient clipping; with fp16 the scaler handles an overflowing gradient.
    norm = None
    if state.options.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        norm = _clip(state.network, state.options.clip_grad, state.options.clip_mode)
    state.guard.finish_checks(None if state.scaler.is_enabled() else norm)

    # Update, skipped on the device after a non-finite loss.
    if state.scaler.is_enabled():
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.found_inf = state.guard.found_inf  # type: ignore[attr-defined]
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _draw_mix(state: TrainState, mixing: Mixing, part: int, size: int) -> Tensor:
    """Draw the mixing parameters of batch `part` of the next update, and copy them to the device.

    Without mixing, draw the identity, so that the graph stays the same.
    """
    drawn = plain()
    if mixing.goes_on(state.step // state.schedule.steps_per_epoch):
        rank = dist.get_rank() if is_distributed() else 0
        seed, step = state.options.seed, state.step
        drawn = mix_of(mixing, seed=seed, step=step, rank=rank, part=part, size=size)
    return to_device(drawn, state.device)


def _clip(network: nn.Module, limit: float, mode: ClipMode) -> Tensor:
    """Clip the gradient and return a norm of the unclipped one: infinite or NaN if any entry is."""
    if mode == "norm":
        return nn.utils.clip_grad_norm_(network.parameters(), limit)
    # Clipping by value would hide an infinite entry.
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    largest = nn.utils.get_total_norm(gradients, math.inf)
    nn.utils.clip_grad_value_(network.parameters(), limit)
    return largest


def _no_sync(model: nn.Module, *, skip: bool) -> AbstractContextManager[object]:
    """Return the context of a backward pass; DDP averages gradients in the last accumulated batch only."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()
