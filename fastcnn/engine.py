"""The training loop: works through a task object and knows no network, no data and no kernel by name.

Losses, counts and the flag for a non-finite loss stay on the device; the host waits for it only at the
log interval, before a save and at the end of an epoch.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fastcnn.data.batch import Batch, Loader
from fastcnn.data.mixing import Mixing, mix_of, mixed, plain
from fastcnn.data.to_device import to_device
from fastcnn.distributed import average_buffers, is_distributed, sum_over_ranks
from fastcnn.errors import TrainingError
from fastcnn.graphs import CudaRecorder, RecordedSteps
from fastcnn.metrics import Metrics
from fastcnn.optim import EMA, add_momentum_buffers, set_learning_rate
from fastcnn.schedules import Schedule, learning_rate
from fastcnn.stopwatch import HostClock, Stopwatch, stopwatch_for
from fastcnn.tasks import Task
from fastcnn.transfer import Frozen
from fastcnn.tta import Views, mean_over_views
from fastcnn.verdict import Timing

ClipMode = Literal["norm", "value"]
"""What of the gradient is clipped: its norm, or each of its entries."""


class Normalized(nn.Module):
    """A network that takes uint8 images: normalization is the first layer of the compiled graph.

    Args:
        network: takes normalized images.
        mean, std: of each channel, of values from 0 to 1.
        channels_last: hand the images over in channels-last memory, as they come; else contiguous.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], channels_last: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) * 255 * scale
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, mix: Tensor | None = None) -> object:
        """uint8 [N, C, H, W] to the network's outputs; with `mix` of mixed images."""
        pixels = images.contiguous(memory_format=self.memory_format) * self.scale + self.shift
        if mix is not None:
            pixels = mixed(pixels, mix)
        return self.network(pixels)


class FiniteGuard:
    """Remembers on the device whether a loss was infinite or NaN; from then on no update is made.

    `found_inf` is what fused optimizers read to skip a step, as under `torch.amp.GradScaler`.
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self.bad_steps = torch.zeros((), device=device)
        self._pending: dist.Work | None = None

    def check(self, value: Tensor) -> None:
        self.found_inf.copy_(torch.maximum(self.found_inf, (~torch.isfinite(value.detach())).float()))

    def share(self) -> None:
        """Starts telling all ranks: one bad loss makes every rank's averaged gradient bad."""
        if is_distributed():
            self._pending = dist.all_reduce(self.found_inf, dist.ReduceOp.MAX, async_op=True)

    def poison(self, loss: Tensor) -> Tensor:
        """The loss, or NaN from the first bad one on: with fp16 it is the scaler that skips updates."""
        return torch.where(self.found_inf > 0, torch.nan, 1.0) * loss

    def settle(self, norm: Tensor | None = None) -> None:
        """Ends the step's checks, with a norm of the whole gradient, as it was before clipping, if there is
        one: after this every rank's flag is in, as far as the device's order of work goes."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        if norm is not None:  # the same on all ranks
            self.check(norm)
        self.bad_steps += self.found_inf

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        self.found_inf.item()

    def count(self) -> int:
        """Steps since the first bad one, itself included; waits for the device."""
        return int(self.bad_steps.item())


@dataclass
class TrainState:
    """What training changes, and how a step is made."""

    network: nn.Module
    """The plain network; its state-dict keys are the checkpoint's."""
    train_model: nn.Module
    """`Normalized`, maybe compiled, maybe in DDP."""
    eval_model: nn.Module
    """The same without DDP."""
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    guard: FiniteGuard
    device: torch.device
    amp_dtype: torch.dtype
    ema: EMA | None = None
    accum_steps: int = 1
    clip_grad: float | None = None
    clip_mode: ClipMode = "norm"
    frozen: Frozen | None = None
    """What does not train."""
    bucket_cap_mb: int | None = None
    """MiB of gradients that DDP sends together; None: torch's own choice."""
    mixing: Mixing | None = None
    """How training batches are mixed."""
    seed: int = 0
    """Of what is drawn for that."""
    tta: Views = "none"
    """Of which views of an image validation takes the mean."""
    watch: Stopwatch = field(default_factory=lambda: Stopwatch(HostClock()))
    """Where the time of `train_epoch` goes."""
    recorded: RecordedSteps | None = None
    """What launches the device's work of a step by one call, if it is to."""
    step: int = 0
    """Updates made."""
    epoch: float = 0
    """Epochs finished, validation included: a whole number, or all of a run whose last one is a part."""

    @property
    def done(self) -> bool:
        """Whether all epochs are finished."""
        s = self.schedule
        return self.epoch >= s.epochs or self.epoch * s.steps_per_epoch >= s.total_steps

    def autocast(self) -> AbstractContextManager[object]:
        if self.amp_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)


def build_state(
    network: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    optimizer: Optimizer,
    schedule: Schedule,
    device: torch.device,
    amp_dtype: torch.dtype,
    channels_last: bool = True,
    compile: bool = False,
    ema_decay: float | None = None,
    accum_steps: int = 1,
    clip_grad: float | None = None,
    frozen: Frozen | None = None,
    bucket_cap_mb: int | None = None,
    mixing: Mixing | None = None,
    seed: int = 0,
    tta: Views = "none",
    clip_mode: ClipMode = "norm",
    ema_steps: int = 1,
    cuda_graph: bool = False,
) -> TrainState:
    """Wraps a network that is already on `device`: normalization, then compilation, then DDP.

    Args:
        accum_steps: batches of an update.
        clip_grad: largest norm of the gradient, or with `clip_mode` "value" its entries' largest size.
        ema_steps: updates from one of the moving average to the next.
        cuda_graph: record the step; for one process on a GPU, without a gradient scaler.
    """
    eval_model: nn.Module = Normalized(network, mean, std, channels_last).to(device)
    if compile:
        torch._dynamo.reset()  # its limit on recompilations counts the networks of earlier runs too
        eval_model = cast(nn.Module, torch.compile(eval_model, dynamic=False))
    train_model = eval_model
    watch = stopwatch_for(device)
    if is_distributed():
        train_model = _data_parallel(eval_model, device, bucket_cap_mb)
        watch.follow_gradients(network)
    return TrainState(
        network,
        train_model,
        eval_model,
        optimizer,
        schedule,
        torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16),
        FiniteGuard(device),
        device,
        amp_dtype,
        EMA(network, ema_decay, ema_steps) if ema_decay is not None else None,
        accum_steps,
        clip_grad,
        clip_mode,
        frozen,
        bucket_cap_mb,
        mixing,
        seed,
        tta,
        watch,
        RecordedSteps(optimizer, CudaRecorder(device)) if cuda_graph else None,
    )


def unfreeze(state: TrainState) -> None:
    """From here on all of the network trains. All ranks call it, with the same buffers."""
    if state.frozen is None:
        return
    state.frozen.release()
    state.frozen = None
    add_momentum_buffers(state.optimizer)
    if state.recorded is not None:
        state.recorded.forget()
    state.watch.forget()
    if isinstance(state.train_model, DistributedDataParallel):  # knows only what trained when it was built
        state.train_model = state.eval_model  # lets go of the old one, and of its hooks, before the new one
        state.train_model = _data_parallel(state.eval_model, state.device, state.bucket_cap_mb)
        state.watch.follow_gradients(state.network)


def _data_parallel(
    model: nn.Module, device: torch.device, bucket_cap_mb: int | None
) -> DistributedDataParallel:
    """DDP that leaves buffers alone in each step; they are averaged over ranks before each validation."""
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # torch 2.14
    settings: dict[str, Any] = {
        buffers: False,
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": bucket_cap_mb,
    }
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, **settings
    )


def to_training(state: TrainState) -> None:
    """Puts the network into training mode, but for what is frozen."""
    state.train_model.train()
    if state.frozen is not None:
        state.frozen.hold()


def train_step(state: TrainState, task: Task, batches: Sequence[Batch], metrics: Metrics) -> None:
    """One update from the mean gradient of `batches`, without waiting for the device."""
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
    if state.ema is not None:
        state.ema.update()
    state.step += 1


def _update(state: TrainState, task: Task, metrics: Metrics, batches: Sequence[Batch]) -> None:
    """What the device does in a step. It may be recorded: nothing here changes from step to step but what is
    in tensors."""
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


@torch.no_grad()
def stop_if_not_finite(state: TrainState) -> None:
    """Raises TrainingError if a loss or a weight became infinite or NaN; waits for the device."""
    bad = state.guard.count()
    step = state.step - bad
    if bad:
        what = f"the loss became infinite or NaN at step {step}"
    elif not torch.stack(torch._foreach_norm(list(state.network.parameters()))).isfinite().all():
        what = f"weights became infinite or NaN before step {step}"
    else:
        return
    epoch = step // state.schedule.steps_per_epoch + 1
    lr = learning_rate(step, state.schedule)
    precision = " or --amp-dtype fp32" if state.amp_dtype != torch.float32 else ""
    raise TrainingError(
        f"{what}, epoch {epoch}, and nothing was saved since: try a lower --lr (it was {lr:.3g}), a longer "
        f"--warmup-epochs, --clip-grad 1{precision}; look for damaged images"
    )


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
