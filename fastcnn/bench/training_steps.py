"""Training steps with any set of optimizations, from plain eager PyTorch to fastcnn's own step.

`fastcnn.bench.ablation` compares them; winners become defaults of training. A step is forward, loss, backward
and update on one batch that is already on the device.

Four optimizations are not in `fastcnn train`, since only measurements on a GPU can decide on them: four input
channels, bf16 weights, 1x1 convolutions as products, and forward, backward and update in one compiled graph.
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


@dataclass(frozen=True, kw_only=True)
class Optimizations:
    """Differences of a step from eager PyTorch."""

    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms for each shape."""
    channels_last: bool = False
    bf16: bool = False
    """Autocast."""
    fused: bool = False
    """Update by SGD in one kernel."""
    compile: Literal["off", "model", "step"] = "off"
    """"step": forward, backward and update in one graph."""
    max_autotune: bool = False
    """Let Inductor time templates for matrix products."""
    cuda_graph: bool = False
    """Record the whole step once and replay it."""
    kernels: Literal["off", "ours", "accelerate"] = "off"
    """"ours": in every layer of fastcnn's networks that has one; "accelerate": where a trial finds them
    faster."""
    pointwise_as_product: bool = False
    """1x1 convolutions as matrix products, into which Inductor can fuse the preceding operations."""
    four_channels: bool = False
    """Images with a fourth channel of zeros, for aligned loads."""
    bf16_weights: bool = False
    """Weights in bf16 beside fp32 masters, which saves the cast in each step."""
    keep_memory: bool = False
    """Let glibc keep freed memory (CPU)."""


@dataclass(frozen=True)
class Workload:
    """Network, image size, batch size and device of a step."""

    arch: str
    img_size: int
    batch_size: int
    device: str

    @property
    def num_classes(self) -> int:
        return CLASSES if self._annotated is None else len(self._annotated.class_names)

    @cached_property
    def _annotated(self) -> Source | None:
        """Synthetic source of the task's masks or boxes; None for classification."""
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
        """Random images and targets, the same in every process."""
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
    """Build a step that returns its loss, as a tensor on the device."""
    torch.backends.cudnn.benchmark = optimizations.cudnn_benchmark
    device = torch.device(workload.device)

    def autocast() -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=optimizations.bf16)

    # Network, input and optimizer.
    network, batch = workload.network(), workload.batch()
    normalize = Normalized(nn.Identity(), MEAN, STD, channels_last=optimizations.channels_last).to(
        workload.device
    )
    images = cast(Tensor, normalize(batch.images))
    network, images = _optimize_layers(network, images, optimizations, autocast)
    masters = Masters(network) if optimizations.bf16_weights else None
    parameters = masters.all if masters is not None else list(network.parameters())
    optimizer = _build_sgd(parameters, optimizations, device)
    criterion = _build_criterion(workload, batch)

    def forward(images: Tensor) -> Tensor:
        with autocast():
            return criterion(network(images))

    def update() -> None:
        if masters is not None:
            masters.take_gradients()
        optimizer.step()
        if masters is not None:
            masters.give_weights()

    # Forward, backward and update, compiled as a whole or in part.
    options: dict[str, Any] | None = (
        {"max_autotune": True, "prologue_fusion": True} if optimizations.max_autotune else None
    )
    if optimizations.compile == "step":
        torch._dynamo.config.trace_autograd_ops = True
        step = torch.compile(_functional_step(network, forward, update), dynamic=False, options=options)
    else:
        compiled = optimizations.compile == "model"
        run = torch.compile(forward, dynamic=False, options=options) if compiled else forward
        step = _usual_step(run, optimizer, update)

    if optimizations.cuda_graph:
        trained_state = [*parameters, *network.parameters(), *network.buffers()]
        return recorded(lambda: step(images), optimizer, trained_state, CudaRecorder(device))
    return lambda: step(images)


def _optimize_layers(
    network: nn.Module, images: Tensor, optimizations: Optimizations, autocast: Callable[[], Any]
) -> tuple[nn.Module, Tensor]:
    """Apply the optimizations of layers and memory format; return the network and the images."""
    if optimizations.kernels != "ours":
        without_kernels(network)
    if optimizations.pointwise_as_product:
        pointwise_as_product(network)
    if optimizations.four_channels:
        images = four_channels(network, images)
    if optimizations.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if optimizations.kernels == "accelerate":
        with autocast():
            accelerate(network, images)
    return network, images


def _build_sgd(
    parameters: list[Tensor] | list[nn.Parameter], optimizations: Optimizations, device: torch.device
) -> torch.optim.SGD:
    return torch.optim.SGD(
        parameters,
        lr=torch.tensor(LR, device=device) if optimizations.fused else LR,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        fused=True if optimizations.fused and optimizations.compile != "step" else None,
    )


def _functional_step(
    network: nn.Module, forward: Callable[[Tensor], Tensor], update: Callable[[], None]
) -> Callable[[Tensor], Tensor]:
    """A step with gradients as values, so that torch.compile captures it in one graph."""
    trained = [p for p in network.parameters() if p.requires_grad]

    def step(images: Tensor) -> Tensor:
        loss = forward(images)
        for p, gradient in zip(trained, torch.autograd.grad(loss, trained)):
            p.grad = gradient
        update()
        for p in trained:
            p.grad = None
        return loss.detach()

    return step


def _usual_step(
    forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, update: Callable[[], None]
) -> Callable[[Tensor], Tensor]:
    def step(images: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = forward(images)
        loss.backward()
        update()
        return loss.detach()

    return step


def _build_criterion(workload: Workload, batch: Batch) -> Callable[[Any], Tensor]:
    """The loss of a network's outputs: plain cross-entropy to classify, else the task's own loss."""
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
    """fastcnn's step as in training: from uint8 images, with metrics and non-finite checks."""
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
        return metrics.state()[1] / workload.batch_size  # mean loss of the batch

    return step


def has_kernels(workload: Workload) -> bool:
    """True if the network is built with layers of `fastcnn_kernels`."""
    modules = replace(workload, device="meta").network().modules()
    return any(type(module) in (DepthwiseConv2d, LocalResponseNorm) for module in modules)


def has_slow_layers(workload: Workload) -> bool:
    """True if `accelerate` may replace a layer of the network."""
    modules = replace(workload, device="meta").network().modules()
    return any(
        isinstance(module, nn.LocalResponseNorm)
        or (isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels)
        for module in modules
    )


def without_kernels(network: nn.Module) -> None:
    """Replace the layers of `fastcnn_kernels` by PyTorch's, in place."""
    for module in network.modules():
        if type(module) is DepthwiseConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
        elif type(module) is LocalResponseNorm:
            module.__class__ = nn.LocalResponseNorm  # type: ignore[assignment]


class PointwiseProduct(nn.Conv2d):
    """A 1x1 convolution of [N, C, H, W] as a matrix product over channels, for channels-last memory."""

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
    """Add a fourth channel of zeros to the images and to the first convolution's input."""
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
    """fp32 master weights of convolutions and linear layers, whose own weights become bf16."""

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
            weight.grad = None  # the optimizer has the masters alone

    @torch.no_grad()
    def give_weights(self) -> None:
        torch._foreach_copy_(self.weights, self.masters)


def recorded(
    step: Callable[[], Tensor], optimizer: torch.optim.Optimizer, state: Sequence[Tensor], recorder: Recorder
) -> Callable[[], Tensor]:
    """Record the step as a CUDA graph, so that one call of the host launches all its kernels.

    Args:
        state: tensors that the step changes, without the optimizer's momenta; restored after the warm-up
            steps that precede the recording.
    """
    loss = torch.empty(())

    def work() -> None:
        nonlocal loss
        loss = step()

    before = [tensor.detach().clone() for tensor in state]
    for _ in range(WARMUP_STEPS):
        recorder.prepare(work)
    optimizer.zero_grad()  # gradients must live in the graph's memory
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
