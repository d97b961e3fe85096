"""Folders of runs without a training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcnn.config import Config, to_yaml

SHARES = {"computing": 0.6, "data": 0.3, "launching": 0.0, "synchronising": 0.1, "communication": 0.0}


def interval(progress: float, metric: str = "acc1") -> dict[str, Any]:
    """Return a record of a log line."""
    return {
        "kind": "train",
        "step": round(10 * progress),
        "progress": progress,
        "metrics": {"samples": 64.0, "loss": 2 / (1 + progress), metric: 10 * progress},
        "main_metric": metric,
        "lr": 0.1,
        "images_per_second": 1000.0,
        "data_wait": 0.3,
        "shares": SHARES,
    }


def epoch(number: float, value: float, metric: str = "acc1") -> dict[str, Any]:
    """Return a record of an epoch."""
    return {
        "kind": "epoch",
        "step": round(10 * number),
        "progress": number,
        "epoch": number,
        "train": {"samples": 640.0, "loss": 1.5},
        "val": {"samples": 100.0, "bad": 0.0, "loss": 1.0, metric: value},
        "images_per_second": 1000.0,
        "data_wait": 0.3,
        "shares": SHARES,
        "seconds": 10.0,
    }


def write_run(
    folder: Path,
    *,
    accuracies: Sequence[float],
    planned: float = 2,
    started: float = 0,
    metric: str = "acc1",
    intervals: int = 2,
    best: dict[str, float] | None = None,
    **settings: Any,
) -> Path:
    """Write the folder of a run with an epoch for each of `accuracies`, and return it."""
    folder.mkdir(parents=True)
    config = Config(**{"arch": "lenet5", "data": "photos", "epochs": planned, **settings})
    (folder / "config.yaml").write_text(to_yaml(config))
    records = []
    for number, value in enumerate(accuracies, 1):
        records += [interval(number - 1 + (i + 1) / intervals, metric) for i in range(intervals)]
        records.append(epoch(number, value, metric))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    session = {
        "started": started,
        "setup_seconds": 4,
        "seconds": 40,
        "images_per_second": 900,
        "best": best or {},
        "bottleneck": "data",
        "verdict": "Bottleneck: data: the loader delivers 900 img/s, the model could process 1,350.",
        "stopped_by": None,
        "reasons": {"batch_size": "64 images"},
        "environment": {"python": "3.12", "torch": "2.14"},
        "device": "cpu",
        "processes": 1,
        "fastcnn": "0.1",
    }
    content = {
        "format": 1,
        "arch": config.arch,
        "data": config.data,
        "metric": metric,
        "epochs": planned,
        "images": {"train": 640, "val": 100, "test": 0},
        "parameters": 61706,
        "sessions": [session],
    }
    (folder / "run.json").write_text(json.dumps(content))
    return folder
