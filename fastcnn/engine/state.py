"""What training changes, and how it is built around a network: normalization, compilation, DDP."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fastcnn.config.settings import ClipMode, Views
from fastcnn.data.transforms.mixing import Mixing, mixed
from fastcnn.engine.cuda_graph import CudaRecorder, RecordedSteps
from fastcnn.engine.nonfinite import FiniteGuard
from fastcnn.errors import TrainingError
from fastcnn.optim.build import add_momentum_buffers
from fastcnn.optim.ema import EMA
from fastcnn.optim.schedules import Schedule, learning_rate
from fastcnn.profiling.step_timer import HostClock, StepTimer, step_timer_for
from fastcnn.runtime.distributed import is_distributed
from fastcnn.transfer.freeze import Frozen


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
    timer: StepTimer = field(default_factory=lambda: StepTimer(HostClock()))
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
    timer = step_timer_for(device)
    if is_distributed():
        train_model = _data_parallel(eval_model, device, bucket_cap_mb)
        timer.follow_gradients(network)
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
        timer,
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
    state.timer.reset()
    if isinstance(state.train_model, DistributedDataParallel):  # knows only what trained when it was built
        state.train_model = state.eval_model  # lets go of the old one, and of its hooks, before the new one
        state.train_model = _data_parallel(state.eval_model, state.device, state.bucket_cap_mb)
        state.timer.follow_gradients(state.network)


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
