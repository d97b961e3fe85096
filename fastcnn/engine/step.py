"""The training loop: works through a task object and knows no network, no data and no kernel by name.

Losses, counts and the flag for a non-finite loss stay on the device; the host waits for it only at the
log interval, before a save and at the end of an epoch.
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
    """One update from the mean gradient of `batches`, without waiting for the device."""
    update(state, task, batches, metrics)
    if state.ema is not None:
        state.ema.update()
    state.step += 1


def update(state: TrainState, task: Task, batches: Sequence[Batch], metrics: Metrics) -> None:
    """The device's part of a step, with what the host tells it anew: how the batches are mixed, and the
    learning rate."""
    if state.mixing is not None:
        mixing = state.mixing
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
    """It may be recorded: nothing here changes from step to step but what is in tensors."""
    for i, batch in enumerate(batches):
        last = i + 1 == len(batches)
        with _no_sync(state.train_model, not last):
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

    norm = None
    if state.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        norm = _clip(state.network, state.clip_grad, state.clip_mode)
    # With fp16 an overflowing gradient is the scaler's business.
    state.guard.finish_checks(None if state.scaler.is_enabled() else norm)
    if state.scaler.is_enabled():
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.found_inf = state.guard.found_inf  # type: ignore[attr-defined]
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _draw_mix(state: TrainState, mixing: Mixing, part: int, size: int) -> Tensor:
    """How batch `part` of the next update is mixed, on its way to the device. Where nothing is mixed, or no
    more, it is the same graph."""
    drawn = plain()
    if mixing.goes_on(state.step // state.schedule.steps_per_epoch):
        rank = dist.get_rank() if is_distributed() else 0
        drawn = mix_of(mixing, seed=state.seed, step=state.step, rank=rank, part=part, size=size)
    return to_device(drawn, state.device)


def _clip(network: nn.Module, most: float, mode: ClipMode) -> Tensor:
    """Clips the gradient, and gives a norm of it from before that: infinite or NaN if a part of it was."""
    if mode == "norm":
        return nn.utils.clip_grad_norm_(network.parameters(), most)
    # Clipping makes infinity a number like any other, so it is looked for first.
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    largest = nn.utils.get_total_norm(gradients, math.inf)
    nn.utils.clip_grad_value_(network.parameters(), most)
    return largest


def _no_sync(model: nn.Module, skip: bool) -> AbstractContextManager[object]:
    """DDP averages gradients in the last of the accumulated batches only."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()
