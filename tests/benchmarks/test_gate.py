"""The gate on speed: the ablation of a training step against this machine's file, or against itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastcnn.bench.ablation import OWN
from fastcnn.cli.main import main
from fastcnn.runtime import environment, machine
from fastcnn.runtime.distributed import Ranks

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TRIES = 3
"""A slower program is slower each time, a busy machine is not."""
MAX_LOSS = 0.25
"""Of speed; a shared machine's times vary by nearly as much."""
PROBLEM = {"arch": "resnet18", "img_size": 64, "batch_size": 32}


def flags(output: Path) -> list[str]:
    size = ["--img-size", str(PROBLEM["img_size"]), "-b", str(PROBLEM["batch_size"])]
    return ["--arch", str(PROBLEM["arch"]), *size, "--device", "cpu", "--quick", "--output", str(output)]


def loss_of_own_step(rungs: list[dict]) -> float:
    """Share of its speed that fastcnn's step loses against the best rung, each relative to the baseline."""
    speed = {rung["name"]: rung["speedup"]["median"] for rung in rungs if "left_out" not in rung}
    return 1 - speed[OWN] / max(speed.values())


def machine_file() -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(machine.cores_per_process(Ranks()))
    try:
        return RESULTS / environment.machine_name(torch.device("cpu")) / "ladder-resnet18-64px-batch32.json"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gate
@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.timeout(900)
def test_a_training_step_loses_no_quarter_of_its_speed(tmp_path, capsys):
    """ResNet-18 at 64 pixels: fastcnn's own step against the best rung, and each rung against this machine's
    file, where there is one: speed-ups of another processor would be no baseline."""
    file, output = machine_file(), tmp_path / "now.json"
    more = ["--baseline", str(file), "--max-regression", str(MAX_LOSS)] if file.exists() else []
    tries = (
        main(["bench", *flags(output), *more]) == 0
        and loss_of_own_step(json.loads(output.read_text())["rungs"]) <= MAX_LOSS
        for _ in range(TRIES)
    )
    assert any(tries), "\n".join(capsys.readouterr())


def test_the_loss_of_the_own_step_is_against_the_best_rung():
    def rung(name: str, speedup: float) -> dict:
        return {"name": name, "speedup": {"median": speedup}}

    rungs = [
        rung("eager", 1.0),
        rung("bf16", 2.0),
        {"name": "compile", "left_out": "--quick"},
        rung(OWN, 1.5),
    ]
    assert loss_of_own_step(rungs) == 0.25
    assert loss_of_own_step([*rungs[:-1], rung(OWN, 2.2)]) == 0
