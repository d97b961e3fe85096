"""Rehearsals leave no trace; `--lr find` and `--time-budget`, which live on them."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcnn.config.settings import DataSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.synthetic import SyntheticLoader
from fastcnn.data.sources.open import open_data
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine.evaluate import evaluate
from fastcnn.engine.state import TrainState
from fastcnn.engine.step import train_step
from fastcnn.errors import UserError
from fastcnn.optim.schedules import Schedule
from fastcnn.setup.dry_run import preserve_state, time_updates, time_validation, updates
from fastcnn.setup.lr_finder import DIVERGED, Trial, range_test, steepest
from small_tasks import task_for
from training import batches, loader_of, state_of

ARCH = "resnet20"


def snapshot(state: TrainState) -> list[torch.Tensor]:
    of_optimizer = [v for s in state.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    averages = list(state.ema.average.values()) if state.ema is not None else []
    found = [*state.network.state_dict().values(), *of_optimizer, *averages, state.guard.found_inf]
    return copy.deepcopy([*found, torch.get_rng_state()])


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_what_is_trained_in_a_rehearsal_leaves_no_trace(opt):
    data, task = batches(6, arch=ARCH), task_for(ARCH)
    rehearsed, plain = (state_of(ARCH, opt=opt, ema_decay=0.9) for _ in range(2))
    for state in (rehearsed, plain):
        train_step(state, task, data[:1], task.metrics(state.device))
    before, loader = snapshot(rehearsed), loader_of(data)
    with preserve_state(rehearsed, loader):
        for group in list(zip(range(4), updates(loader, 1))):
            train_step(rehearsed, task, group[1], task.metrics(rehearsed.device))
        rehearsed.guard.check(torch.tensor(math.nan))
        torch.rand(3)
        assert not all(torch.equal(a, b) for a, b in zip(snapshot(rehearsed), before))
    after = snapshot(rehearsed)
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert (rehearsed.step, rehearsed.epoch) == (1, 0)
    torch.manual_seed(3)
    train_step(rehearsed, task, data[2:3], task.metrics(rehearsed.device))
    torch.manual_seed(3)
    train_step(plain, task, data[2:3], task.metrics(plain.device))
    assert all(torch.equal(a, b) for a, b in zip(snapshot(rehearsed), snapshot(plain)))


def test_a_rehearsal_that_fails_leaves_no_trace_either():
    state, loader = state_of(ARCH), loader_of(batches(2, arch=ARCH))
    before = snapshot(state)
    context = preserve_state(state, loader)
    context.__enter__()
    train_step(state, task_for(ARCH), batches(1, arch=ARCH), task_for(ARCH).metrics(state.device))
    assert not context.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # it goes on to whoever called
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(state)))


def test_updates_and_validations_are_timed():
    state, loader, task = state_of(ARCH), loader_of(batches(4, arch=ARCH)), task_for(ARCH)
    with preserve_state(state, loader):
        seconds = time_updates(state, task, loader, at_most=0.01)
        assert 0 < seconds < 5
        assert 0 < time_validation(state, task, loader, at_most=0.01) < 20


def test_a_validation_of_one_batch_is_timed_too(monkeypatch):
    from fastcnn.setup import dry_run as module

    clock = 0.0

    def evaluate_batch(*_: object) -> None:
        nonlocal clock
        clock += 2.0

    monkeypatch.setattr(module, "evaluate_batch", evaluate_batch)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock)
    state, task = state_of(ARCH), task_for(ARCH)
    for count in (1, 2, 5):
        loader = loader_of(batches(count, arch=ARCH))
        assert time_validation(state, task, loader, at_most=5.0) == 2.0 * count


def test_a_look_at_synthetic_images_leaves_all_of_them_to_the_validation():
    source = open_data(DataSettings(data="synthetic"), task="classification", seed=0)
    sampler = ShardedSampler(count=64, batch_size=16, rank=0, world_size=1, train=False)
    loader = SyntheticLoader(source.val, Transform(size=32), sampler, torch.device("cpu"))
    assert len(list(zip(range(2), loader))) == 2
    assert len(list(loader)) == len(list(loader)) == 4


class Quadratic(nn.Module):
    """Its loss is |w|^2 whatever the images: SGD diverges from the rate 1 on."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((1, 4), 3.0))


class Task:
    """Takes the loss from the weights."""

    def __init__(self, network: Quadratic) -> None:
        self.network, self.real = network, task_for("lenet5")
        self.last = 0.0

    def loss(self, outputs: object, batch: object, train: bool) -> torch.Tensor:
        return self.network.w.square().sum()

    def metrics(self, device: torch.device, train: bool = True) -> Task:
        return self

    def update(self, loss: torch.Tensor, outputs: object, batch: object) -> None:
        self.last = float(loss.detach())

    def compute(self) -> dict[str, float]:
        return {"loss": self.last}


def test_the_range_test_finds_where_a_quadratic_falls_and_stops_where_it_explodes():
    state = state_of("lenet5", lr=0.1)
    network = Quadratic()
    state.network, state.train_model = network, network
    network.forward = lambda images, mix=None: images
    state.optimizer = torch.optim.SGD(
        [{"params": network.parameters(), "lr": torch.tensor(0.1), "lr_scale": 1.0}], fused=True
    )
    trials = range_test(state, Task(network), loader_of(batches(50, arch="lenet5")), 1e-5, 10.0)  # type: ignore[arg-type]
    rates = [trial.rate for trial in trials]
    assert rates == sorted(rates)
    assert trials[0].rate == pytest.approx(1e-5)
    assert 1e-3 < steepest(trials) < 1.0


def test_a_loss_that_does_not_fall_is_one_clear_line(wording):
    flat = [Trial(10 ** (i / 20 - 5), 2.3) for i in range(100)]
    with pytest.raises(UserError, match="^--lr find:") as caught:
        steepest(flat)
    wording(caught.value)
    assert DIVERGED > 1


def test_the_steepest_fall_is_found():
    losses = [2.3 - 2 / (1 + math.exp(-(i - 60) / 4)) for i in range(100)]
    trials = [Trial(10 ** (i / 20 - 5), loss) for i, loss in enumerate(losses)]
    assert steepest(trials) == pytest.approx(10 ** (60 / 20 - 5), rel=0.2)


@pytest.mark.slow
def test_a_run_finds_its_learning_rate_and_says_how(train, demo, monkeypatch, capsys):
    flags = (
        "--arch",
        "lenet5",
        "--data",
        demo,
        "--data-backend",
        "torch",
        "--batch-size",
        "8",
        "--epochs",
        "1",
    )
    more = "--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off", "--output-dir", "run"
    assert train(*flags, *more, "--lr", "find", "--opt", "adamw") == 0
    out = capsys.readouterr().out
    found = re.search(r"--lr +([\d.e-]+) +range test of \d+ updates: run/lr_find.png", out)
    assert found is not None
    assert Path("run/lr_find.png").stat().st_size > 5000
    content = torch.load("run/last.pt")
    assert content["config"]["lr"] == pytest.approx(float(found[1]))
    assert content["step"] == 20
    monkeypatch.setattr(
        "fastcnn.setup.lr_finder.range_test", lambda *_: []
    )  # in which nothing would be found
    assert train(*flags, *more, "--lr", "find", "--opt", "adamw", "--epochs", "2", "--resume") == 0
    assert torch.load("run/last.pt")["config"]["lr"] == content["config"]["lr"]  # it is not sought again


@pytest.mark.slow
def test_a_run_fits_its_time_budget_and_keeps_its_length_when_it_is_resumed(train, demo, capsys):
    flags = "--arch", "lenet5", "--data", demo, "--data-backend", "torch", "--batch-size", "8"
    more = "--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off", "--output-dir", "run"
    assert train(*flags, *more, "--time-budget", "3s") == 0
    out = capsys.readouterr().out
    assert re.search(r"--epochs +[\d.]+ +what 3s allow: \d+ ms an update, [\d.]+ s a validation", out)
    content = torch.load("run/last.pt")
    epochs = content["config"]["epochs"]
    assert content["step"] == round(epochs * 20)
    assert content["config"]["time_budget"] is None
    assert train(*flags, *more, "--time-budget", "3s", "--resume") == 0
    out = capsys.readouterr().out
    assert f"Run already complete ({epochs:g} epochs); raise --epochs to continue" in out
    assert f"--time-budget 3s: the run keeps its {epochs:.4g} epochs; use --epochs for others" in out


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "budget"), [("lenet5", "1000s"), ("resnet20", "3060s")])
def test_the_average_at_the_end_is_in_the_time_budget(train, demo, monkeypatch, capsys, arch, budget):
    monkeypatch.setattr("fastcnn.setup.time_budget.time_updates", lambda *_: 100.0)
    monkeypatch.setattr("fastcnn.setup.time_budget.time_validation", lambda *_: 200.0)
    flags = "--arch", arch, "--data", demo, "--data-backend", "torch", "--batch-size", "8"
    more = "--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off", "--output-dir", "run"
    assert train(*flags, *more, "--time-budget", budget, "--average-last", "1") == 0
    average = 200 + (20 * 100 if arch == "resnet20" else 0)  # batch norm's statistics, of 20 batches
    assert f"200.0 s a validation, {average}.0 s the average at the end, " in capsys.readouterr().out
    assert torch.load("run/average.pt")["step"] == 5


def test_a_time_that_is_too_short_for_one_update_is_one_clear_line(train, demo, monkeypatch, capsys):
    monkeypatch.setattr("fastcnn.setup.time_budget.time_updates", lambda *_: 3.0)
    monkeypatch.setattr("fastcnn.setup.time_budget.time_validation", lambda *_: 4.0)
    assert train("--arch", "lenet5", "--data", demo, "--data-backend", "torch", "--time-budget", "3s") == 2
    error = capsys.readouterr().err
    assert re.search(
        r"--time-budget 3s: one update and its validation would end after \d+ s; raise it", error
    )


def test_a_warm_up_that_is_longer_than_the_time_allows_is_one_clear_line(train, demo, monkeypatch, capsys):
    monkeypatch.setattr("fastcnn.setup.time_budget.time_updates", lambda *_: 30.0)
    monkeypatch.setattr("fastcnn.setup.time_budget.time_validation", lambda *_: 1.0)
    flags = "--arch", "lenet5", "--data", demo, "--data-backend", "torch", "--warmup-epochs", "50"
    assert train(*flags, "--time-budget", "10m") == 2
    assert re.search(
        r"--warmup-epochs 50: longer than the [\d.]+ epochs that --time-budget 10m allows; lower it",
        capsys.readouterr().err,
    )


def test_evaluation_after_a_rehearsal_is_what_it_was_before():
    state, data, task = state_of(ARCH, ema_decay=0.9), batches(3, arch=ARCH), task_for(ARCH)
    loader = loader_of(data)
    before = evaluate(state, task, loader)
    with preserve_state(state, loader):
        time_updates(state, task, loader, at_most=0.01)
    assert evaluate(state, task, loader) == before
    assert isinstance(state.schedule, Schedule)
    assert dataclasses.replace(state.schedule) == state.schedule
