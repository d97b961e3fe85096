"""A training that reports the time of each stage and ends after its first step, for bench_startup.py.

    python benchmarks/startup_stages.py $(date +%s.%N) --arch lenet5 --log-interval 1

Prints a line of JSON: the seconds of each stage; the first argument is the time of the start. The functions
of fastcnn are wrapped, so training itself needs no clock.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

STAGES = {
    "data": ("fastcnn.setup.observe", "open_data"),
    "loader probe": ("fastcnn.setup.plan", "choose_backend"),
    "arithmetic probe": ("fastcnn.setup.plan", "probe_arithmetic"),
    "first step": ("fastcnn.engine.loop", "train_epoch"),
}
"""Stages and the functions that they time; the stage "imports" ends where the plan is made."""


def wrapped(call: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Wrap `call` so that its time is added to `seconds[stage]`."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start

    return timed


def finished(seconds: dict[str, float], total: float) -> dict[str, float]:
    """Add the stage "other", so that the sum is `total`."""
    return {**seconds, "other": total - sum(seconds.values())}


class FirstStep(Exception):
    """The first step is done."""


def main(started: float, flags: list[str]) -> None:
    from fastcnn import train
    from fastcnn.config.parse import parse

    config = parse(flags, "startup_stages.py")
    for module in ("torch", "fastcnn.setup.build", "fastcnn.engine.loop"):
        importlib.import_module(module)
    seconds = {"imports": time.time() - started}
    for stage, (module, name) in STAGES.items():
        owner = importlib.import_module(module)
        setattr(owner, name, wrapped(getattr(owner, name), stage, seconds))
    logger = importlib.import_module("fastcnn.engine.logger").Logger

    def log_steps(*_: Any) -> None:
        raise FirstStep

    logger.log_steps = log_steps
    try:
        train.fit(config)
    except FirstStep:
        print(json.dumps(finished(seconds, time.time() - started)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
