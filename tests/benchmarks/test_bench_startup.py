"""benchmarks/bench_startup.py: how it knows that something is ready."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
bench_startup, startup_stages = map(importlib.import_module, ("bench_startup", "startup_stages"))

SLEEPS = "import time; print('epoch 1/9  step 1/46  loss 2.3', flush=True); time.sleep(60)"


def test_a_run_tells_of_its_first_step(train, demo, one_core, capsys):
    train("--arch", "lenet5", "--data", demo, "--epochs", 1, "--log-interval", 1)
    lines = capsys.readouterr().out.splitlines()
    assert "step 1/" in next(line for line in lines if bench_startup.is_step(line))


def test_a_training_is_ready_at_its_first_step_and_ends_there(tmp_path):
    side = bench_startup.Side(("-c", SLEEPS, "--log-interval"))
    start = time.perf_counter()
    taken = bench_startup.seconds_until_ready(side, tmp_path, tmp_path)
    assert 0 < taken <= time.perf_counter() - start < 30


@pytest.mark.parametrize("code", ["print('no such data'); raise SystemExit(2)", "print('no step')"])
def test_a_training_without_a_step_is_an_error_with_its_last_lines(tmp_path, code):
    side = bench_startup.Side(("-c", code, "--log-interval"))
    with pytest.raises(RuntimeError, match="no s"):
        bench_startup.seconds_until_ready(side, tmp_path, tmp_path)


def test_what_is_cold_has_its_own_empty_caches(tmp_path):
    row = bench_startup.ROWS["startup-lenet5"]
    warm, cold = row["lenet5"], row["lenet5, cold"]
    kept, fresh = (bench_startup.environment(tmp_path / "a", side, tmp_path / "b") for side in (warm, cold))
    assert kept["FASTCNN_CACHE"] == str(tmp_path / "a" / "FASTCNN_CACHE")
    assert fresh["FASTCNN_CACHE"] == str(tmp_path / "b" / "FASTCNN_CACHE")
    assert fresh["PATH"] == os.environ["PATH"]


def test_the_stages_are_functions_of_fastcnn():
    for module, name in startup_stages.STAGES.values():
        assert callable(getattr(importlib.import_module(module), name))


def test_stages_add_up_to_the_whole():
    seconds: dict[str, float] = {"imports": 1.0}
    wait = startup_stages.wrapped(lambda: time.sleep(0.01), "data", seconds)
    wait()
    wait()
    assert seconds["data"] >= 0.02
    assert sum(startup_stages.finished(seconds, 5.0).values()) == pytest.approx(5.0)
