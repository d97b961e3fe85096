"""Interleaved measurement, summaries of times, and JSON files of results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastcnn import files


def wait_for(device: torch.device) -> None:
    """Wait for the device to finish its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(turns: Mapping[str, Callable[[], float]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Results of each callable, round by round; the order rotates by one from round to round."""
    names = list(turns)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            value = turns[name]()
            if number >= 0:
                found[name].append(value)
    return found


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in seconds."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high, "repeats": len(seconds)}


def ratios(first: list[float], second: list[float]) -> list[float]:
    """The first over the second, round by round: turns of one round see the machine in the same state."""
    return [a / b for a, b in zip(first, second)]


def spread(values: dict[str, float]) -> str:
    """Format a `summary` of ratios: the median and, in brackets, the quartiles."""
    return f"{values['median']:.2f} ({values['quartile_1']:.2f} to {values['quartile_3']:.2f})"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; raise WriteError if that fails."""
    files.make_folder(path.parent, "the folder of results")
    files.write_text(path, json.dumps(content, indent=2) + "\n", "the results")
