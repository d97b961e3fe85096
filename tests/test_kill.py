"""Runs that are killed with SIGKILL at random instants and resumed end in the same bits.

python -m pytest -m slow tests/test_kill.py -s
KILLS=20 python -m pytest -m slow tests/test_kill.py -s
"""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from fastcnn.data.loaders.registry import has_dali
from labeled_images import write_imbalanced, write_tagged
from ranks import command

KILLS = int(os.environ.get("KILLS", "7"))
"""For each backend; half as many for the other tasks."""
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
CASES = [
    pytest.param("lenet5", "dali", KILLS, marks=needs_dali),
    ("lenet5", "torch", KILLS),
    ("lenet5", "cached", KILLS),
    pytest.param("unet/lenet5", "dali", (KILLS + 1) // 2, marks=needs_dali),
    ("yolo/lenet5", "torch", (KILLS + 1) // 2),
    ("balanced", "torch", (KILLS + 1) // 2),
    ("several labels", "torch", (KILLS + 1) // 2),
]
FLAGS = {
    "lenet5": ["--arch", "lenet5", "--lr", "0.05"],
    "unet/lenet5": ["--arch", "unet/lenet5", "--img-size", "32", "--lr", "0.05"],
    "yolo/lenet5": ["--arch", "yolo/lenet5", "--img-size", "32", "--lr", "0.01", "--strides", "4"],
    "balanced": ["--arch", "lenet5", "--lr", "0.05", "--sampler", "balanced"],
    "several labels": ["--arch", "lenet5", "--lr", "0.05", "--labels", "tags.csv", "--val-split", "0.2"],
}

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="starts processes by a fork server"),
]


def start(folder: Path, data: Path, kind: str, backend: str) -> AbstractContextManager[BaseProcess]:
    flags = [*FLAGS[kind], "--data", str(data), "--data-backend", backend, "--workers", "1"]
    flags += ["--amp-dtype", "fp32", "--deterministic", "--epochs", "4", "--batch-size", "16"]
    flags += ["--log-interval", "3", "--checkpoint-steps", "1", "--resume", "auto", "--output-dir", "run"]
    return command(folder, *flags)


def finish(folder: Path, data: Path, kind: str, backend: str) -> None:
    with start(folder, data, kind, backend) as process:
        process.join(300)
        assert process.exitcode == 0, (folder / "out.txt").read_text()


def data_of(kind: str, folder: Path, demo: Path, annotated: Path) -> Path:
    """Return data with 160 images for training."""
    if kind == "balanced":
        return write_imbalanced(folder / "imbalanced", (120, 30, 10))
    if kind == "several labels":
        return write_tagged(folder / "tagged", 200)
    return demo if kind == "lenet5" else annotated


@pytest.mark.parametrize(("kind", "backend", "kills"), CASES)
def test_a_run_killed_at_any_instant_ends_in_the_same_bits(tmp_path, demo, annotated, kind, backend, kills):
    case = data_of(kind, tmp_path, demo, annotated), kind, backend
    (tmp_path / "whole").mkdir()
    finish(tmp_path / "whole", *case)  # fills caches
    whole = torch.load(tmp_path / "whole" / "run" / "last.pt")
    (tmp_path / "timed").mkdir()
    begin = time.monotonic()
    finish(tmp_path / "timed", *case)
    seconds = time.monotonic() - begin

    instants = random.Random(f"{kind} {backend} {kills}")
    killed = in_a_save = before_the_first = 0
    while killed < kills:
        folder = tmp_path / f"killed-{killed}-{instants.random()}"
        folder.mkdir()
        with start(folder, *case) as process:
            process.join(instants.uniform(0.1, 0.9) * seconds)
            if killed % 2:  # half of them in the middle of the next save
                while process.exitcode is None and not (folder / "run" / ".last.pt.new").exists():
                    pass
            if process.exitcode is not None:  # it was faster than the timed one
                continue
        killed += 1
        in_a_save += (folder / "run" / ".last.pt.new").exists()
        before_the_first += not (folder / "run" / "last.pt").exists()
        finish(folder, *case)
        resumed = torch.load(folder / "run" / "last.pt")
        assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in whole["model"].items())
        assert resumed["step"] == whole["step"] == 40
        assert resumed["best"] == whole["best"]
        best = [torch.load(path / "run" / "best.pt")["weights"] for path in (folder, tmp_path / "whole")]
        assert all(torch.equal(tensor, best[0][name]) for name, tensor in best[1].items())
    print(
        f"\n{kind}, {backend}: {killed} runs of {seconds:.1f} s were killed, {in_a_save} in the middle of a "
        f"save and {before_the_first} before the first, and resumed: all ended in the same weights"
    )
