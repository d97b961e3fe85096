"""Comparisons of sides that do the same work in turn, and the files of their results."""

from __future__ import annotations

import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastcnn.bench import timing
from fastcnn.runtime.environment import environment, machine_name

RESULTS = Path(__file__).parent / "results"


def time_in_turn(
    sides: dict[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    warmup: int,
    calls: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds per call. The sides take turns in every round, so that noise and heat affect all alike.

    Args:
        sides: a callable for each name; the order rotates by one from round to round.
        device: synchronized at the end of each turn.
        rounds: timed turns of each side.
        warmup: untimed turns of each side before.
        calls: calls in a turn, timed together.
        before: called before each turn, untimed: a barrier, where processes take turns together.
    """

    def turn(call: Callable[[], object]) -> float:
        before()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        timing.wait_for(device)
        return (time.perf_counter() - start) / calls

    gc.collect()
    return timing.in_turn({name: partial(turn, call) for name, call in sides.items()}, rounds, warmup)


@dataclass(kw_only=True)
class Comparison:
    """Times of sides that did the same work in turn."""

    what: str
    """Name, also of the file, such as "train-resnet50-64px-batch32"."""
    baseline: str
    """The side that the others are compared with."""
    seconds: dict[str, list[float]]
    """Times of each side's calls, round by round."""
    device: torch.device
    work: float = 1
    """Work of a call, in `unit`s."""
    unit: str = "img"
    settings: dict[str, Any] = field(default_factory=dict)
    """Sizes, dtype, layout, warm-up: all that the figures depend on."""
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further facts of a side: dtype, peak memory, difference from the baseline."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Sides that cannot be measured here, with the reason."""

    def speedups(self, name: str) -> list[float]:
        """Speed relative to the baseline, round by round."""
        return timing.ratios(self.seconds[self.baseline], self.seconds[name])

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
                    "seconds": timing.summary(values),
                    "per_second": self.work / statistics.median(values),
                    "speedup": timing.summary(self.speedups(name)),
                    **self.sides.get(name, {}),
                }
                for name, values in self.seconds.items()
            },
            "left_out": self.left_out,
        }


def results_file(name: str, output: str | None, device: torch.device) -> Path:
    """Path of the results: `output` if given, else the file `name` of this machine."""
    return Path(output or RESULTS / machine_name(device) / f"{name}.json")


def same_code(then: str, now: str, *paths: str) -> bool:
    """True if two commits, as named in files of results, have the same files at `paths`.

    Args:
        paths: git pathspecs, relative to the root of the repository.
    """
    if not then or not now or then.endswith("+") or now.endswith("+"):
        return False  # "+" marks uncommitted changes
    if then == now:
        return True
    git = "git", "-C", str(Path(__file__).parents[1]), "diff", "--quiet", then, now, "--", *paths
    try:  # 1: the files differ; 128: one of the commits is not here
        return subprocess.run(git, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
