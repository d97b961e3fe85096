"""How long a run is, what it averages, when it stops and what it returns; end to end on small files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcnn
from fastcnn.engine.logger import Logger
from fastcnn.optim.schedules import Schedule
from networks import each
from runs import interrupt_after, records

Train = Callable[..., int]
FLAGS = (
    *("--arch", "lenet5", "--amp-dtype", "fp32", "--channels-last", "on", "--compile", "off"),
    *("--batch-size", "16", "--workers", "1", "--data-backend", "torch", "--output-dir", "run"),
)
"""10 updates an epoch on the demo set of the tests."""


RUN = Path("run")


# Epochs that are not whole


def test_the_last_epoch_may_be_a_part_and_is_validated_and_saved(train: Train, demo, capsys):
    assert train(*FLAGS, "--data", demo, "--epochs", "1.5", "--log-interval", "5") == 0
    first, last = records(RUN, "epoch")
    assert [(r["step"], r["epoch"], r["train"]["samples"]) for r in (first, last)] == [
        (10, 1, 160),
        (15, 1.5, 80),
    ]
    assert last["val"]["samples"] == 50
    content = torch.load("run/last.pt")
    assert (content["step"], content["epoch"], content["config"]["epochs"]) == (15, 1.5, 1.5)
    out = capsys.readouterr().out
    assert "epoch 1/2  step 5/10  " in out
    assert "epoch 2/2  step 5/5  " in out
    assert "epoch 2/2  train loss" in out


def test_less_than_an_epoch_is_a_run(train: Train, demo):
    assert train(*FLAGS, "--data", demo, "--epochs", "0.26") == 0
    (only,) = records(RUN, "epoch")
    assert (only["step"], only["epoch"]) == (3, 0.26)


def test_less_than_an_update_is_refused(train: Train, demo, capsys, wording):
    assert train(*FLAGS, "--data", demo, "--epochs", "0.04") == 2
    error = capsys.readouterr().err
    assert "--epochs 0.04: " in error
    wording(error)


def test_a_part_too_small_for_an_update_adds_no_epoch(train: Train, demo):
    assert train(*FLAGS, "--data", demo, "--epochs", "1.04") == 0
    assert [record["step"] for record in records(RUN, "epoch")] == [10]


@pytest.mark.parametrize("accumulated", each([1, 3], [3]))
def test_a_run_killed_within_the_cut_epoch_ends_in_the_same_bits(train: Train, demo, accumulated):
    steps = 10 // accumulated
    flags = (*FLAGS, "--data", demo, "--epochs", "1.7", "--grad-accum-steps", accumulated, "--deterministic")
    assert train(*flags, "--output-dir", "whole") == 0
    interrupt_after(steps + 1, lambda: train(*flags, "--checkpoint-steps", steps + 1))
    assert torch.load("run/last.pt")["epoch"] == 1
    assert train(*flags, "--resume") == 0
    whole, parts = torch.load("whole/last.pt"), torch.load("run/last.pt")
    assert whole["step"] == parts["step"] == round(1.7 * steps)
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
    a, b = records(Path("whole"), "epoch"), records(RUN, "epoch")
    assert [(r["step"], r["train"], r["val"]) for r in a] == [(r["step"], r["train"], r["val"]) for r in b]


def test_a_cut_epoch_that_was_trained_and_not_validated_is_validated_when_resumed(train: Train, demo):
    flags = (*FLAGS, "--data", demo, "--epochs", "1.5")
    interrupt_after(15, lambda: train(*flags, "--checkpoint-steps", "15"))
    assert len(records(RUN, "epoch")) == 1
    assert train(*flags, "--resume") == 0
    assert [(r["step"], r["epoch"]) for r in records(RUN, "epoch")] == [(10, 1), (15, 1.5)]
    assert records(RUN, "epoch")[1]["train"]["samples"] == 80


@pytest.mark.parametrize(
    ("batch_size", "end"),
    [(8, (31, 1.55)), (32, (8, 1.55)), (100, (2, 2))],  # of 20, 5 and 1 an epoch
)
def test_a_cut_epoch_goes_on_with_another_batch_size(train: Train, demo, batch_size, end):
    flags = (*FLAGS, "--data", demo, "--epochs", "1.55", "--lr", "0.01", "--warmup-epochs", "0")
    interrupt_after(12, lambda: train(*flags, "--checkpoint-steps", "12"))
    assert train("--resume", "run/last.pt", "--batch-size", batch_size) == 0
    assert [(r["step"], r["epoch"]) for r in records(RUN, "epoch")] == [(10, 1), end]


@pytest.mark.slow
def test_a_finished_cut_run_has_nothing_left_and_goes_on_where_it_was_cut_when_given_more(
    train: Train, demo, capsys, wording
):
    flags = (*FLAGS, "--data", demo, "--lr", "0.01")
    assert train(*flags, "--epochs", "1.5") == 0
    capsys.readouterr()
    assert train(*flags, "--epochs", "1.5", "--resume") == 0
    wording.line(capsys.readouterr().out, "Run already complete")
    assert train(*flags, "--epochs", "3", "--resume") == 0
    epochs = records(RUN, "epoch")
    assert [(r["step"], r["epoch"]) for r in epochs] == [(10, 1), (15, 1.5), (20, 2), (30, 3)]
    assert [r["train"]["samples"] for r in epochs] == [160, 80, 160, 160]


@pytest.mark.parametrize(
    ("epochs", "steps", "ends"),
    [(9.5, 12, [(8, "9/10  step 12/12"), (9, "10/10  step 6/6")]), (1, 3, [(0, "1/1  step 3/3")])],
)
def test_the_report_counts_the_steps_of_a_cut_epoch(tmp_path, capsys, epochs, steps, ends):
    schedule = Schedule(peak=0.1, steps_per_epoch=steps, epochs=epochs)
    logger = Logger(tmp_path, schedule, enabled=True)
    figures = {"images_per_second": 1.0, "data_wait": 0.0, "main_metric": "acc1", "metrics": {}}
    for epoch, _ in ends:
        step = min((epoch + 1) * steps, schedule.total_steps)
        logger.log_steps(epoch, "", {**figures, "step": step, "progress": step / steps})
    out = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"epoch {end}") for line, (_, end) in zip(out, ends))


def test_compilation_does_not_count_for_the_time_that_is_left(tmp_path, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("fastcnn.engine.logger.time.perf_counter", lambda: now)
    logger = Logger(tmp_path, Schedule(peak=0.1, steps_per_epoch=10, epochs=10), enabled=True)
    for epoch, seconds in enumerate((60.0, 1.0, 1.0)):
        now += seconds
        for _ in range(10):
            logger.step()
        step = 10 * (epoch + 1)
        figures = {"images_per_second": 1.0, "data_wait": 0.0, "main_metric": "acc1", "metrics": {}}
        logger.log_steps(epoch, "", {**figures, "step": step, "progress": epoch + 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in lines] == ["9:00", "0:08", "0:07"]


# What is kept of a run


def test_the_result_has_the_best_epochs_weights_and_the_last_checkpoint_the_last_ones(
    demo, one_core, tmp_path
):
    settings = {"arch": "lenet5", "data": demo, "data_backend": "torch", "batch_size": 16, "lr": 0.2}
    more = {"amp_dtype": "fp32", "channels_last": "on", "compile": "off", "output_dir": str(tmp_path / "run")}
    result = fastcnn.fit(**settings, **more, epochs=4, sched="constant", warmup_epochs=0.0)
    best, last = (torch.load(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    weights = result.network.state_dict()
    assert all(torch.equal(value, best["weights"][name]) for name, value in weights.items())
    assert result.best["epoch"] == best["epoch"]
    assert result.val["loss"] == records(tmp_path / "run", "epoch")[-1]["val"]["loss"]
    assert last["epoch"] == 4
    assert 0 < result.seconds
    assert result.seconds == pytest.approx(
        sum(r["seconds"] for r in records(tmp_path / "run", "epoch")), rel=0.5
    )


def test_a_run_without_patience_stops_when_nothing_gets_better(train: Train, demo, capsys, wording):
    flags = (*FLAGS, "--data", demo, "--lr", "0", "--epochs", "9", "--patience", "2")
    assert train(*flags) == 0
    wording.line(capsys.readouterr().out, "stopping")
    assert len(records(RUN, "epoch")) == 3  # the first is the best
    content = torch.load("run/last.pt")
    assert (content["epoch"], content["since_best"]) == (3, 2)
    assert torch.load("run/best.pt")["epoch"] == 1


def test_a_resumed_run_knows_how_long_it_has_waited(train: Train, demo):
    flags = (*FLAGS, "--data", demo, "--lr", "0", "--sched", "constant")
    assert train(*flags, "--epochs", "2", "--patience", "3") == 0
    assert train(*flags, "--epochs", "9", "--patience", "3", "--resume") == 0
    assert len(records(RUN, "epoch")) == 4


@pytest.mark.parametrize("ema", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_last_epochs_are_averaged_validated_and_saved(train: Train, demo, monkeypatch, capsys, ema):
    from fastcnn.engine import swa

    seen: list[dict[str, torch.Tensor]] = []
    real = swa.Average.add

    def add(self: swa.Average, state: Any) -> None:
        seen.append({k: v.clone() for k, v in swa.pack_state(state)["weights"].items()})
        real(self, state)

    monkeypatch.setattr(swa.Average, "add", add)
    arch = "--arch", "small_network:small", "--lr", "0.05", "--epochs", "4", "--average-last", "2"
    flags = (*FLAGS, "--data", demo, *arch, *(["--model-ema"] if ema else []))
    assert train(*flags) == 0
    assert len(seen) == 2
    said = re.search(r"average of the last 2 epochs  (val loss \S+  acc1 \S+%)", capsys.readouterr().out)
    assert said is not None
    content = torch.load("run/average.pt")
    for name, value in fastcnn.load("run/average.pt", arch="small_network:small").named_parameters():
        torch.testing.assert_close(value, (seen[0][name] + seen[1][name]) / 2)
    assert (content["ema"] is not None) == ema
    assert all(torch.equal(content["model"][k], v) for k, v in content["weights"].items())
    statistics = "1.running_mean"  # of the averaged network, not averaged ones
    assert not torch.allclose(content["weights"][statistics], (seen[0][statistics] + seen[1][statistics]) / 2)
    assert torch.load("run/last.pt")["epoch"] == 4
    assert train(*flags, "--resume", "run/average.pt", "--test-only") == 0
    assert said[1] in capsys.readouterr().out


def test_an_average_of_the_first_epoch_has_its_statistics(train: Train, demo):
    arch = "--arch", "small_network:small", "--lr", "0.05", "--epochs", "1", "--average-last", "1"
    assert train(*FLAGS, "--data", demo, *arch) == 0
    weights = torch.load("run/average.pt")["weights"]
    assert weights["1.num_batches_tracked"] == 10
    assert weights["1.running_mean"].any()


@pytest.mark.slow
def test_a_run_that_goes_on_knows_that_its_average_was_the_best(train: Train, demo, monkeypatch, capsys):
    from fastcnn.engine import loop

    accuracies = iter([10.0, 20.0, 30.0, 25.0, 22.0])  # of 2 epochs, their average, and once more
    real = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *told: {**real(*told), "acc1": next(accuracies)})
    flags = (*FLAGS, "--data", demo, "--lr", "0.05", "--average-last", "2")
    assert train(*flags, "--epochs", "2") == 0
    assert train(*flags, "--epochs", "2", "--resume") == 0
    assert "best acc1 30.00%" in capsys.readouterr().out.splitlines()[-1]
    assert train(*flags, "--epochs", "3", "--resume") == 0
    assert torch.load("run/best.pt")["best"]["acc1"] == torch.load("run/last.pt")["best"]["acc1"] == 30
    assert next(accuracies, None) is None


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_average_makes_up_for_it(train: Train, demo, capsys):
    flags = (*FLAGS, "--data", demo, "--lr", "0.05", "--epochs", "2", "--average-last", "2")
    interrupt_after(20, lambda: train(*flags))
    assert not Path("run/average.pt").exists()
    for said in (True, False):
        capsys.readouterr()
        assert train(*flags, "--resume") == 0
        assert ("average of the last 2 epochs" in capsys.readouterr().out) == said
    assert torch.load("run/average.pt")["average"]["epochs"] == 2


@pytest.mark.slow
def test_averaging_goes_on_after_a_resume(train: Train, demo):
    arch = "--arch", "lenet5", "--lr", "0.05", "--epochs", "4", "--average-last", "3"
    flags = (*FLAGS, "--data", demo, *arch)
    assert train(*flags) == 0
    whole = torch.load("run/average.pt")["weights"]
    Path("run").rename("whole")
    interrupt_after(30, lambda: train(*flags))
    assert train(*flags, "--resume") == 0
    resumed = torch.load("run/average.pt")["weights"]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_a_run_that_is_given_more_epochs_averages_its_new_last_ones(train: Train, demo, capsys):
    flags = (*FLAGS, "--data", demo, "--arch", "lenet5", "--average-last", "2")
    assert train(*flags, "--epochs", "3") == 0
    capsys.readouterr()
    assert train(*flags, "--epochs", "3", "--resume") == 0
    assert "average of" not in capsys.readouterr().out  # nothing was trained
    assert train(*flags, "--epochs", "5", "--resume") == 0
    assert torch.load("run/average.pt")["average"]["epochs"] == 2
    assert "average of the last 2 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_an_epoch_that_was_cut_short_and_is_finished_later_is_averaged_once(train: Train, demo, capsys):
    flags = (*FLAGS, "--data", demo, "--lr", "0.01", "--sched", "constant", "--warmup-epochs", "0")
    assert train(*flags, "--average-last", "3", "--epochs", "1.5") == 0
    assert "average of the last 2 epochs" in capsys.readouterr().out
    assert train(*flags, "--average-last", "3", "--epochs", "3", "--resume") == 0
    assert "average of the last 3 epochs" in capsys.readouterr().out
    given_more = torch.load("run/average.pt")["weights"]
    assert train(*flags, "--average-last", "3", "--epochs", "3", "--output-dir", "whole") == 0
    for name, value in torch.load("whole/average.pt")["weights"].items():
        torch.testing.assert_close(given_more[name], value)


def test_of_the_last_epoch_alone_a_part_is_the_average(train: Train, demo):
    flags = (*FLAGS, "--data", demo, "--lr", "0.05", "--epochs", "1.5", "--average-last", "1")
    interrupt_after(15, lambda: train(*flags))
    assert train(*flags, "--resume") == 0
    last, average = torch.load("run/last.pt"), torch.load("run/average.pt")
    assert all(torch.equal(value, average["weights"][name]) for name, value in last["weights"].items())


def test_a_run_that_ends_early_averages_what_it_has_of_its_last_epochs(train: Train, demo, capsys):
    flags = (*FLAGS, "--data", demo, "--lr", "0", "--patience", "2")
    assert train(*flags, "--epochs", "4", "--average-last", "3") == 0  # ends after the third
    assert "average of the last 2 epochs" in capsys.readouterr().out
    assert torch.load("run/average.pt")["epoch"] == 3


@pytest.mark.parametrize("before", [False, True], ids=["", "after a shorter run"])
def test_a_run_that_ends_before_its_last_epochs_says_that_there_is_no_average(
    train: Train, demo, capsys, before, wording
):
    flags = (*FLAGS, "--data", demo, "--lr", "0", "--average-last", "2")
    if before:
        assert train(*flags, "--epochs", "2") == 0
        Path("run/average.pt").unlink()
    capsys.readouterr()
    assert train(*flags, "--epochs", "9", "--patience", "2", *(["--resume"] if before else [])) == 0
    out = capsys.readouterr().out
    wording.line(out, "no average: ")
    assert "average of" not in out
    assert not Path("run/average.pt").exists()


def test_a_rate_for_some_images_of_a_step_trains_resumes_and_reads_back(train: Train, demo):
    flags = (*FLAGS, "--data", demo, "--lr-base", "0.1", "--lr-base-size", "128", "--lr-base-scale", "sqrt")
    assert train(*flags, "--epochs", "1") == 0
    rate = pytest.approx(0.1 * (16 / 128) ** 0.5)
    assert torch.load("run/last.pt")["config"]["lr"] == rate
    assert train(*flags, "--epochs", "2", "--batch-size", "32", "--resume") == 0
    assert torch.load("run/last.pt")["config"]["lr"] == pytest.approx(0.1 * (32 / 128) ** 0.5)
    assert train("--config", "run/config.yaml", "--output-dir", "again", "--epochs", "1") == 0
    assert torch.load("again/last.pt")["config"]["lr"] == pytest.approx(0.1 * (32 / 128) ** 0.5)


def test_the_schedule_is_drawn_and_nothing_is_trained(train: Train, demo, capsys):
    assert train(*FLAGS, "--data", demo, "--epochs", "4", "--preview-schedule") == 0
    out = capsys.readouterr().out
    assert "schedule.png" in out
    assert Path("schedule.png").stat().st_size > 5000
    assert not Path("run").exists()
