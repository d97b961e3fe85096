"""The Triton kernels on random layers against float64 references, under Triton's interpreter.

The interpreter is chosen when Triton is imported, so the grids have processes of their own: two at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs import start_pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
GRIDS = {
    # What each process runs, about equally long.
    "stride 1": ["tests/kernels/grid_depthwise_conv.py", "-k", "stride_1"],
    "stride 2, LRN": [
        "tests/kernels/grid_depthwise_conv.py",
        "tests/kernels/grid_lrn.py",
        "-k",
        "not stride_1",
    ],
}


def run_grids(whole: bool, python_path: Path | None = None) -> dict[str, tuple[int, str]]:
    environment = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    if whole:
        environment["WHOLE_GRID"] = "1"
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    processes = {name: start_pytest(*words, cwd=ROOT, **environment) for name, words in GRIDS.items()}
    outputs = {name: process.communicate()[0] for name, process in processes.items()}
    return {name: (process.returncode, outputs[name]) for name, process in processes.items()}


def check(results: dict[str, tuple[int, str]]) -> None:
    for name, (status, output) in results.items():
        assert status == 0, f"{name}\n{output}"
        assert " passed" in output
        assert "skipped" not in output


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "whole"])
def test_the_kernels_agree_with_float64(whole):
    check(run_grids(whole))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_they_agree_under_the_other_triton_too(tmp_path):
    import triton

    oldest, newest = "3.6.0", "3.9.0"  # that fastcnn supports
    other = newest if triton.__version__ == oldest else oldest
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*command, f"triton=={other}"], check=True)
    version = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        version, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found == other
    check(run_grids(False, tmp_path))
