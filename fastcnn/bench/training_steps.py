"""Training steps with one switch more or less, from eager PyTorch as it comes to all that makes it fast.

`fastcnn.bench.ablation` compares them; what wins becomes a default of training. A step here is forward,
loss, backward and update on one batch that is already on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn import models
from fastcnn.config import DataSettings, LossSettings, OptimizerSettings, task_of
from fastcnn.data.batch import Batch, ShardedSampler
from fastcnn.data.loaders.synthetic import SyntheticLoader
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.open import open_data
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine.cuda_graph import WARMUP_STEPS, CudaRecorder, Recorder
from fastcnn.engine.state import Normalized, StepOptions, TrainState, build_state
from fastcnn.engine.step import train_step
from fastcnn.models.base import logits_of
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime import machine
from fastcnn.tasks.base import Task
from fastcnn.tasks.build import build_task
from fastcnn_kernels import DepthwiseConv2d, LocalResponseNorm, accelerate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
CLASSES = 1000


@dataclass(frozen=True)
class Optimizations:
    """What a step does beyond eager PyTorch."""

    cudnn_benchmark: bool = False
    """cuDNN times its algorithms for each shape."""
    channels_last: bool = False
    bf16: bool = False
    """Autocast."""
    fused: bool = False
    """SGD in one kernel."""
    compile: Literal["off", "model", "step"] = "off"
    """"step": forward, backward and update in one graph."""
    max_autotune: bool = False
    """Inductor times templates for matrix products."""
    cuda_graph: bool = False
    """The whole step is recorded once and replayed."""
    kernels: Literal["off", "ours", "accelerate"] = "off"
    """"ours": as fastcnn's networks have them; "accelerate": where a trial finds them faster."""
    pointwise_as_product: bool = False
    """1x1 convolutions as matrix products, into which Inductor can fuse what comes before."""
    four_channels: bool = False
    """Images with a fourth channel of zeros, for aligned loads."""
    bf16_weights: bool = False
    """Weights in bf16 beside their fp32 masters, so that no step casts them."""
    keep_memory: bool = False
    """glibc keeps freed memory (CPU)."""


@dataclass(frozen=True)
class Workload:
    """What is trained on what."""

    arch: str
    img_size: int
    batch_size: int
    device: str

    @property
    def num_classes(self) -> int:
        return CLASSES if self._annotated is None else len(self._annotated.class_names)

    @cached_property
    def _annotated(self) -> Source | None:
        """Where the task's masks or boxes come from."""
        task = task_of(self.arch)
        if task == "classification":
            return None
        return open_data(DataSettings(data="synthetic"), task=task, seed=0)

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        network = models.build(self.arch, num_classes=self.num_classes, in_chans=3)
        return network.to(self.device).train()

    def task(self) -> Task:
        return build_task(self.arch, LossSettings(), self.num_classes)

    def batch(self) -> Batch:
        """The same random images and targets in every process."""
        if self._annotated is not None:
            split = self._annotated.train
            sampler = ShardedSampler(
                count=len(split), batch_size=self.batch_size, rank=0, world_size=1, train=True
            )
            return SyntheticLoader(
                split, Transform(size=self.img_size), sampler, torch.device(self.device)
            ).batch
        generator = torch.Generator().manual_seed(0)
        n, size = self.batch_size, self.img_size
        pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)
        targets = torch.randint(0, CLASSES, (n,), generator=generator)
        real = torch.ones(n, dtype=torch.bool)
        return Batch(*(t.to(self.device) for t in (pixels.permute(0, 3, 1, 2), targets, real)))


def build_step(workload: Workload, optimizations: Optimizations) -> Callable[[], Tensor]:
    """A step that returns its loss, as a tensor on the device."""
    torch.backends.cudnn.benchmark = optimizations.cudnn_benchmark
    network, batch = workload.network(), workload.batch()
    channels_last = optimizations.channels_last
    normalize = Normalized(nn.Identity(), MEAN, STD, channels_last=channels_last).to(workload.device)
    images = cast(Tensor, normalize(batch.images))
    if optimizations.kernels != "ours":
        without_kernels(network)
    if optimizations.pointwise_as_product:
        pointwise_as_product(network)
    if optimizations.four_channels:
        images = four_channels(network, images)
    if optimizations.channels_last:
        network = network.to(memory_format=torch.channels_last)
    device = torch.device(workload.device)

    def autocast() -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=optimizations.bf16)

    if optimizations.kernels == "accelerate":
        with autocast():
            accelerate(network, images)
    masters = Masters(network) if optimizations.bf16_weights else None
    parameters = masters.all if masters is not None else list(network.parameters())
    optimizer = torch.optim.SGD(
        parameters,
        lr=torch.tensor(LR, device=device) if optimizations.fused else LR,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        fused=True if optimizations.fused and optimizations.compile != "step" else None,
    )
    trained = [p for p in network.parameters() if p.requires_grad]
    criterion = _criterion(workload, batch)

    def forward(images: Tensor) -> Tensor:
        with autocast():
            return criterion(network(images))

    def update() -> None:
        if masters is not None:
            masters.take_gradients()
        optimizer.step()
        if masters is not None:
            masters.give_weights()

    def whole(images: Tensor) -> Tensor:
        loss = forward(images)
        for p, gradient in zip(trained, torch.autograd.grad(loss, trained)):
            p.grad = gradient
        update()
        for p in trained:
            p.grad = None
        return loss.detach()

    options: dict[str, Any] | None = (
        {"max_autotune": True, "prologue_fusion": True} if optimizations.max_autotune else None
    )
    if optimizations.compile == "step":
        torch._dynamo.config.trace_autograd_ops = True
        step = torch.compile(whole, dynamic=False, options=options)
    else:
        compiled = optimizations.compile == "model"
        run = torch.compile(forward, dynamic=False, options=options) if compiled else forward

        def step(images: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = run(images)
            loss.backward()
            update()
            return loss.detach()

    if optimizations.cuda_graph:
        trained_state = [*parameters, *network.parameters(), *network.buffers()]
        return recorded(lambda: step(images), optimizer, trained_state, CudaRecorder(device))
    return lambda: step(images)


def _criterion(workload: Workload, batch: Batch) -> Callable[[Any], Tensor]:
    """Of a network's outputs: what PyTorch's user writes to classify, the task's own loss for all else."""
    if task_of(workload.arch) == "classification":
        return lambda outputs: F.cross_entropy(logits_of(outputs), batch.targets)
    task = workload.task()
    return lambda outputs: task.loss(outputs, batch, train=True)


def build_own_state(workload: Workload, options: StepOptions) -> TrainState:
    """Return the workload's network as fastcnn trains it."""
    network = workload.network()
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        network, OptimizerSettings(weight_decay=WEIGHT_DECAY, momentum=MOMENTUM), lr=LR
    )
    schedule = Schedule(peak=LR, steps_per_epoch=1000, epochs=1, kind="constant")
    state = build_state(network, optimizer, schedule, options, mean=MEAN, std=STD)
    state.train_model.train()
    return state


def build_own_step(
    workload: Workload, dtype: str, *, channels_last: bool, compile: bool, cuda_graph: bool = False
) -> Callable[[], Tensor]:
    """fastcnn's step, as it trains: from uint8 images, with its metrics and its guard."""
    machine.prepare(torch.device(workload.device), torch.get_num_threads(), deterministic=False)
    options = StepOptions(
        amp_dtype=machine.DTYPES[dtype], channels_last=channels_last, compile=compile, cuda_graph=cuda_graph
    )
    state = build_own_state(workload, options)
    batch, task = workload.batch(), workload.task()
    metrics = task.metrics(state.device)

    def step() -> Tensor:
        metrics.reset()
        train_step(state, task, [batch], metrics)
        return metrics.state()[1] / workload.batch_size  # of the losses of the batch

    return step


def has_kernels(workload: Workload) -> bool:
    """Whether the network is built with layers of `fastcnn_kernels`."""
    modules = replace(workload, device="meta").network().modules()
    return any(type(module) in (DepthwiseConv2d, LocalResponseNorm) for module in modules)


def has_slow_layers(workload: Workload) -> bool:
    """Whether there is a layer that `accelerate` may swap."""
    modules = replace(workload, device="meta").network().modules()
    return any(
        isinstance(module, nn.LocalResponseNorm)
        or (isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels)
        for module in modules
    )


def without_kernels(network: nn.Module) -> None:
    """Turns the layers that fastcnn's networks build as its own into PyTorch's."""
    for module in network.modules():
        if type(module) is DepthwiseConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
        elif type(module) is LocalResponseNorm:
            module.__class__ = nn.LocalResponseNorm  # type: ignore[assignment]


class PointwiseProduct(nn.Conv2d):
    """A 1x1 convolution [N, C, H, W] as a product of matrices over the channels of channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        pixels = x[:, :, ::rows, ::columns].permute(0, 2, 3, 1)
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def pointwise_as_product(network: nn.Module) -> None:
    for module in network.modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.groups == 1:
            assert module.padding in (0, (0, 0))
            module.__class__ = PointwiseProduct


def four_channels(network: nn.Module, images: Tensor) -> Tensor:
    """Gives the first convolution a fourth input channel of zeros, and the images too."""
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    missing = 4 - first.in_channels
    if missing <= 0 or first.groups != 1:
        raise ValueError(f"the first convolution has {first.in_channels} input channels")
    first.weight = nn.Parameter(F.pad(first.weight.detach(), (0, 0, 0, 0, 0, missing)))
    first.in_channels = 4
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
    padded = F.pad(images, (0, 0, 0, 0, 0, missing))
    return padded.contiguous(memory_format=layout or torch.contiguous_format)


class Masters:
    """fp32 copies of the weights of convolutions and linear layers, which become bf16."""

    def __init__(self, network: nn.Module) -> None:
        layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        self.weights: list[Tensor] = [layer.weight for layer in layers]
        self.masters: list[Tensor] = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
        for weight in self.weights:
            weight.data = weight.data.to(torch.bfloat16)
        changed = {id(weight) for weight in self.weights}
        self.all = [*self.masters, *(p for p in network.parameters() if id(p) not in changed)]

    def take_gradients(self) -> None:
        for weight, master in zip(self.weights, self.masters):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None  # the optimizer does not know it

    @torch.no_grad()
    def give_weights(self) -> None:
        torch._foreach_copy_(self.weights, self.masters)


def recorded(
    step: Callable[[], Tensor], optimizer: torch.optim.Optimizer, state: Sequence[Tensor], recorder: Recorder
) -> Callable[[], Tensor]:
    """The step as a CUDA graph: its kernels are launched by one call of the host.

    Args:
        state: what the step changes besides the optimizer's momenta; it is put back after the steps before
            the recording.
    """
    loss = torch.empty(())

    def work() -> None:
        nonlocal loss
        loss = step()

    before = [tensor.detach().clone() for tensor in state]
    for _ in range(WARMUP_STEPS):
        recorder.prepare(work)
    optimizer.zero_grad()  # so that gradients live in the graph's memory
    replay = recorder.record(work)
    with torch.no_grad():
        for tensor, value in zip(state, before):
            tensor.copy_(value)
        for momenta in optimizer.state.values():
            momenta["momentum_buffer"].zero_()

    def repeat() -> Tensor:
        replay()
        return loss

    return repeat
