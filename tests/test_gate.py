"""The gate on speed in CI: what the ladder found is compared with the file in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastcnn import bench, cli, machine
from fastcnn.distributed import Ranks

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
TRIES = 3
"""A slower program is slower each time, a busy machine is not."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_rung_of_the_ladder_lost_a_quarter_of_its_speed_up(tmp_path, capsys):
    """ResNet-18's at 64 pixels, where the machine is of the kind that the file is of."""
    threads = torch.get_num_threads()
    torch.set_num_threads(machine.cores_per_process(Ranks()))
    try:
        file = RESULTS / bench.machine_name(torch.device("cpu")) / "ladder-resnet18-64px-batch32.json"
    finally:
        torch.set_num_threads(threads)
    if not file.exists():  # speed-ups belong to a processor: those of another would be no baseline
        pytest.skip(f"no figures of this machine: {file.parent.name}")
    problem = json.loads(file.read_text())["problem"]
    flags = ["--arch", problem["arch"], "--img-size", str(problem["img_size"])]
    flags += ["-b", str(problem["batch_size"]), "--device", "cpu", "--quick"]
    flags += ["--baseline", str(file), "--max-regression", "25%", "--output", str(tmp_path / "now.json")]
    for _ in range(TRIES):
        if cli.main(["bench", *flags]) == 0:
            return
    pytest.fail(capsys.readouterr().err)
