"""Accuracy and time of a recipe on this machine.

    python benchmarks/bench_recipes.py cifar10-90 --data /data/cifar10
    python benchmarks/bench_recipes.py cifar10-85 --data /data/cifar10 --seeds 0 1 2 --backends dali torch

Each run is `python -m fastcnn.train` in a process of its own. Its time includes start, loading, training and
every validation. The JSON file has each run and, for two backends, the difference of their means in standard
errors. The curves of the first run are beside it.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from comparison import results_file
from fastcnn.bench import timing
from fastcnn.config.recipes import RECIPES
from fastcnn.runtime import environment
from fastcnn.runtime.distributed import Ranks, choose_device

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: tyro.conf.Positional[str]
    data: str | None = None
    """As of fastcnn.train; by default the recipe's."""
    seeds: tuple[int, ...] = (0,)
    """One run each."""
    backends: tuple[str, ...] = ("auto",)
    """Of --data-backend; they take turns."""
    timed: bool = True
    """Whether the machine does nothing else: else its times are not shown."""
    flags: Annotated[str, tyro.conf.arg(metavar="'--flags=--epochs 2'")] = ""
    """Further flags of fastcnn.train."""
    name: str | None = None
    """Of the files; by default the recipe's."""
    output: str | None = None
    """JSON file; by default benchmarks/results/MACHINE/recipe-NAME.json."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Results of one training."""

    backend: str
    seed: int
    seconds: float
    val: dict[str, float]
    """Metrics of the last epoch."""
    best: dict[str, float]
    """Metrics of the best epoch, and its number as "epoch"."""


def train(settings: Settings, backend: str, seed: int, folder: Path) -> Run:
    """Run the command once.

    Raises:
        SystemExit: the command failed.
    """
    command = [sys.executable, "-m", "fastcnn.train", *shlex.split(arguments(settings))]
    command += ["--data-backend", backend, "--seed", str(seed), "--output-dir", str(folder)]
    start = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{shlex.join(command)} ended with {status}")
    last, best = read_history((folder / "metrics.jsonl").read_text())
    return Run(backend=backend, seed=seed, seconds=seconds, val=last, best=best)


def arguments(settings: Settings) -> str:
    """Flags of the training, without backend, seed and output folder."""
    data = f" --data {shlex.quote(settings.data)}" if settings.data is not None else ""
    return f"--recipe {settings.recipe}{data} {settings.flags}".strip()


def read_history(text: str) -> tuple[dict[str, float], dict[str, float]]:
    """Last and best validation in the text of a metrics.jsonl."""
    records = [json.loads(line) for line in text.splitlines()]
    metric = next(r["main_metric"] for r in records if r["kind"] == "train")
    epochs = [r for r in records if r["kind"] == "epoch" and r.get("val")]
    best = max(epochs, key=lambda record: record["val"][metric])
    return epochs[-1]["val"], {**best["val"], "epoch": best["epoch"]}


def difference(runs: list[Run], first: str, second: str, metric: str) -> dict[str, float]:
    """Difference of two backends' means, and its standard error (Welch)."""
    a, b = ([run.val[metric] for run in runs if run.backend == name] for name in (first, second))
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    apart = abs(statistics.mean(a) - statistics.mean(b))
    return {"mean_" + first: statistics.mean(a), "mean_" + second: statistics.mean(b), "apart": apart} | {
        "standard_error": error,
        "in_standard_errors": apart / error if error else math.inf,
    }


def content(
    settings: Settings, runs: list[Run], device: torch.device, metric: str = "acc1"
) -> dict[str, Any]:
    """Content of the JSON file; the path of a local folder is replaced by FOLDER."""
    folder = settings.data is not None and Path(settings.data).is_dir()
    data = "FOLDER" if folder else settings.data
    found: dict[str, Any] = {
        "what": f"recipe-{settings.name or settings.recipe}",
        "recipe": settings.recipe,
        "command": f"python -m fastcnn.train {arguments(replace(settings, data=data))}",
        "images": {"jpeg": folder},
        "timed": settings.timed,
        "environment": environment.environment(device),
        "runs": [vars(run) for run in runs],
    }
    if len(settings.backends) == 2 and len(runs) >= 4:
        found["difference"] = difference(runs, *settings.backends, "acc1")
    return found


def main() -> int:
    settings = tyro.cli(Settings)
    if settings.recipe not in RECIPES:
        raise SystemExit(f"{settings.recipe}: no such recipe; `fastcnn recipes` lists them")
    device = choose_device("auto", Ranks())
    name = f"recipe-{settings.name or settings.recipe}"
    path = results_file(name, settings.output, device)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in settings.seeds:
            for backend in settings.backends:
                where = Path(folder) / f"{backend}-{seed}"
                runs.append(train(settings, backend, seed, where))
                found = content(settings, runs, device)
                timing.write_json(path, found)
                if len(runs) == 1:
                    shutil.copy(where / "curves.png", path.with_suffix(".png"))
                run = runs[-1]
                print(
                    f"{backend}, seed {seed}: acc1 {run.val['acc1']:.2f}% in {run.seconds:.0f} s", flush=True
                )
    if "difference" in found:
        print({name: round(value, 3) for name, value in found["difference"].items()})
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
