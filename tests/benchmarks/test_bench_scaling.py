"""benchmarks/bench_scaling.py and its model: arithmetic by hand, files, and two gloo processes."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import comparison
from fastcnn import models
from scaling_model import efficiency, exposed_seconds, ring_all_reduce_seconds

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
bench_scaling, worker = map(importlib.import_module, ("bench_scaling", "scaling_worker"))

RESULTS = ROOT / "benchmarks/results/amd-epyc-2-threads/scaling-resnet18-64px-batch32.json"
EVEN = {"median": 0.1, "quartile_1": 0.1, "quartile_3": 0.1, "repeats": 3}
REPORT: dict[str, Any] = {
    "environment": {"processor": "a CPU", "torch": "2.15", "commit": "abc"},
    "settings": {"arch": "net", "img_size": 8, "batch_size": 4},
    "fastcnn_dtype": "fp32",
    "threads_per_process": 1,
    "gradient_bytes": 40_000_000,
    "rows": [
        {
            "processes": 2,
            "step_seconds": dict.fromkeys(("alone", "apart", "together"), EVEN),
            "images_per_second": EVEN,
            "efficiency": EVEN,
            "exposed_seconds": EVEN,
            "all_reduce_seconds": EVEN,
            "bus_bytes_per_second": {**EVEN, "median": 0.4e9},
            "bucket_step_seconds": {"torch's": EVEN, "1 MiB": EVEN},
        }
    ],
}


# The model

LINK = {"bandwidth": 1e9, "latency": 1e-3}


def test_a_ring_of_four_sends_six_quarters():
    # 100 MB at 1 GB/s: 6 times 25 ms, and 1 ms each time.
    assert ring_all_reduce_seconds(100e6, 4, 1e9, 1e-3) == pytest.approx(0.156)
    assert ring_all_reduce_seconds(100e6, 1, 1e9, 1e-3) == 0


def test_a_bucket_that_holds_all_waits_for_the_whole_backward_pass():
    assert exposed_seconds(10, 100e6, 4, **LINK, bucket_bytes=100e6) == pytest.approx(0.156)


def test_of_four_hidden_buckets_the_last_one_is_exposed():
    # Each takes 6 x (6.25 + 1) = 43.5 ms, and a quarter of the backward pass 50 ms.
    exposed = exposed_seconds(0.3, 100e6, 4, **LINK, bucket_bytes=25e6)
    assert exposed == pytest.approx(0.0435)
    assert efficiency(0.3, exposed) == pytest.approx(0.3 / 0.3435)


def test_of_a_fast_step_all_is_exposed_but_what_it_computes_meanwhile():
    # A quarter of the backward pass takes 10 ms: 4 x 43.5 ms, less the 3 quarters that go on beside them.
    assert exposed_seconds(0.06, 100e6, 4, **LINK, bucket_bytes=25e6) == pytest.approx(0.174 - 0.03)


def test_one_process_waits_for_nobody():
    assert exposed_seconds(0.1, 100e6, 1, **LINK) == 0
    assert efficiency(0.1, 0) == 1


# The script


def main(**changes) -> int:
    return bench_scaling.main(bench_scaling.Settings(**{"device": "cpu", **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"processes": (0,)}, "--processes 0: "),
        ({"processes": (1, 4096)}, "--processes 4096: "),
        ({"model": (0,)}, "--model 0: "),
        ({"link_gbps": 0.0, "model": (8,)}, "--link-gbps 0: "),
        ({"bucket_mb": (0, 1)}, "--bucket-mb 0: "),
        ({"latency_us": -1.0}, "--latency-us -1: "),
        ({"rounds": 1}, "--rounds "),
        ({"arch": "resnet999"}, "--arch resnet999: "),
        ({"arch": "lenet5", "img_size": 64}, "--img-size 64: "),
        ({"earlier": "/nowhere.json"}, "--from /nowhere.json: "),
        ({"earlier": __file__}, f"--from {__file__}"),
    ],
    ids=[
        *("processes", "cores", "model", "link", "bucket", "latency", "rounds", "arch", "size"),
        *("no file", "not JSON"),
    ],
)
def test_a_mistake_gets_one_line(capsys, changes, named, wording):
    assert main(**changes) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"bench_scaling: error: {named}")
    err = re.sub(r"here are \d+ cores; use \d+", "here are N cores; use N", err.replace(__file__, "FILE"))
    err = re.sub("Extra data.*?;", "...;", err)  # Python's words
    wording(err)


def test_more_processes_than_gpus_gets_one_line(capsys, monkeypatch, wording):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(processes=(3,), device="auto") == 2
    error = capsys.readouterr().err
    assert "--processes 3: " in error
    wording(error)


def test_the_model_starts_from_a_file_and_says_that_it_is_one(tmp_path, capsys, wording):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))
    assert main(earlier=str(path), model=(1, 4), link_gbps=8.0, latency_us=1000) == 0
    lines = capsys.readouterr().out.splitlines()
    told, one, four = lines[-3:]
    assert told.startswith("modelled from 100.0 ms a step alone, 40.0 MB, 8 Gbit/s as told")
    assert one == "modelled, 1 processes: efficiency 1.00, 0.0 ms exposed"
    # Two buckets of 20 MB: 6 x (5 + 1) = 36 ms each; half the backward pass takes 33.3 ms.
    assert four == "modelled, 4 processes: efficiency 0.72, 38.7 ms exposed"
    assert all("modelled" not in line for line in lines[:-3])

    assert main(earlier=str(path), model=(4,)) == 0  # 0.4 GB/s, as measured
    assert "3.2 Gbit/s as the all-reduce here" in capsys.readouterr().out

    path.write_text(json.dumps({**REPORT, "rows": [{**REPORT["rows"][0], "processes": 1}]}))
    assert main(earlier=str(path), model=(4,)) == 2
    error = capsys.readouterr().err
    assert "--link-gbps" in error
    wording(error)


def test_a_group_is_as_fast_as_its_slowest_process():
    assert bench_scaling.slowest([{"a": [1.0, 4.0]}, {"a": [2.0, 3.0]}], "a") == [2.0, 4.0]


def test_all_processes_begin_a_turn_together():
    log: list[str] = []
    sides: dict[str, Any] = {name: functools.partial(log.append, name) for name in "ab"}
    comparison.time_in_turn(
        sides,
        torch.device("cpu"),
        rounds=2,
        warmup=0,
        calls=2,
        before=lambda: log.append("barrier"),
    )
    assert log == ["barrier", *"aa", "barrier", *"bb", "barrier", *"bb", "barrier", *"aa"]


@pytest.fixture
def job(tmp_path):
    return worker.Job(
        arch="lenet5",
        img_size=32,
        batch_size=2,
        bucket_mb=(1,),
        rounds=2,
        device="cpu",
        threads=1,
        dtype="fp32",
        compile=False,
        gradient_bytes=4,
        folder=str(tmp_path),
    )


def test_one_process_measures_itself(job, tmp_path):
    worker.work(0, job, threading.Barrier(1))
    found = json.loads((tmp_path / "0.json").read_text())
    assert found.keys() == {"turns"}
    assert [len(seconds) for seconds in found["turns"].values()] == [2]


@pytest.mark.slow
def test_after_each_number_of_processes_there_is_a_file(tmp_path, monkeypatch):
    path = tmp_path / "out" / "report.json"
    monkeypatch.setattr(bench_scaling.machine, "cores_per_process", lambda ranks: 5)
    seen: list[tuple[int, int, int]] = []

    def measure(job):
        rows = len(json.loads(path.read_text())["rows"]) if path.exists() else 0
        seen.append((job.processes, job.threads, rows))
        return {**REPORT["rows"][0], "processes": job.processes}

    monkeypatch.setattr(bench_scaling, "measure", measure)
    assert main(arch="lenet5", img_size=32, processes=(1, 2), output=str(path)) == 0
    assert seen == [(1, 2, 0), (2, 2, 1)]  # with one process too, the threads that each of two has


@pytest.mark.slow
@pytest.mark.skipif(bench_scaling.machine.cores_per_process(worker.Ranks()) < 2, reason="one core")
def test_two_processes_end_to_end(tmp_path):
    path = tmp_path / "report.json"
    script = [sys.executable, str(ROOT / "benchmarks/bench_scaling.py"), "--quick", "--device", "cpu"]
    network = ["--arch", "lenet5", "--img-size", "32", "--batch-size", "4", "--processes", "1", "2"]
    command = [*script, *network, "--bucket-mb", "1", "--output", str(path), "--model", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert {"torch", "commit", "threads"} <= report["environment"].keys()
    assert report["settings"]["processes"] == [1, 2]
    parameters = sum(p.numel() for p in models.build("lenet5", num_classes=1000).parameters())
    assert report["gradient_bytes"] == 4 * parameters
    one, two = report["rows"]
    assert (one["processes"], one["step_seconds"].keys()) == (1, {"alone"})
    assert one["efficiency"]["median"] == 1
    assert one["images_per_second"]["median"] == pytest.approx(4 / one["step_seconds"]["alone"]["median"])
    steps = {name: value["median"] for name, value in two["step_seconds"].items()}
    assert steps.keys() == {"alone", "apart", "together"}
    assert two["images_per_second"]["median"] == pytest.approx(8 / steps["together"])
    assert two["bucket_step_seconds"].keys() == {"torch's", "1 MiB"}
    bus = two["bus_bytes_per_second"]["median"]
    assert bus == pytest.approx(report["gradient_bytes"] / two["all_reduce_seconds"]["median"])
    summaries = [*two["step_seconds"].values(), *two["bucket_step_seconds"].values(), two["efficiency"]]
    assert all(s["repeats"] == report["rounds"] and s["median"] > 0 for s in summaries)
    assert done.stdout.splitlines()[-2].startswith("modelled, 8 processes: efficiency 0.")


# The documentation


def test_the_documentation_shows_the_file(capsys):
    """Both blocks are the script's output."""
    text = (ROOT / "docs/scaling.md").read_text()
    assert main(earlier=str(RESULTS)) == 0
    table = capsys.readouterr().out
    assert main(earlier=str(RESULTS), model=(2,)) == 0
    near = capsys.readouterr().out.removeprefix(table)
    assert main(earlier=str(RESULTS), model=(2, 8, 16, 64), link_gbps=25) == 0
    far = capsys.readouterr().out.removeprefix(table)
    for block in (table, near, far):
        assert f"```\n{block}```\n" in text


def test_the_slurm_file_starts_one_torchrun_a_node_and_requeues_a_stopped_job(tmp_path):
    commands = {
        "scontrol": 'echo "scontrol $*" >> log; if [ "$1" = show ]; then echo node1; echo node2; fi',
        "srun": 'echo "srun $*" >> log; trap "exit 1" TERM; sleep 1; kill $PPID; while sleep 0.1; do :; done',
    }
    for name, content in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "name",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_ON_NODE": "64",
    }
    script = ["bash", str(ROOT / "docs/slurm.sbatch"), "--arch", "resnet50", "--data", "a b"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    shown, started, requeued = (tmp_path / "log").read_text().splitlines()
    assert shown == "scontrol show hostnames node[1-2]", done.stderr
    assert started == (
        "srun --kill-on-bad-exit=1 --cpus-per-task=64 torchrun --nnodes 2 --nproc-per-node 8 "
        "--max-restarts 3 --rdzv-id 7 --rdzv-backend c10d --rdzv-endpoint node1:20007 -m fastcnn.train "
        "--output-dir runs/name --resume auto --arch resnet50 --data a b"
    )
    assert requeued == "scontrol requeue 7"
    assert done.returncode != 0
