"""State of a training, built around a network: normalization, compilation, DDP."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.torch_version import TorchVersion

from fastcnn.config.settings import ClipMode, Views
from fastcnn.data.transforms.mixing import Mixing, mixed
from fastcnn.engine.cuda_graph import CudaRecorder, RecordedSteps
from fastcnn.engine.nonfinite import FiniteGuard
from fastcnn.errors import TrainingError
from fastcnn.optim.build import add_momentum_buffers
from fastcnn.optim.ema import EMA
from fastcnn.optim.schedules import Schedule
from fastcnn.profiling.clock import HostClock
from fastcnn.profiling.step_timer import StepTimer, step_timer_for
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import data_parallel, is_distributed
from fastcnn.transfer.freeze import Frozen


class Normalized(nn.Module):
    """A network for uint8 images: normalization is the first layer of the compiled graph.

    Args:
        network: network for normalized images.
        mean, std: per channel, of values from 0 to 1.
        channels_last: keep the images in channels-last memory; else make them contiguous.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], *, channels_last: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) * 255 * scale
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, mix: Tensor | None = None) -> object:
        """Return the network's outputs for uint8 images [N, C, H, W], mixed by the parameters `mix`."""
        pixels = images.contiguous(memory_format=self.memory_format) * self.scale + self.shift
        if mix is not None:
            pixels = mixed(pixels, mix)
        return self.network(pixels)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of a training step and of its evaluation."""

    amp_dtype: torch.dtype = torch.float32
    """Data type of convolutions and matrix products."""
    channels_last: bool = True
    """Memory format of the images; else contiguous."""
    compile: bool = False
    """torch.compile of network and normalization."""
    cuda_graph: bool = False
    """CUDA graph of the step; for one process on a GPU, without a gradient scaler."""
    accum_steps: int = 1
    """Batches per update."""
    clip_grad: float | None = None
    """Max norm for gradient clipping; with `clip_mode` "value" the max absolute entry."""
    clip_mode: ClipMode = "norm"
    ema_decay: float | None = None
    """Decay of the moving average of the weights per update; None: no average."""
    ema_steps: int = 1
    """Steps between updates of the average."""
    mixing: Mixing | None = None
    """Mixing of the images of training batches."""
    bucket_cap_mb: int | None = None
    """Bucket size of DDP in MiB; None: torch's default."""
    seed: int = 0
    """Seed of the mixing."""
    tta: Views = "none"
    """Views of an image, averaged for its prediction in validation."""


@dataclass(kw_only=True)
class TrainState:
    """Everything that training changes, and the options of a step."""

    network: nn.Module
    """The plain network; its state-dict keys are the checkpoint's."""
    train_model: nn.Module
    """`Normalized`, compiled and wrapped in DDP as the options and the ranks require."""
    eval_model: nn.Module
    """The same without DDP."""
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    guard: FiniteGuard
    device: torch.device
    options: StepOptions
    ema: EMA | None = None
    frozen: Frozen | None = None
    """Frozen layers."""
    timer: StepTimer = field(default_factory=lambda: StepTimer(HostClock()))
    """Time per activity of `train_epoch`."""
    recorded: RecordedSteps | None = None
    """CUDA graphs of the step, if any."""
    step: int = 0
    """Number of updates."""
    epoch: float = 0
    """Epochs finished, validation included: an integer, or the length of a run with a partial last epoch."""

    @property
    def done(self) -> bool:
        """True if all epochs are finished."""
        s = self.schedule
        return self.epoch >= s.epochs or self.epoch * s.steps_per_epoch >= s.total_steps

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass in `options.amp_dtype`."""
        return machine.autocast(self.device, self.options.amp_dtype)


def build_state(
    network: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    options: StepOptions | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    frozen: Frozen | None = None,
) -> TrainState:
    """Wrap a network that is already on its device: normalization, then compilation, then DDP.

    Args:
        mean, std: per channel, of values from 0 to 1.
        frozen: layers of the network that do not train yet.
    """
    options = options or StepOptions()
    device = next(network.parameters()).device
    eval_model: nn.Module = Normalized(network, mean, std, channels_last=options.channels_last).to(device)
    if options.compile:
        torch._dynamo.reset()  # its limit on recompilations includes the networks of earlier runs
        compiler = compiler_options(device, channels_last=options.channels_last)
        eval_model = cast(nn.Module, torch.compile(eval_model, dynamic=False, options=compiler))
    train_model = eval_model
    timer = step_timer_for(device)
    if is_distributed():
        train_model = data_parallel(eval_model, device, options.bucket_cap_mb)
        timer.follow_gradients(network)
    decay = options.ema_decay
    return TrainState(
        network=network,
        train_model=train_model,
        eval_model=eval_model,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(device.type, enabled=options.amp_dtype == torch.float16),
        guard=FiniteGuard(device),
        device=device,
        options=options,
        ema=EMA(network, decay, options.ema_steps) if decay is not None else None,
        frozen=frozen,
        timer=timer,
        recorded=RecordedSteps(optimizer, CudaRecorder(device)) if options.cuda_graph else None,
    )


def compiler_options(device: torch.device, *, channels_last: bool) -> dict[str, Any] | None:
    """Return Inductor's options for a network in channels-last or NCHW memory; None for its defaults.

    Inductor converts convolutions in NCHW memory to channels-last. From torch 2.13 on it overlooks those of a
    backward graph (pytorch issue 189239), unless the conversion is forced.
    """
    if channels_last or device.type != "cuda" or TorchVersion(torch.__version__) < "2.13":
        return None
    from torch._inductor import config

    option = "force_layout_optimization"
    return {option: True} if hasattr(config, option) else None


def unfreeze(state: TrainState) -> None:
    """Unfreeze all layers. All ranks call it, with the same buffers."""
    if state.frozen is None:
        return
    state.frozen.release()
    state.frozen = None
    add_momentum_buffers(state.optimizer)
    if state.recorded is not None:
        state.recorded.reset()
    state.timer.reset()
    if isinstance(
        state.train_model, DistributedDataParallel
    ):  # reduces only parameters trainable at its construction
        state.train_model = state.eval_model  # free the old one and its hooks first
        state.train_model = data_parallel(state.eval_model, state.device, state.options.bucket_cap_mb)
        state.timer.follow_gradients(state.network)


def to_training(state: TrainState) -> None:
    """Set training mode for all but the frozen layers."""
    state.train_model.train()
    if state.frozen is not None:
        state.frozen.hold()


@torch.no_grad()
def stop_if_not_finite(state: TrainState) -> None:
    """Raise TrainingError if a loss or a weight became infinite or NaN; waits for the device."""
    bad = state.guard.count()
    step = state.step - bad
    if bad:
        what = f"the loss became infinite or NaN at step {step}"
    elif not torch.stack(torch._foreach_norm(list(state.network.parameters()))).isfinite().all():
        what = f"weights became infinite or NaN before step {step}"
    else:
        return
    epoch = step // state.schedule.steps_per_epoch + 1
    precision = " or --amp-dtype fp32" if state.options.amp_dtype != torch.float32 else ""
    raise TrainingError(
        f"{what}, epoch {epoch}, and nothing was saved since: try an --lr below {state.schedule.peak:.3g}, a "
        f"longer --warmup-epochs, --clip-grad 1{precision}; look for damaged images"
    )
