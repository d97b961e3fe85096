"""What only a CUDA device can show: `python -m pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastcnn.config import DataSettings, LoaderSettings, OptimizerSettings, OptName
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.transforms.mixing import Mixing
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine.cuda_graph import WARMUP_STEPS
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.state import StepOptions, TrainState, build_state, stop_if_not_finite
from fastcnn.engine.step import train_step
from fastcnn.errors import TrainingError
from fastcnn.models import build
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.runtime.distributed import Ranks
from fastcnn.tasks.classification import Classification

pytestmark = pytest.mark.gpu
TASK = Classification(10)


def batch_on(device: torch.device, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 10, (32,), generator=generator)
    mask = torch.ones(32, dtype=torch.bool)
    return Batch(images.to(device).permute(0, 3, 1, 2), targets.to(device), mask.to(device))


def state_on(
    device: torch.device, dtype: torch.dtype, compile: bool = False, opt: OptName = "sgd", **settings: Any
) -> TrainState:
    torch.manual_seed(0)
    network = build("resnet18", num_classes=10).to(memory_format=torch.channels_last).to(device)
    schedule = Schedule(peak=0.05, steps_per_epoch=10, epochs=1, kind="constant")
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=1e-4), lr=0.05)
    options = StepOptions(amp_dtype=dtype, compile=compile, **settings)
    return build_state(network, optimizer, schedule, options, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("dtype", "cuda_graph"),
    [
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, True),
        (torch.bfloat16, True),
    ],
)
def test_a_step_never_waits_for_the_device(dtype, compile, cuda_graph):
    device = torch.device("cuda", 0)
    state = state_on(device, dtype, compile, ema_decay=0.99, clip_grad=1.0, cuda_graph=cuda_graph)
    metrics, batch = TASK.metrics(device), batch_on(device)
    for _ in range(3):  # warm-up: compilation, cuDNN's choice, lazy initialization
        train_step(state, TASK, [batch], metrics)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(state, TASK, [batch], metrics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stop_if_not_finite(state)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_fp32_losses_are_the_cpus(compile):
    torch.backends.cudnn.allow_tf32 = False
    losses = []
    for device, compiled in ((torch.device("cpu"), False), (torch.device("cuda", 0), compile)):
        state = state_on(device, torch.float32, compiled)
        found = []
        for seed in range(3):
            metrics = TASK.metrics(device)
            train_step(state, TASK, [batch_on(device, seed)], metrics)
            found.append(metrics.compute()["loss"])
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("opt", ["sgd", "adamw", "rmsproptf", "muon"])
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_a_recorded_step_is_the_step(opt, compile):
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda", 0)
    mixing = Mixing(mixup=0.5, cutmix=1.0)
    found = []
    for cuda_graph in (False, True):
        settings: dict[str, Any] = {"opt": opt, "cuda_graph": cuda_graph, "mixing": mixing, "ema_decay": 0.9}
        state = state_on(device, torch.float32, compile, **settings)
        metrics, losses = TASK.metrics(device), []
        for step in range(WARMUP_STEPS + 4):
            metrics.reset()
            train_step(state, TASK, [batch_on(device, step)], metrics)
            losses.append(metrics.compute()["loss"])
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert len(set(found[1])) == WARMUP_STEPS + 4


@pytest.mark.parametrize("backend", ["torch", "cached"])
def test_the_command_trains_recorded_steps_while_threads_load(train, demo, backend):
    flags = ("--arch", "resnet20", "--data", demo, "--data-backend", backend, "--device", "cuda")
    progressive = ("--img-size", "32", "--progressive", "24", "32") if backend == "torch" else ()
    flags = (*flags, "--cuda-graph", "--batch-size", "8", "--output-dir", "run", *progressive)
    assert train(*flags, "--epochs", "2") == 0
    assert train(*flags, "--epochs", "3", "--resume") == 0
    content = torch.load("run/last.pt")
    assert content["epoch"] == 3
    assert content["config"]["cuda_graph"] is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns(dtype):
    device = torch.device("cuda", 0)
    state, batch = state_on(device, dtype), batch_on(device)
    losses = []
    for _ in range(20):
        metrics = TASK.metrics(device)
        train_step(state, TASK, [batch], metrics)
        losses.append(metrics.compute()["loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_after_a_nan_loss_nothing_is_updated():
    device = torch.device("cuda", 0)
    state, batch = state_on(device, torch.bfloat16), batch_on(device)
    train_step(state, TASK, [batch], TASK.metrics(device))
    good = [p.detach().clone() for p in state.network.parameters()]
    state.guard.check(torch.tensor(float("nan"), device=device))
    train_step(state, TASK, [batch], TASK.metrics(device))
    assert all(torch.equal(a, b) for a, b in zip(good, state.network.parameters()))
    with pytest.raises(TrainingError, match="step 1"):
        stop_if_not_finite(state)


@pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
def test_dalis_gpu_images_are_its_cpu_images(photos: Path):
    source = read_folder(photos, DataSettings(), 0)
    images = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        _, val = build_loaders(
            source,
            Transform(size=32),
            LoaderSettings(data_backend="dali", batch_size=4, workers=2),
            ranks=Ranks(),
            device=device,
            seed=0,
        )
        batches = list(val)
        assert all(batch.images.device.type == device.type for batch in batches)
        assert all(b.images.is_contiguous(memory_format=torch.channels_last) for b in batches)
        images.append(torch.cat([batch.images.cpu() for batch in batches])[:7].int())
    difference = (images[0] - images[1]).abs()  # nvJPEG rounds its own way
    assert difference.float().mean() < 1.5


@pytest.mark.parametrize(
    "backend",
    [pytest.param("dali", marks=pytest.mark.skipif(not has_dali(), reason="DALI is not installed")), "torch"],
)
def test_the_command_trains_on_the_gpu_and_resumes(train, demo, backend):
    flags = (
        "--arch",
        "resnet20",
        "--data",
        demo,
        "--data-backend",
        backend,
        "--device",
        "cuda",
        "--lr",
        "0.1",
    )
    assert train(*flags, "--epochs", "2", "--batch-size", "32", "--output-dir", "run") == 0
    assert train(*flags, "--epochs", "3", "--batch-size", "32", "--output-dir", "run", "--resume") == 0
    content = torch.load("run/last.pt")
    assert content["epoch"] == 3
    assert content["config"]["amp_dtype"] in ("bf16", "fp16")
    assert content["config"]["compile"] == "on"


def test_validation_on_the_gpu_is_validation_on_the_cpu(photos: Path):
    source = read_folder(photos, DataSettings(), 0)
    results = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        state = state_on(device, torch.float32)
        _, val = build_loaders(
            source,
            Transform(size=64),
            LoaderSettings(data_backend="torch", batch_size=4, workers=1),
            ranks=Ranks(),
            device=device,
            seed=0,
        )
        results.append(evaluate(state, TASK, val))
        val.close()
    assert results[0] == pytest.approx(results[1], rel=1e-3)
