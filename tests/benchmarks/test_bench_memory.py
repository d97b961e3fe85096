"""`benchmarks/bench_memory.py --minutes`: samples of a whole training, and their rise over the last half."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import bench_memory
import training_memory
from runs import as_flags

QUICK = as_flags({"arch": "lenet5", "data_backend": "torch", "batch_size": 16, "workers": 1, "lr": 0.01})


def test_a_rise_is_that_of_the_last_half_without_outliers():
    samples = [{"seconds": float(i), "mib": 100.0, "descriptors": 9, "threads": 3} for i in range(100)]
    for i in range(50):
        samples[i]["mib"] = float(i)  # the start does not count
    for i in range(90, 100):
        samples[i]["mib"] = 104.0
    samples[97]["mib"] = 900.0
    found = training_memory.rise(samples)
    assert found["mib"] == {"at_half": 100.0, "at_end": 104.0, "rise": 4.0}
    assert found["descriptors"]["rise"] == found["threads"]["rise"] == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_the_state_of_a_process_is_read():
    before = training_memory.state_of(os.getpid())
    with open(os.devnull) as _:
        assert training_memory.state_of(os.getpid())["descriptors"] == before["descriptors"] + 1
    assert before["mib"] > 10
    assert before["threads"] >= 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_a_whole_training_is_sampled_and_drawn(demo, tmp_path, capsys):
    output = tmp_path / "memory.json"
    quick = bench_memory.Settings(
        data=str(demo), minutes=0.1, backends=("torch",), workers=1, output=str(output)
    )
    bench_memory.main(quick)
    assert "MiB at half" in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert len(content["samples"]["torch"]) >= 4
    assert content["last_half"]["torch"]["mib"]["at_end"] > 100
    assert output.with_suffix(".png").stat().st_size > 5_000


@pytest.mark.slow
def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(SystemExit, match="no such folder"):
        training_memory.sample([*QUICK, "--data", str(tmp_path / "missing")], minutes=1)
