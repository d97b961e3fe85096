"""benchmarks/bench_recipes.py and bench_cifar10.py: what they read, count and write."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.open import open_source
from fastcnn.runtime import environment

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
bench_recipes = importlib.import_module("bench_recipes")
bench_cifar10 = importlib.import_module("bench_cifar10")
report = importlib.import_module("report")


def run_of(backend: str, seed: int, accuracy: float, seconds: float = 60.0) -> Any:
    val = {"acc1": accuracy}
    return bench_recipes.Run(backend=backend, seed=seed, seconds=seconds, val=val, best={**val, "epoch": 3})


def test_a_machines_folder_has_a_plain_name():
    assert environment.as_name("Intel(R) Xeon(R) Processor 2 threads") == "intel-xeon-processor-2-threads"
    assert environment.as_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_the_last_and_the_best_validation_are_read_from_a_runs_history():
    records = [
        {"kind": "train", "main_metric": "acc1"},
        {"kind": "epoch", "epoch": 1, "val": {"acc1": 50.0}},
        {"kind": "epoch", "epoch": 2, "val": {"acc1": 70.0}},
        {"kind": "epoch", "epoch": 3, "val": {"acc1": 60.0}},
    ]
    last, best = bench_recipes.read_history("\n".join(map(json.dumps, records)))
    assert last == {"acc1": 60.0}
    assert best == {"acc1": 70.0, "epoch": 2}


def test_two_backends_differ_by_as_many_standard_errors_as_welch_says():
    runs = [run_of("dali", i, a) for i, a in enumerate((80.0, 82.0, 84.0))]
    runs += [run_of("torch", i, a) for i, a in enumerate((81.0, 83.0, 85.0))]
    found = bench_recipes.difference(runs, "dali", "torch", "acc1")
    assert found["apart"] == pytest.approx(1.0)
    assert found["standard_error"] == pytest.approx((4 / 3 + 4 / 3) ** 0.5)
    assert found["in_standard_errors"] == pytest.approx(1 / (8 / 3) ** 0.5)


@pytest.mark.slow
def test_a_recipe_runs_and_its_page_says_what_it_reached(demo, tmp_path):
    settings = bench_recipes.Settings(
        recipe="mnist-lenet5", data=str(demo), flags="--epochs 1 --batch-size 16"
    )
    run = bench_recipes.train(settings, "torch", 3, tmp_path / "run")
    assert run.best["epoch"] == 1
    assert 0 <= run.val["acc1"] <= 100
    assert run.seconds > 1
    content = bench_recipes.content(settings, [run], torch.device("cpu"))
    (line, source, *_) = report.result_lines(
        "mnist-lenet5", {tmp_path / "a.json": json.loads(json.dumps(content))}
    )
    assert f"**{run.val['acc1']:.2f}%**" in line
    assert "JPEG files" in line
    assert "--epochs 1 --batch-size 16" in source


def test_a_recipe_without_a_file_was_not_run():
    page = report.recipes_page({})
    assert page.count("fastcnn: not run") == len(report.RECIPES)


def test_airbench_reads_the_same_images_and_labels(demo, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(demo, small)
    source = open_source(DataSettings(data=str(small)), seed=0)
    bench_cifar10.write_tensors(source.val, source.class_names, tmp_path / "test.pt")
    content = torch.load(tmp_path / "test.pt", weights_only=True)
    assert content["images"].dtype == torch.uint8
    assert content["images"].shape[1:] == (64, 64, 3)
    assert content["classes"] == list(source.class_names)
    assert np.array_equal(content["labels"].numpy(), source.val.labels)
    assert source.val.files is not None
    assert np.array_equal(content["images"][7].numpy(), source.val.files.decode(7, 3))


def test_airbenchs_script_runs_as_often_as_told():
    script = "accs = [main(run, model) for run in range(200)]\n"
    assert "range(7)" in bench_cifar10.with_runs(script, 7)
    with pytest.raises(SystemExit, match="take airbench94_muon.py"):
        bench_cifar10.with_runs("something else", 7)


def test_accuracy_and_seconds_are_read_from_airbenchs_table_without_its_warm_up():
    table = """
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
|  warmup  |      0  |     0.1000  |   0.1000  |               |       20.0000  |
|          |   eval  |     0.1000  |   0.1000  |       0.1000  |       21.0000  |
|       0  |      0  |     0.5000  |   0.5000  |               |        0.3000  |
|          |   eval  |     0.9900  |   0.9300  |       0.9402  |        2.5900  |
|          |   eval  |     0.9900  |   0.9310  |       0.9396  |        2.6100  |
"""
    assert bench_cifar10.read_table(table) == [pytest.approx((94.02, 2.59)), pytest.approx((93.96, 2.61))]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_side_by_side_says_that_it_needs_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_cifar10.py", "--airbench", str(tmp_path / "x.py")])
    assert bench_cifar10.main() == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
