"""Time to airbench's accuracy on CIFAR-10: the recipe cifar10-speed and airbench on the same GPU and files.

    git clone https://github.com/KellerJordan/cifar10-airbench /tmp/airbench
    python benchmarks/bench_cifar10.py --data /data/cifar10 --airbench /tmp/airbench/airbench94_muon.py

Both read the same images: class folders under train/ and test/ are decoded once into the tensors that
airbench loads. Each side's time is that of airbench: training and the final validation. Start, loading and
compilation, before the first run, are reported as the side's start. The runs of a side are in one process,
with a seed each. fastcnn is measured twice, with its defaults and with --cuda-graph.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from comparison import results_file
from fastcnn.bench import timing
from fastcnn.config.settings import DataSettings
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.cached import decode_all
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.open import open_source
from fastcnn.runtime import environment

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    airbench: Path
    """airbench94_muon.py of its repository."""
    data: str = "cifar10"
    """A folder with train/ and test/, or cifar10."""
    data_root: str = "data"
    """Where cifar10 is."""
    runs: int = 10
    """Of each side."""
    output: str | None = None
    """JSON file; by default benchmarks/results/MACHINE/cifar10-speed.json."""


def write_tensors(split: Split, class_names: tuple[str, ...], path: Path) -> None:
    """Write a split in airbench's format: images uint8 [N, 32, 32, 3], labels int64 [N] and class names."""
    images = decode_all(split, 3, 8, BadFiles(split, "training", max_fraction=0.0)).images
    tensors = {"images": torch.from_numpy(np.asarray(images)), "labels": torch.from_numpy(split.labels)}
    torch.save({**tensors, "classes": list(class_names)}, path)


def with_runs(script: str, runs: int) -> str:
    """Return airbench's script with another number of runs.

    Raises:
        SystemExit: the script has no such loop, or several.
    """
    changed, count = re.subn(r"for run in range\(\d+\)", f"for run in range({runs})", script)
    if count != 1:
        raise SystemExit(
            "--airbench: this script does not say `for run in range(...)` once; take airbench94_muon.py"
        )
    return changed


def read_table(output: str) -> list[tuple[float, float]]:
    """Accuracy (percent, with test-time augmentation) and seconds of airbench's runs, without the warm-up."""
    rows = [line for line in output.splitlines() if re.match(r"\|\s+\|\s+eval", line)]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [(100 * float(row[-2]), float(row[-1])) for row in cells][1:]


def run_airbench(settings: Settings, folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    script = folder / settings.airbench.name
    script.write_text(with_runs(settings.airbench.read_text(), settings.runs))
    command = [sys.executable, script.name]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"airbench ended with {process.returncode}:\n{process.stderr[-2000:]}")
    found = read_table(process.stdout)
    return summary(found, time.perf_counter() - begin - sum(seconds for _, seconds in found))


def run_ours(settings: Settings, folder: Path, *, cuda_graph: bool) -> dict[str, Any]:
    import fastcnn

    found, start_seconds = [], 0.0
    for seed in range(settings.runs):
        begin = time.perf_counter()
        result = fastcnn.fit(
            recipe="cifar10-speed",
            data=settings.data,
            data_root=settings.data_root,
            seed=seed,
            cuda_graph=cuda_graph,
            output_dir=str(folder / f"run-{cuda_graph}-{seed}"),
        )
        start_seconds = start_seconds or time.perf_counter() - begin - result.seconds
        found.append((result.val["acc1"], result.seconds))
    return summary(found, start_seconds)


def summary(runs: list[tuple[float, float]], start_seconds: float) -> dict[str, Any]:
    """Means and deviations of the accuracy (percent) and seconds of the runs."""
    accuracies, seconds = zip(*runs)
    return {
        "start_seconds": start_seconds,
        "acc1": {"mean": statistics.mean(accuracies), "deviation": statistics.pstdev(accuracies)},
        "seconds": {"mean": statistics.mean(seconds), "deviation": statistics.pstdev(seconds)},
        "runs": [{"acc1": a, "seconds": s} for a, s in runs],
    }


def main() -> int:
    settings = tyro.cli(Settings)
    if not torch.cuda.is_available():
        print("bench_cifar10.py: needs an NVIDIA GPU, which airbench is written for", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0)
    path = results_file("cifar10-speed", settings.output, device)
    source = open_source(DataSettings(data=settings.data, data_root=settings.data_root), seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cifar10").mkdir()
        for split, file in ((source.train, "train.pt"), (source.val, "test.pt")):
            write_tensors(split, source.class_names, folder / "cifar10" / file)
        content: dict[str, Any] = {
            "what": "cifar10-speed",
            "environment": environment.environment(device),
            "data": settings.data,
        }
        for side, measure in (
            ("airbench", lambda: run_airbench(settings, folder)),
            ("fastcnn", lambda: run_ours(settings, folder, cuda_graph=False)),
            ("fastcnn --cuda-graph", lambda: run_ours(settings, folder, cuda_graph=True)),
        ):
            content[side] = found = measure()
            timing.write_json(path, content)
            accuracy, seconds = found["acc1"], found["seconds"]
            print(
                f"{side}: {accuracy['mean']:.2f}% (deviation {accuracy['deviation']:.2f}) in "
                f"{seconds['mean']:.2f} s ({seconds['deviation']:.2f}), {settings.runs} runs; "
                f"start {found['start_seconds']:.0f} s",
                flush=True,
            )
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
