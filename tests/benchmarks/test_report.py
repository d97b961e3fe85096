"""benchmarks/report.py: tables say what the JSON files say, and where there is none, that."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from comparison import Comparison
from runs import run_pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
report = importlib.import_module("report")


def comparison(what: str = "train-resnet18-64px-batch32", **changes) -> dict:
    seconds = {"eager": [0.2, 0.4, 0.6], "fastcnn": [0.1, 0.1, 0.2]}
    settings = {
        "device": torch.device("cpu"),
        "work": 32,
        "left_out": {"timm": "timm has no resnet18"},
        **changes,
    }
    return Comparison(
        what=what, baseline="eager", seconds=seconds, sides={"fastcnn": {"arithmetic": "bf16"}}, **settings
    ).as_json()


def test_a_table_has_the_baseline_in_units_and_the_others_as_ratios_of_rounds():
    text = report.comparison_table({Path("a"): comparison()}, "train", "arithmetic")
    head, _, row = text.splitlines()
    assert head == "|  | eager | timm | fastcnn | arithmetic |"
    assert row.startswith(
        "| resnet18-64px-batch32 | 80 img/s | timm has no resnet18 | 3.00 (2.50 to 3.50) | bf16 |"
    )


def test_a_side_that_a_file_lacks_is_not_measured():
    other = comparison("train-vgg11-64px-batch32", left_out={})
    text = report.comparison_table({Path("a"): comparison(), Path("b"): other}, "train")
    assert "| not measured |" in text.splitlines()[-1]


def test_sides_for_a_gpu_alone_are_named_below_the_table_of_a_cpu():
    text = report.comparison_table({Path("a"): comparison(left_out={"tuned": "needs a CUDA GPU"})}, "train")
    assert text.splitlines()[0] == "|  | eager | fastcnn |"
    assert text.endswith("On a CUDA GPU also: tuned.")


def test_what_steps_cost_is_told_below_how_fast_they_are():
    content = comparison()
    assert report.costs_table({Path("a"): content}) == ""
    content["sides"]["fastcnn"] |= {"peak_bytes": 3 << 29, "first_seconds": [41.26, 0.1]}
    text = report.costs_table({Path("a"): content})
    assert text.splitlines()[0] == "|  | fastcnn |"
    assert text.splitlines()[-1] == "| resnet18-64px-batch32 | 1.5 GiB, 41.3 s |"
    assert text in report.page({"h200": {Path("a"): content}})


def test_starts_are_told_in_seconds_with_where_they_go():
    content = comparison("startup-lenet5", left_out={}, unit="start")
    content["sides"]["fastcnn"]["stages"] = {"imports": 0.06, "data": 0.02}
    text = report.page({"here": {Path("a"): content}})
    assert "| fastcnn | 0.10 (0.10 to 0.15) | imports 0.1, data 0.0 |" in text
    assert "startup.png" not in text


def test_without_files_everything_is_not_measured():
    assert "not measured" in report.train_figures({})
    assert report.loader_figures({}) == "not measured"
    assert "not measured" in report.page({})


def test_a_gpu_s_figures_replace_what_was_not_measured():
    content = comparison()
    content["environment"] |= {"gpu": "NVIDIA H200", "driver": "1"}
    text = report.train_figures({"h200": {Path("a"): content | {"what": "train-resnet50-224px-batch256"}}})
    assert "| resnet50-224px-batch256 | 80 img/s" in text
    assert "| resnet50-224px-batch256 | not measured" not in text
    assert "| vgg16-224px-batch128 | not measured" in text


def test_without_a_gpu_the_kernels_are_not_measured():
    assert report.kernel_figures({}) == report.kernel_means({}) == "On a GPU: not measured."


def test_a_readme_without_its_block_is_told(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("no figures here")
    with pytest.raises(SystemExit, match="there is no block"):
        report.fill(path, report.README, {})


@pytest.mark.gate
def test_the_tables_in_the_repository_are_made_from_its_files(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 0, capsys.readouterr().out


def test_pictures_are_drawn(tmp_path):
    report.draw_comparisons({Path("a"): comparison()}, "train", tmp_path / "train.png")
    assert (tmp_path / "train.png").stat().st_size > 5_000


@pytest.mark.slow
def test_pytest_benchmark_is_played_what_was_measured(tmp_path):
    """The statistics of its own table are those of the times in turn."""
    for name in ("conftest.py", "comparison.py"):
        (tmp_path / name).write_text((BENCHMARKS / name).read_text())
    (tmp_path / "test_played.py").write_text(
        """
import torch
from comparison import Comparison

def test_played(play, save):
    comparison = Comparison(
        what="train-x", baseline="a", seconds={"a": [0.5, 1.5, 4.0]}, device=torch.device("cpu"), work=3
    )
    save(comparison)
    play(comparison, "a")
"""
    )
    run_pytest("--benchmark-json", "b.json", "--results", "out", cwd=tmp_path)
    (found,) = json.loads((tmp_path / "b.json").read_text())["benchmarks"]
    assert (found["stats"]["min"], found["stats"]["median"], found["stats"]["max"]) == (0.5, 1.5, 4.0)
    assert found["extra_info"]["img a second"] == 2
    (written,) = (tmp_path / "out").glob("*/train-x.json")
    assert json.loads(written.read_text())["sides"]["a"]["seconds"]["median"] == 1.5
