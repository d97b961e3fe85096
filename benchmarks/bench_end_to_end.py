"""A whole training against its two halves: the loader alone and the step alone, in turn in one process.

    python -m pytest benchmarks/bench_end_to_end.py
    python -m pytest benchmarks/bench_end_to_end.py --data /data/photos

The baseline is the sum of both, a lower bound of training where loader and step share the processor's cores.
"together" times `fastcnn.engine.epoch.train_epoch` as a whole; on a GPU the halves overlap, so it may be
faster. A turn is an epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
from functools import partial
from typing import NamedTuple

import pytest

from comparison import Comparison
from fastcnn.bench import timing
from fastcnn.config import Config
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.epoch import Callbacks, train_epoch
from fastcnn.engine.state import TrainState
from fastcnn.engine.step import train_step
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.setup.build import build
from fastcnn.setup.plan import make_plan
from fastcnn.tasks.classification import Classification

BASELINE, TOGETHER = "one after the other", "together"
MEASURED = ("loader alone", "step alone", TOGETHER)
SIDES = (BASELINE, *MEASURED)


class Row(NamedTuple):
    arch: str
    backend: str

    def __str__(self) -> str:
        return f"{self.arch}-{self.backend}"


ROWS = (Row("lenet5", "dali"), Row("lenet5", "torch"), Row("lenet5", "cached"), Row("resnet18", "dali"))
WITH_DATA = (Row("resnet18", "dali"), Row("resnet18", "torch"), Row("resnet50", "dali"))
"""Rows for --data, at 64 px."""
DEVICE = choose_device("auto", Ranks())


def load(loader: Loader) -> Batch:
    for batch in loader:
        last = batch
    timing.wait_for(DEVICE)
    return last


def compute(state: TrainState, task: Classification, batch: Batch, steps: int) -> None:
    metrics = task.metrics(DEVICE)
    state.train_model.train()
    for _ in range(steps):
        train_step(state, task, [batch], metrics)
    timing.wait_for(DEVICE)


def train(state: TrainState, task: Classification, loader: Loader) -> None:
    metrics = task.metrics(DEVICE)
    callbacks = Callbacks(on_log=lambda interval: False)
    train_epoch(state, task, loader, metrics, log_interval=10, callbacks=callbacks)
    timing.wait_for(DEVICE)


@functools.cache
def measure(row: Row, data: str | None, *, quick: bool) -> Comparison:
    ranks = Ranks()
    user_config = Config(arch=row.arch, data_backend=row.backend, output_dir="unused")  # type: ignore[arg-type]
    if data is not None:
        user_config = dataclasses.replace(user_config, data=data, val_split=0.1, img_size=64)
    plan = make_plan(user_config, ranks, DEVICE)
    state, loader, val_loader = build(plan, ranks, DEVICE)
    task, steps = Classification(int(plan.config.num_classes)), len(loader)
    epoch = 0
    batches: list[Batch] = []  # the last batch that was loaded

    def turn(name: str) -> float:
        nonlocal epoch
        if name != "step alone":
            epoch += 1
            loader.set_epoch(epoch)
        gc.collect()
        time.sleep(0.2)  # let prefetching finish
        start = time.perf_counter()
        if name == "loader alone":
            batches[:] = [load(loader)]
        elif name == "step alone":
            compute(state, task, batches[0], steps)
        else:
            train(state, task, loader)
        return time.perf_counter() - start

    seconds = timing.in_turn({name: partial(turn, name) for name in MEASURED}, 3 if quick else 7, warmup=1)
    both = zip(seconds["loader alone"], seconds["step alone"])
    seconds = {BASELINE: [load + step for load, step in both], **seconds}
    loader.close()
    val_loader.close()
    config = plan.config
    chosen = {name: getattr(config, name) for name in ("amp_dtype", "channels_last", "compile", "workers")}
    return Comparison(
        what=f"end-to-end-{row}-{plan.source.name}-{config.img_size}px",
        baseline=BASELINE,
        seconds=seconds,
        device=DEVICE,
        work=steps * int(config.batch_size),
        settings={**row._asdict(), "batch_size": config.batch_size, "img_size": config.img_size, **chosen},
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = WITH_DATA if metafunc.config.getoption("--data") else ROWS
    metafunc.parametrize("row", rows, ids=str)
    metafunc.parametrize("side", SIDES)


def test_training(row, side, *, quick, save, play, pytestconfig):
    comparison = measure(row, pytestconfig.getoption("--data"), quick=quick)
    save(comparison)
    play(comparison, side)
