"""The engine does what a hand-written loop does, without one wait for the device more than it says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.config import OptimizerSettings
from fastcnn.data.batch import Batch
from fastcnn.data.targets import IGNORE
from fastcnn.engine.epoch import Callbacks, train_epoch
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.state import Normalized, TrainState, stop_if_not_finite
from fastcnn.engine.step import train_step
from fastcnn.errors import TrainingError
from fastcnn.models import Outputs, build
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection.anchor_loss import anchor_loss
from fastcnn.tasks.detection.average_precision import mean_average_precision
from fastcnn.tasks.detection.grid_loss import grid_loss
from fastcnn.tasks.detection.task import Detection
from networks import each
from small_tasks import ARCHS, OPTIONS, task_for
from training import (
    CPU,
    MEAN,
    STD,
    TASK,
    batches,
    loader_of,
    losses,
    state_of,
    step_twice_without_waiting,
)


def plain_loss(outputs: Any, batch: Batch) -> Tensor:
    """The mean over all samples, none of which is masked."""
    if batch.targets.ndim == 1:
        return F.cross_entropy(outputs, batch.targets)
    if batch.targets.dtype == torch.uint8:
        return F.cross_entropy(outputs, batch.targets.long(), ignore_index=IGNORE)
    if hasattr(outputs, "cells"):
        return anchor_loss(outputs, batch.targets, batch.mask)
    return grid_loss(outputs, batch.targets, batch.mask, 10)


@pytest.mark.parametrize("arch", each([*ARCHS, "resnet20"], ARCHS))
def test_losses_are_those_of_a_hand_written_loop(arch):
    data = batches(2, arch=arch) * 3
    lr = {"lenet5": 0.2, "yolov1/lenet5": 0.001}.get(arch, 0.02)
    state = state_of(arch, lr)
    torch.manual_seed(0)
    network = build(arch, num_classes=10, **OPTIONS.get(arch, {}))
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 1e-3}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    expected = []
    for batch in data:
        mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        loss = plain_loss(network((batch.images / 255 - mean) / std), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses(state, data, task=task_for(arch)) == pytest.approx(expected, rel=1e-3)
    assert expected[0] != pytest.approx(expected[-1], rel=1e-2)


def set_batch_norm_to_evaluation(state: TrainState) -> None:
    for module in state.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@pytest.mark.parametrize("arch", each([*ARCHS, "resnet20"], ARCHS))
def test_accumulated_batches_equal_one_large_batch(arch):
    """Where each has as many samples, and these as many pixels, or predictions that train."""
    small, task = batches(12, size=4, arch=arch), task_for(arch)
    large = [
        Batch(*(torch.cat(parts) for parts in list(zip(*small[i : i + 3]))[:3])) for i in range(0, 12, 3)
    ]
    one, three = state_of(arch, lr=0.01), state_of(arch, lr=0.01)
    for state in (one, three):  # in training mode each batch has its own statistics
        set_batch_norm_to_evaluation(state)
    expected = losses(one, large, task=task)
    assert losses(three, small, accumulate=3, task=task) == pytest.approx(expected, rel=1e-4)
    for a, b in zip(one.network.parameters(), three.network.parameters()):
        assert (a - b).norm() <= 1e-2 * a.norm()
    assert one.step == three.step == 4


def test_normalization_is_the_usual_one_and_keeps_the_memory_format():
    (batch,) = batches(1)
    seen: list[Tensor] = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    Normalized(Look(), MEAN, STD)(batch.images)
    Normalized(Look(), MEAN, STD, channels_last=False)(batch.images)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    for x in seen:
        torch.testing.assert_close(x, (batch.images / 255 - mean) / std)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[1].is_contiguous()


def test_the_schedule_sets_the_learning_rate_of_each_step():
    state = state_of()
    state.schedule = Schedule(peak=0.1, steps_per_epoch=4, epochs=1, warmup_epochs=1.0, kind="constant")
    rates = []
    for batch in batches(4):
        train_step(state, TASK, [batch], TASK.metrics(CPU))
        rates.append(state.optimizer.param_groups[0]["lr"].item())
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1])


def test_gradients_are_clipped_to_the_norm():
    before = [p.detach().clone() for p in state_of().network.parameters()]
    state = state_of(lr=1.0, clip_grad=1e-3)
    for group in state.optimizer.param_groups:
        group["weight_decay"] = 0.0
    losses(state, batches(1))
    pairs = zip(before, state.network.parameters())
    moved = math.sqrt(sum(float((a - b.detach()).square().sum()) for a, b in pairs))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_gradients_are_clipped_by_value():
    def moves(**settings: Any) -> Tensor:
        state = state_of(lr=1.0, **settings)
        for group in state.optimizer.param_groups:
            group["weight_decay"] = 0.0
        before = torch.cat([p.detach().flatten() for p in state.network.parameters()])
        losses(state, batches(1))
        return before - torch.cat([p.detach().flatten() for p in state.network.parameters()])

    gradient = moves()
    assert gradient.abs().max() > 1e-2
    clipped = moves(clip_grad=1e-2, clip_mode="value")
    torch.testing.assert_close(clipped, gradient.clamp(-1e-2, 1e-2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_after_a_nan_loss_nothing_is_updated_and_the_step_is_named(arch, dtype, monkeypatch, wording):
    state, task = state_of(arch, lr=0.001), task_for(arch)
    factors, loss = iter([1.0, 1.0, float("nan"), 1.0]), task.loss
    monkeypatch.setattr(task, "loss", lambda *given, **told: loss(*given, **told) * next(factors))
    state.options = dataclasses.replace(state.options, amp_dtype=dtype)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    data = batches(4, size=1, arch=arch)  # in fp16 the CPU convolves slowly
    for batch in data[:2]:
        train_step(state, task, [batch], task.metrics(CPU))
    stop_if_not_finite(state)
    good = [p.detach().clone() for p in state.network.parameters()]
    for batch in data[2:]:
        train_step(state, task, [batch], task.metrics(CPU))
    assert all(torch.equal(a, b) for a, b in zip(good, state.network.parameters()))
    with pytest.raises(TrainingError, match=r"step 2, epoch 1.*--lr") as caught:
        stop_if_not_finite(state)
    wording(caught.value)


@pytest.mark.parametrize("mode", ["norm", "value"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_noticed_when_clipping(bad, mode):
    state = state_of(clip_grad=1.0, clip_mode=mode)
    weight = next(state.network.parameters())
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), bad))
    good = weight.detach().clone()
    losses(state, batches(1))
    assert torch.equal(weight, good)
    with pytest.raises(TrainingError, match="step 0"):
        stop_if_not_finite(state)


@pytest.mark.parametrize("opt", ["sgd", "nesterov", "adamw", "rmsproptf", "muon"])
def test_a_skipped_first_update_leaves_a_clean_start(opt):
    def steps(found_inf: list[float]) -> list[Tensor]:
        torch.manual_seed(0)
        network = nn.Linear(300, 300)
        optimizer = build_optimizer(network, OptimizerSettings(opt=opt, weight_decay=0.0), lr=0.1)
        for flag in found_inf:
            network(torch.ones(1, 300)).sum().backward()
            optimizer.found_inf = torch.tensor(flag)  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in network.parameters()]

    torch.full((300, 300), 3e38)  # what uninitialized memory may hold
    for skipped, clean in zip(steps([1.0, 0.0, 0.0]), steps([0.0, 0.0])):
        assert torch.equal(skipped, clean)


def test_weights_that_are_not_finite_are_noticed_before_a_save(wording):
    state = state_of()
    weight = next(state.network.parameters())
    weight.register_hook(lambda gradient: gradient * float("nan"))  # under a finite loss
    losses(state, batches(1))
    with pytest.raises(TrainingError) as caught:
        stop_if_not_finite(state)
    wording(caught.value)


@pytest.mark.parametrize("mode", ["norm", "value"])
def test_an_overflow_in_fp16_is_skipped_and_lowers_the_scale_however_gradients_are_clipped(mode):
    state = state_of(clip_grad=1.0, clip_mode=mode)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weight = next(state.network.parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))
    good = weight.detach().clone()
    losses(state, batches(1))
    assert torch.equal(weight, good)
    assert state.scaler.get_scale() == 512.0
    stop_if_not_finite(state)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_in_fp16_updates_with_the_scale_taken_out(arch):
    plain, scaled = state_of(arch, lr=0.01), state_of(arch, lr=0.01)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    data, task = batches(3, arch=arch), task_for(arch)
    assert losses(scaled, data, task=task) == pytest.approx(losses(plain, data, task=task), rel=1e-5)


def test_an_epoch_is_cut_into_windows_and_stops_when_asked():
    state, seen = state_of(), []

    def on_log(window: Any) -> bool:
        seen.append((window.steps, window.samples))
        return len(seen) == 3

    def run(interval: int, accumulate: int = 1) -> bool:
        state.options = dataclasses.replace(state.options, accum_steps=accumulate)
        callbacks = Callbacks(on_log=on_log)
        loader, metrics = loader_of(batches(7)), TASK.metrics(CPU)
        return train_epoch(state, TASK, loader, metrics, log_interval=interval, callbacks=callbacks)

    assert run(5)
    assert seen == [(5, 40), (2, 16)]
    seen.clear()
    assert not run(2)
    assert seen == [(2, 16)] * 3
    seen.clear()
    assert run(10, accumulate=3)  # the seventh batch is left out
    assert seen == [(2, 48)]


def percents(outputs: Any, targets: Tensor) -> dict[str, float]:
    """Metrics of samples that are all real."""
    if targets.ndim == 1:
        hits = outputs.topk(5).indices == targets[:, None]
        return {"acc1": 100 * float(hits[:, 0].float().mean()), "acc5": 100 * float(hits.sum()) / len(hits)}
    if targets.dtype == torch.uint8:
        return {"pixel_acc": 100 * float((outputs.argmax(1) == targets)[targets != IGNORE].float().mean())}
    truths = [rows[rows[:, 0] >= 0].numpy() for rows in targets]
    of_all, at_half = mean_average_precision(Detection(10).predict(outputs), truths)
    return {"map": of_all, "map50": at_half}


@pytest.mark.parametrize("arch", ARCHS)
def test_validation_counts_real_samples_only_and_once(arch, monkeypatch):
    monkeypatch.setattr("fastcnn.tasks.detection.task.MIN_SCORE", -1.0)  # a fresh detector is sure of nothing
    state, task = state_of(arch), task_for(arch)
    data = batches(2, arch=arch)
    data[1] = data[1]._replace(mask=torch.arange(8) < 3)
    got = evaluate(state, task, loader_of(data))
    real = Batch(*(torch.cat([a, b[:3]]) for a, b in zip(data[0][:3], data[1][:3])))
    with torch.no_grad():
        outputs = state.eval_model(real.images)
    assert got["samples"] == 11
    assert got["loss"] == pytest.approx(plain_loss(outputs, real).item(), rel=1e-5)
    expected = percents(outputs, real.targets)
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    assert max(expected.values()) > 0


def test_a_wrong_count_of_validated_samples_is_an_error():
    with pytest.raises(AssertionError, match="validated 16 [+] 0 of 17"):
        evaluate(state_of(), TASK, loader_of(batches(2), num_samples=17))


@pytest.mark.parametrize("arch", ARCHS)
def test_validation_uses_the_moving_average_and_puts_the_weights_back(arch):
    state, task = state_of(arch, lr=0.001, ema_decay=0.9), task_for(arch)
    losses(state, batches(5, arch=arch), task=task)
    live = [p.detach().clone() for p in state.network.parameters()]
    data = loader_of(batches(2, seed=1, arch=arch))
    averaged = evaluate(state, task, data)
    assert all(torch.equal(a, b) for a, b in zip(live, state.network.parameters()))
    assert state.ema is not None
    with state.ema.swapped_in():
        state_ema, state.ema = state.ema, None
        assert evaluate(state, task, data) == averaged
    assert evaluate(state, task, data)["loss"] != averaged["loss"]
    state.ema = state_ema


def test_label_smoothing_is_for_training_only():
    (batch,) = batches(1)
    logits = torch.randn(8, 10)
    task = Classification(10, label_smoothing=0.1)
    smooth = F.cross_entropy(logits, batch.targets, label_smoothing=0.1)
    assert task.loss(logits, batch, train=True).item() == pytest.approx(smooth.item())
    assert task.loss(logits, batch, train=False).item() == pytest.approx(
        F.cross_entropy(logits, batch.targets).item()
    )


def test_auxiliary_classifiers_count_three_tenths():
    (batch,) = batches(1)
    logits, aux = torch.randn(8, 10), torch.randn(8, 10)
    loss = TASK.loss(Outputs(logits, (aux,)), batch, train=True)
    expected = F.cross_entropy(logits, batch.targets) + 0.3 * F.cross_entropy(aux, batch.targets)
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_and_the_metrics_of_training_ask_nothing_of_the_device(arch, monkeypatch):
    step_twice_without_waiting(state_of(arch, lr=0.001, clip_grad=1.0, ema_decay=0.9), monkeypatch, arch)


def test_clipping_by_value_and_rmsprop_ask_nothing_of_the_device(monkeypatch):
    state = state_of(clip_grad=1.0, clip_mode="value")
    state.optimizer = build_optimizer(
        state.network, OptimizerSettings(opt="rmsproptf", weight_decay=1e-3), lr=0.05
    )
    step_twice_without_waiting(state, monkeypatch)


def test_the_moving_average_is_updated_every_so_many_steps():
    state = state_of(ema_decay=0.9, ema_steps=2)
    losses(state, batches(5))
    assert state.ema is not None
    assert state.ema.updates == 2


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet20", "unet/lenet5", "yolo/lenet5"])
def test_compiled_steps_agree_with_eager_ones_and_recompile_nothing(arch):
    from torch._dynamo.utils import counters

    task = task_for(arch)
    eager, compiled = state_of(arch, lr=0.02), state_of(arch, lr=0.02, compile=True)
    data = batches(4, arch=arch)
    counters.clear()
    assert losses(compiled, data[:1], task=task) == pytest.approx(
        losses(eager, data[:1], task=task), rel=1e-4
    )
    loader = loader_of(data[:2])
    assert evaluate(compiled, task, loader)["loss"] == pytest.approx(
        evaluate(eager, task, loader)["loss"], rel=1e-3
    )
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2  # one for training, one for validation
    for module in (compiled.train_model, eager.train_model):
        module.train()
    assert losses(compiled, data[1:], task=task) == pytest.approx(
        losses(eager, data[1:], task=task), rel=1e-3
    )
    evaluate(compiled, task, loader)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
