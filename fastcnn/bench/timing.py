"""What measures: calls timed in turn in one process, and the machine they ran on.

For the scripts under benchmarks/.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastcnn.runtime.environment import environment, machine_name


def wait_for(device: torch.device) -> None:
    """Until the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(turns: Mapping[str, Callable[[], float]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """What each of `turns` returns, round by round; the order turns by one from round to round."""
    names = list(turns)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            value = turns[name]()
            if number >= 0:
                found[name].append(value)
    return found


def time_in_turn(
    sides: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    device: torch.device,
    calls: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call: the sides take turns in every round, so that noise and heat meet all alike.

    Args:
        sides: a name and what to call; the order turns by one from round to round.
        rounds: timed turns of each side.
        warmup: turns of each side before.
        calls: calls in a turn, timed together; the device is waited for at its end.
        before: called before each turn, untimed: a barrier, where processes take turns together.
    """

    def turn(call: Callable[[], object]) -> float:
        before()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait_for(device)
        return (time.perf_counter() - start) / calls

    gc.collect()
    return in_turn({name: partial(turn, call) for name, call in sides.items()}, rounds, warmup)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in seconds."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high, "repeats": len(seconds)}


@dataclass
class Comparison:
    """Sides that did the same work in turn."""

    what: str
    """For a file's name too, such as "train-resnet50-64px-batch32"."""
    baseline: str
    """The side that the others are compared with."""
    seconds: dict[str, list[float]]
    """Of the calls of each side, round by round."""
    device: torch.device
    work: float = 1
    """What a call does, in `unit`s."""
    unit: str = "img"
    settings: dict[str, Any] = field(default_factory=dict)
    """Sizes, dtype, layout, warm-up: what the figures depend on."""
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What else was found of a side: its dtype, peak memory, difference from the baseline."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Sides that cannot be measured here, and why."""

    def speedups(self, name: str) -> list[float]:
        """Times the baseline."""
        return ratios(self.seconds[self.baseline], self.seconds[name])

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "environment": environment(self.device),
            "settings": self.settings,
            "baseline": self.baseline,
            "work": self.work,
            "unit": self.unit,
            "sides": {
                name: {
                    "seconds": summary(values),
                    "per_second": self.work / statistics.median(values),
                    "speedup": summary(self.speedups(name)),
                    **self.sides.get(name, {}),
                }
                for name, values in self.seconds.items()
            },
            "left_out": self.left_out,
        }


def ratios(first: list[float], second: list[float]) -> list[float]:
    """The first over the second, round by round, since neighbouring turns see the same machine."""
    return [a / b for a, b in zip(first, second)]


def spread(values: dict[str, float]) -> str:
    """A `summary` of ratios for people: the median and, in brackets, the quartiles."""
    return f"{values['median']:.2f} ({values['quartile_1']:.2f} to {values['quartile_3']:.2f})"


def results_file(folder: Path, name: str, output: str | None, device: torch.device) -> Path:
    """`output` if it is told, else the file for this machine under the results of the scripts in `folder`."""
    return Path(output or folder / "results" / machine_name(device) / f"{name}.json")


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def same_code(then: str, now: str, *paths: str) -> bool:
    """Whether two commits, as files of results name them, have the same files at `paths`.

    Args:
        paths: git's pathspecs, from the repository's root.
    """
    if not then or not now or then.endswith("+") or now.endswith("+"):
        return False  # of files that no commit has
    if then == now:
        return True
    git = "git", "-C", str(Path(__file__).parents[2]), "diff", "--quiet", then, now, "--", *paths
    try:  # 1: they differ; 128: there is no such commit here
        return subprocess.run(git, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
