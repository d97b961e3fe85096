"""A recorded step is the step: what the host decides anew each time reaches the recording."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fastcnn.config import OptimizerSettings, OptName
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.data.transforms.mixing import Mixing
from fastcnn.engine import checkpoint
from fastcnn.engine.cuda_graph import WARMUP_STEPS, RecordedSteps
from fastcnn.engine.state import StepOptions, TrainState, build_state, stop_if_not_finite, unfreeze
from fastcnn.engine.step import train_step
from fastcnn.errors import TrainingError, UserError
from fastcnn.models import build
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.setup.warmup import record_ahead
from fastcnn.tasks.classification import Classification
from fastcnn.transfer.freeze import Frozen, frozen_layers
from networks import each
from small_tasks import ARCHS, OPTIONS, small_batch, task_for
from tape import TapeRecorder

CPU = torch.device("cpu")
STEPS = WARMUP_STEPS + 4


class Small(nn.Module):
    """With what draws random numbers, and what counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def state_of(
    network: nn.Module | None = None, opt: OptName = "sgd", record: bool = True, **settings: Any
) -> tuple[TrainState, TapeRecorder]:
    torch.manual_seed(0)
    network = Small() if network is None else network
    optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=1e-3), lr=0.05)
    schedule = Schedule(peak=0.05, steps_per_epoch=10, epochs=1, kind="cosine", warmup_epochs=0.3)
    frozen, options = settings.pop("frozen", None), StepOptions(**settings)
    state = build_state(network, optimizer, schedule, options, mean=[0.5] * 3, std=[0.25] * 3, frozen=frozen)
    state.train_model.train()
    recorder = TapeRecorder()
    state.recorded = RecordedSteps(optimizer, recorder) if record else None
    torch.manual_seed(1)
    return state, recorder


def batch(size: int = 8, seed: int = 0, count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 10, (count,), generator=generator)
    return Batch(images.permute(0, 3, 1, 2), targets, torch.ones(count, dtype=torch.bool))


def trained(state: TrainState, steps: int = STEPS, accumulate: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    """All that training changes, and its metrics."""
    task = Classification(10)
    metrics = task.metrics(CPU)
    for step in range(steps):
        train_step(state, task, [batch(seed=10 * step + i) for i in range(accumulate)], metrics)
    average = {} if state.ema is None else {f"ema.{k}": v for k, v in state.ema.average.items()}
    return {**state.network.state_dict(), **average}, metrics.state()


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("opt", ["sgd", "nesterov", "adamw", "rmsproptf", "muon"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_grad": 0.1, "ema_decay": 0.9, "ema_steps": 2},
        {"mixing": Mixing(mixup=0.5, cutmix=1.0, prob=0.7), "clip_grad": 0.01, "clip_mode": "value"},
        {"accum_steps": 2},
    ],
    ids=["plain", "clipped and averaged", "mixed", "accumulated"],
)
def test_a_recorded_step_does_what_the_step_does(opt, settings):
    results = []
    for record in (False, True):
        state, recorder = state_of(opt=opt, record=record, **settings)
        results.append(trained(state, accumulate=settings.get("accum_steps", 1)))
    assert (recorder.prepared, recorder.recorded, recorder.replayed) == (
        WARMUP_STEPS,
        1,
        STEPS - WARMUP_STEPS,
    )
    assert_same(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert state.step == STEPS


@pytest.mark.parametrize("arch", each(ARCHS, ARCHS[:3]))
def test_every_task_can_be_recorded(arch):
    results = []
    for record in (False, True):
        torch.manual_seed(0)
        state, _ = state_of(build(arch, num_classes=10, **OPTIONS.get(arch, {})), record=record)
        task = task_for(arch)
        metrics = task.metrics(CPU)
        generator = torch.Generator().manual_seed(0)
        for _ in range(WARMUP_STEPS + 2):
            train_step(state, task, [small_batch(arch, 32, generator)], metrics)
        results.append({**state.network.state_dict(), "metrics": metrics.state()})
    assert_same(*results)


def test_each_size_has_its_recording():
    results = []
    for record in (False, True):
        state, recorder = state_of(record=record)
        task = Classification(10)
        metrics = task.metrics(CPU)
        for step in range(2 * STEPS):
            train_step(state, task, [batch(8 + 8 * (step % 2), seed=step)], metrics)
        results.append({**state.network.state_dict(), "metrics": metrics.state()})
    assert recorder.recorded == 2
    assert_same(*results)


def test_other_metrics_have_their_own():
    state, recorder = state_of()
    _, first = trained(state)
    _, second = trained(state, WARMUP_STEPS + 1)
    assert recorder.recorded == 2
    assert first[0] == 6 * STEPS
    assert second[0] == 6 * (WARMUP_STEPS + 1)


class Listed:
    """Batches as a loader, whose place is how many it gave."""

    def __init__(self, data: list[Batch]) -> None:
        self.data, self.epoch, self.given = data, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        for item in self.data[self.given :]:
            self.given += 1
            yield item

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.given = epoch, 0 if epoch != self.epoch else self.given

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, place: dict[str, int]) -> None:
        self.epoch, self.given = place["epoch"], place["given"]


@pytest.mark.parametrize("opt", ["sgd", "nesterov", "adamw", "rmsproptf", "muon"])
@pytest.mark.parametrize("given", each([0, 1, 7, 8], [1, 8]))
def test_a_step_that_is_recorded_ahead_leaves_no_trace(opt, given):
    data = [batch(seed=i) for i in range(8)]
    task, results = Classification(10), []
    for ahead in (False, True):
        mixing = Mixing(mixup=0.5, prob=0.7)
        state, recorder = state_of(opt=opt, record=ahead, mixing=mixing, ema_decay=0.9, accum_steps=2)
        metrics, loader = task.metrics(CPU), Listed(data)
        loader.given = given
        record_ahead(state, task, cast(Loader, loader), metrics)
        assert loader.state_dict() == {"epoch": 0, "given": given}
        assert torch.equal(metrics.state(), torch.zeros(4).double())
        for step in range(4):
            train_step(state, task, data[2 * step : 2 * step + 2], metrics)
        assert state.ema is not None
        average = {f"ema.{name}": value for name, value in state.ema.average.items()}
        results.append({**state.network.state_dict(), **average, "metrics": metrics.state()})
    assert (recorder.prepared, recorder.recorded, recorder.replayed) == (WARMUP_STEPS, 1, 1 + 4)
    assert_same(*results)
    stop_if_not_finite(state)


def test_what_was_frozen_trains_after_unfreezing():
    results = []
    for record in (False, True):
        torch.manual_seed(0)
        network = build("lenet5", num_classes=10, in_chans=3)
        frozen = Frozen(network, frozen_layers(network, "backbone", None))
        state, recorder = state_of(network, record=record, frozen=frozen)
        task = Classification(10)
        metrics = task.metrics(CPU)
        for step in range(2 * STEPS):
            if step == STEPS:
                unfreeze(state)
            train_step(state, task, [batch(32, seed=step)], metrics)
        results.append(state.network.state_dict())
    assert recorder.recorded == 2
    assert_same(*results)


@pytest.mark.parametrize("opt", ["sgd", "adamw", "muon"])
def test_a_loaded_state_is_trained_on(opt):
    state, _ = state_of(opt=opt)
    trained(state)
    content = checkpoint.pack_state(state)
    task = Classification(10)
    results = []
    for record in (False, True):
        state, recorder = state_of(opt=opt, record=record)
        metrics = task.metrics(CPU)
        for step in range(2 * STEPS):
            if step == STEPS:
                checkpoint.unpack_weights(state, content)
                checkpoint.unpack_progress(state, copy.deepcopy(content))  # the optimizer keeps its tensors
            train_step(state, task, [batch(seed=step)], metrics)
        results.append(state.network.state_dict())
    assert recorder.recorded == 2
    assert_same(*results)


def test_a_loss_that_is_not_finite_ends_the_updates():
    state, _ = state_of()
    task = Classification(10)
    metrics = task.metrics(CPU)
    for step in range(STEPS):
        train_step(state, task, [batch(seed=step)], metrics)
    good = [p.detach().clone() for p in state.network.parameters()]
    state.guard.check(torch.tensor(float("nan")))
    train_step(state, task, [batch()], metrics)
    assert all(torch.equal(a, b) for a, b in zip(good, state.network.parameters()))
    with pytest.raises(TrainingError, match=f"step {STEPS}"):
        stop_if_not_finite(state)


def test_a_step_that_waits_for_the_device_is_refused():
    class Waits(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if x.mean().item() > 1e9 else 1.0)

    state, _ = state_of(Waits())
    with pytest.raises(UserError, match=r"--cuda-graph: .* \(operation not permitted .*\); omit it"):
        trained(state)
    assert [g.get("capturable") for g in state.optimizer.param_groups] == [None] * 2


def test_of_two_errors_in_a_recording_the_first_is_told():
    class Fails(TapeRecorder):
        def record(self, work: Any) -> Any:
            try:
                raise RuntimeError("the convolution waits\nfor the device")
            finally:
                raise RuntimeError("a previous error")

    state, _ = state_of()
    state.recorded = RecordedSteps(state.optimizer, Fails())
    with pytest.raises(UserError, match=r"\(the convolution waits\)"):
        trained(state)


def test_adam_is_told_that_it_is_recorded_and_then_not_any_more():
    seen: list[bool] = []
    state, recorder = state_of(opt="adamw")

    def work(batches: Any) -> None:
        seen.extend(group["capturable"] for group in state.optimizer.param_groups)

    assert state.recorded is not None
    for _ in range(WARMUP_STEPS + 1):
        state.recorded.run(work, [batch()])
    assert seen == [False, False] * WARMUP_STEPS + [True, True]
    assert recorder.recorded == 1
    assert [group["capturable"] for group in state.optimizer.param_groups] == [False, False]


def test_the_tape_notes_numbers_of_the_host_as_they_are():
    """Else the tests above would say nothing."""
    value, rate = torch.zeros(()), 1.0

    def work() -> None:
        value.add_(torch.ones(()) * rate)

    replay = TapeRecorder().record(work)
    assert value == 0
    rate = 10.0
    replay()
    assert value == 1
