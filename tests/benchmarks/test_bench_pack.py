"""benchmarks/bench_pack.py: the same images from a folder and from its shards."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
bench_pack, bench_loader, big_photos, sizes = map(
    importlib.import_module, ("bench_pack", "bench_loader", "big_photos", "sizes")
)


@pytest.mark.slow
def test_a_folder_and_its_shards_are_timed_in_turn(tmp_path, monkeypatch):
    big_photos.write(tmp_path / "photos", 12, grain=4.0, size=(1200, 900))
    load = sizes.Load(32, 4, "random-resized", 8)
    monkeypatch.setitem(sizes.LOAD, "cpu", (load, load))
    for module in (bench_pack, bench_loader):
        monkeypatch.setattr(module, "wait_for_quiet", lambda: None)
    monkeypatch.setattr("fastcnn.runtime.machine.cores_per_process", lambda ranks: 1)
    found = bench_pack.measure(
        tmp_path / "photos", tmp_path / "shards", torch.device("cpu"), rounds=2, share=1.0
    )
    assert set(found.seconds) | set(found.left_out) == set(bench_pack.SIDES)
    assert found.settings["images"] == 12
    size = found.settings["megabytes"]
    assert size["folder"] > size["shards 500 px"] > size["shards 400 px"] > 0
