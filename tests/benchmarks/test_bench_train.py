"""benchmarks/bench_train.py: which sides are measured where; with workers that take no time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import bench_train
from fastcnn.bench.worker import WorkerLimitError
from fastcnn.runtime import machine
from fastcnn.setup import cpu_trials
from sizes import Train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the sides of a GPU are others")
IN_BF16 = {"torchvision AMP", "careful eager", "timm"}


class FakeWorker:
    """Takes a second a turn; the side of torchvision's recipe takes too long to start."""

    slow = False

    def __init__(self, build: Any, device: torch.device, limit: float | None = None) -> None:
        assert limit == bench_train.LIMIT
        if self.slow and build.func is bench_train.torchvision_amp:
            raise WorkerLimitError(f"took longer than {limit:g} s")
        self.start = SimpleNamespace(first_seconds=[1.0], losses=[2.0], peak_bytes=None)

    def turn(self, calls: int) -> float:
        return 1.0

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(bench_train, "Worker", FakeWorker)
    monkeypatch.setattr(
        cpu_trials, "probe_arithmetic", lambda *_: (cpu_trials.Arithmetic("fp32", True), "fastest")
    )
    bench_train.measure.cache_clear()
    yield lambda: bench_train.measure(Train("resnet18", 32, 2), quick=True)
    bench_train.measure.cache_clear()


def test_with_bf16_every_side_of_the_cpu_is_measured(measured, with_bf16):
    found = measured()
    assert set(found.left_out) == {bench_train.COMPILED, bench_train.RECORDED}
    assert IN_BF16 <= set(found.seconds)


def test_without_bf16_the_sides_in_it_are_left_out(measured, without_bf16):
    found = measured()
    assert {side for side, why in found.left_out.items() if why == machine.NO_BF16} == IN_BF16
    assert set(found.seconds) == {bench_train.BASELINE, bench_train.OURS}


def test_a_side_that_takes_too_long_is_left_out_and_the_others_are_measured(measured, with_bf16, monkeypatch):
    monkeypatch.setattr(FakeWorker, "slow", True)
    found = measured()
    assert found.left_out["torchvision AMP"] == f"failed: took longer than {bench_train.LIMIT:g} s"
    assert {"careful eager", bench_train.OURS} <= set(found.seconds)
