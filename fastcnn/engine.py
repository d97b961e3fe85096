"""The training loop: works through a task object and knows no network, no data and no kernel by name.

Losses, counts and the flag for a non-finite loss stay on the device; the host waits for it only at the
log interval, before a save and at the end of an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastcnn.data.batch import Batch, Loader
from fastcnn.data.mixing import Mixing, mix_of, plain
from fastcnn.data.to_device import to_device
from fastcnn.distributed import average_buffers, is_distributed, sum_over_ranks
from fastcnn.metrics import Metrics
from fastcnn.optim import set_learning_rate
from fastcnn.schedules import learning_rate
from fastcnn.state import ClipMode, TrainState, to_training
from fastcnn.stopwatch import Stopwatch
from fastcnn.tasks import Task
from fastcnn.tta import mean_over_views
from fastcnn.verdict import Timing


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
                part = state.scaler.scale(state.guard.poison(part))
            if last:
                state.guard.share()
            part.backward()
        if last:
            state.watch.reduced()
        metrics.update(loss, outputs, batch)

    norm = None
    if state.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        norm = _clip(state.network, state.clip_grad, state.clip_mode)
    # With fp16 an overflowing gradient is the scaler's business.
    state.guard.settle(None if state.scaler.is_enabled() else norm)
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
        drawn = mix_of(mixing, state.seed, state.step, rank, part, size)
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


@dataclass
class Window:
    """The steps since the last look at the device."""

    steps: int
    samples: int
    """Images of this rank."""
    seconds: float
    data_seconds: float
    """Of these, spent waiting for the loader."""
    timing: Timing
    cold: bool = False
    """Whether it holds start-up and compilation."""


def train_epoch(
    state: TrainState,
    task: Task,
    loader: Loader,
    metrics: Metrics,
    log_interval: int,
    on_step: Callable[[], None],
    on_window: Callable[[Window], bool],
    hurry: Callable[[], bool] = lambda: False,
    limit: int | None = None,
) -> bool:
    """The rest of the loader's epoch.

    Args:
        metrics: sums since the last window; `on_window` reads and resets it.
        on_step: called after each update; waits for the device at most to save.
        on_window: called every `log_interval` updates and at the end; True stops the epoch.
        hurry: True calls `on_window` right after this update; every rank must say the same.
        limit: updates at most, where the epoch is cut short.

    Returns:
        Whether the epoch was finished.
    """
    to_training(state)

    def look() -> bool:
        window = _window(state, steps, samples, start, data_seconds)
        with state.watch.pause():
            return on_window(window)

    steps = samples = 0
    data_seconds, start = 0.0, time.perf_counter()
    for group, waited in islice(_groups(iter(loader), state.accum_steps, state.watch), limit):
        train_step(state, task, group, metrics)
        state.watch.end()
        steps += 1
        samples += sum(len(batch.mask) for batch in group)
        data_seconds += waited
        on_step()
        if steps == log_interval or hurry():
            if look():
                return False
            steps = samples = 0
            data_seconds, start = 0.0, time.perf_counter()
    return not (steps and look())


def _groups(batches: Iterator[Batch], size: int, watch: Stopwatch) -> Iterator[tuple[list[Batch], float]]:
    """Batches by `size`, an incomplete last group left out, and the seconds waited for each group."""
    while True:
        watch.ask()
        start = time.perf_counter()
        group = list(islice(batches, size))
        if len(group) < size:
            return
        waited = time.perf_counter() - start
        watch.begin()
        yield group, waited


def _window(state: TrainState, steps: int, samples: int, start: float, data_seconds: float) -> Window:
    state.guard.wait()  # so that the time is that of the work
    seconds = time.perf_counter() - start
    return Window(steps, samples, seconds, data_seconds, state.watch.read(steps))


def evaluate_batch(state: TrainState, task: Task, batch: Batch, metrics: Metrics) -> object:
    """Adds a batch to the metrics of a validation, and gives the outputs."""
    with state.autocast():
        outputs = mean_over_views(state.eval_model, batch.images, state.tta)
        loss = task.loss(outputs, batch, train=False)
    metrics.update(loss, outputs, batch)
    return outputs


@torch.no_grad()
def evaluate(
    state: TrainState, task: Task, loader: Loader, look: Callable[[Batch, object], None] | None = None
) -> dict[str, float]:
    """The task's metrics over every good sample of `loader` once, all ranks together; "samples" is their
    number, "bad" that of the others. `look` is shown each batch with the outputs.

    Uses the moving average of the weights where there is one, and the mean over the views of each image that
    the state asks for. All ranks call it.
    """
    fixed = state.frozen.buffers() if state.frozen is not None else []
    average_buffers(state.network, fixed)
    metrics = task.metrics(state.device, train=False)
    state.eval_model.eval()
    with state.ema.in_place() if state.ema is not None else nullcontext():
        if state.ema is not None:
            average_buffers(state.network, fixed)
        for batch in loader:
            outputs = evaluate_batch(state, task, batch, metrics)
            if look is not None:
                look(batch, outputs)
    result = metrics.compute()
    samples = int(result.pop("samples"))
    (bad,) = sum_over_ranks([loader.skipped], state.device)
    assert samples + bad == loader.num_samples, f"validated {samples} + {bad} of {loader.num_samples}"
    return {**result, "samples": samples, "bad": bad}
