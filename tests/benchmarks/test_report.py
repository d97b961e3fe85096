"""benchmarks/report.py: tables match the JSON files; a missing file is reported as "not measured"."""

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


def test_a_short_table_has_medians_alone():
    text = report.short_table({Path("a"): comparison()}, "train")
    assert text.splitlines() == [
        "|  | eager | fastcnn |",
        "| --- | --- | --- |",
        "| resnet18-64px-batch32 | 80 img/s | 3.00x |",
    ]


def test_a_short_table_marks_a_side_that_a_file_lacks():
    content = comparison()
    files = {Path("a"): content, Path("b"): content | {"sides": {"eager": content["sides"]["eager"]}}}
    assert report.short_table(files, "train").splitlines()[-1] == "| resnet18-64px-batch32 | 80 img/s | - |"


def test_a_side_that_a_file_lacks_is_not_measured():
    other = comparison("train-vgg11-64px-batch32", left_out={})
    text = report.comparison_table({Path("a"): comparison(), Path("b"): other}, "train")
    assert "| not measured |" in text.splitlines()[-1]


def test_gpu_sides_are_named_below_the_table_of_a_cpu():
    text = report.comparison_table({Path("a"): comparison(left_out={"tuned": "needs a CUDA GPU"})}, "train")
    assert text.splitlines()[0] == "|  | eager | fastcnn |"
    assert text.endswith("On a CUDA GPU also: tuned.")


def test_memory_and_first_step_follow_the_speed_of_the_steps():
    content = comparison()
    assert report.costs_table({Path("a"): content}) == ""
    content["sides"]["fastcnn"] |= {"peak_bytes": 3 << 29, "first_seconds": [41.26, 0.1]}
    text = report.costs_table({Path("a"): content})
    assert text.splitlines()[0] == "|  | fastcnn |"
    assert text.splitlines()[-1] == "| resnet18-64px-batch32 | 1.5 GiB, 41.3 s |"
    assert text in report.page({"h200": {Path("a"): content}})


def test_startup_is_in_seconds_with_its_stages():
    content = comparison("startup-lenet5", left_out={}, unit="start")
    content["sides"]["fastcnn"]["stages"] = {"imports": 0.06, "data": 0.02}
    text = report.page({"here": {Path("a"): content}})
    assert "| fastcnn | 0.10 (0.10 to 0.15) | imports 0.1, data 0.0 |" in text
    assert "startup.png" not in text


def test_without_files_everything_is_not_measured():
    assert report.headline({}) == "Speed: not measured."
    assert report.loader_figures({}) == "Loaders: not measured."
    assert report.kernel_figures({}) == report.kernel_means({}) == "On a GPU: not measured."
    assert report.train_figures({}) == (
        "On a GPU, training steps are not measured yet; "
        "`python benchmarks/gpu.py --minutes 20` measures them."
    )
    assert "Not measured on a GPU yet: training steps of resnet50-224px-batch256, " in report.page({})


def gpu(what: str) -> dict:
    content = comparison(what)
    content["environment"] |= {"gpu": "NVIDIA H200", "driver": "1", "date": "2026-11-26"}
    return content


def test_measurements_on_a_gpu_leave_the_sentence_about_missing_ones():
    machines = {"h200": {Path("a"): gpu("train-resnet50-224px-batch256")}}
    text = report.train_figures(machines)
    assert "| resnet50-224px-batch256 | 80 img/s | 3.00x |" in text
    assert "On a GPU, 8 of 9 training steps are not measured yet; " in text
    page = report.page(machines)
    assert "training steps of efficientnet_b0-224px-batch256, " in page
    assert "; loaders; " in page


def test_a_complete_gpu_needs_no_sentence():
    rows = [f"train-{row}" for row in report.TRAIN["cuda"]]
    text = report.train_figures({"h200": {Path(row): gpu(row) for row in rows}})
    assert "not measured" not in text


def test_the_headline_has_the_range_of_the_speedups_with_machine_date_and_command():
    slow, fast = (gpu(f"train-{arch}-224px-batch256") for arch in ("resnet50", "resnet18"))
    slow["settings"] = fast["settings"] = {"img_size": 224}
    fast["sides"]["fastcnn"]["speedup"]["median"] = 4.0
    assert report.headline({"h200": {Path("a"): slow, Path("b"): fast}}) == (
        "- GPU: training steps run 3.0x to 4.0x as fast as eager fp32 PyTorch, over 2 networks at 224 px "
        "(NVIDIA H200, driver 1, 2026-11-26).\n"
        "  Reproduce: `python -m pytest benchmarks/bench_train.py`."
    )


def test_the_headline_has_the_mean_of_the_depthwise_kernels():
    (content,) = report.kernel_reports(report.read())
    depthwise = [row for row in content["rows"] if row["kind"] == "depthwise"]
    for row in depthwise:
        row["ratios"]["eager"]["median"] = 2.0
    text = report.headline({"h200": {Path("a"): content}})
    assert text.startswith("- GPU kernels: depthwise convolution runs 2.0x as fast as eager PyTorch")
    assert "of 23 layers" in text


def test_columns_without_a_measurement_become_a_sentence():
    markdown = "A.\n\n| a | b |\n| --- | --- |\n| 1 | not measured |\n| not measured | not measured |"
    assert report.measured_columns(markdown) == (
        "A.\n\n| a |\n| --- |\n| 1 |\n| not measured |\n\nNot measured: b."
    )


def test_measured_columns_stay_as_they_are():
    markdown = "| a |  |\n| --- | --- |\n| 1 | not measured |\n| 2 |  |"
    assert report.measured_columns(markdown) == markdown


def test_a_readme_without_its_block_is_an_error(tmp_path):
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
def test_pytest_benchmark_replays_the_measured_times(tmp_path):
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
