"""fastcnn/machine.py: how a network computes on the CPU, and what happens to freed memory."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from fastcnn import machine

NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
WAYS = ["fp32 channels-last", "bf16 channels-last", "fp32 NCHW", "bf16 NCHW"]


def probe(monkeypatch, seconds: dict[str, float], bf16: bool = True, **told):
    """The choice where a step of each way, in the order of WAYS, takes so long."""
    monkeypatch.setattr(machine, "has_fast_bf16", lambda: bf16)
    spans = [0.0, *itertools.chain.from_iterable((0.0, value) for value in seconds.values())]
    ticks = itertools.accumulate(itertools.chain(spans[:1], itertools.cycle(spans[2:] + [0.0])))
    readings = iter(ticks)
    return machine.probe_arithmetic(NETWORK, 8, 3, 4, **told, clock=lambda: next(readings))


@pytest.mark.parametrize("fastest", WAYS)
def test_the_fastest_way_is_chosen_and_the_figures_are_its_reason(monkeypatch, fastest):
    way, why = probe(monkeypatch, {name: 0.020 if name == fastest else 0.030 for name in WAYS})
    assert str(way) == fastest
    assert f"{fastest} 20 ms" in why
    assert all(name in why for name in WAYS)


def test_what_is_as_good_as_the_usual_way_does_not_replace_it(monkeypatch):
    way, _ = probe(monkeypatch, dict(zip(WAYS, (0.100, 0.097, 0.096, 0.099))))
    assert str(way) == "fp32 channels-last"


def test_without_instructions_for_bf16_it_is_not_tried(monkeypatch):
    _, why = probe(monkeypatch, {"fp32 channels-last": 0.02, "fp32 NCHW": 0.03}, bf16=False)
    assert "bf16" not in why
    way, _ = probe(monkeypatch, {}, bf16=False, channels_last="on")
    assert str(way) == "fp32 channels-last"


@pytest.mark.parametrize(
    ("told", "ways"),
    [
        ({"dtype": "bf16"}, ["bf16 channels-last", "bf16 NCHW"]),
        ({"channels_last": "off"}, ["fp32 NCHW", "bf16 NCHW"]),
    ],
)
def test_what_the_user_told_is_not_varied(monkeypatch, told, ways):
    way, why = probe(monkeypatch, {ways[0]: 0.03, ways[1]: 0.02}, **told)
    assert str(way) == ways[1]
    assert [name in why for name in WAYS] == [name in ways for name in WAYS]


def test_the_probe_leaves_the_network_as_it_was(monkeypatch):
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    machine.probe_arithmetic(NETWORK, 8, 3, 4)
    assert all(torch.equal(value, before[name]) for name, value in NETWORK.state_dict().items())
    assert all(p.grad is None and p.is_contiguous() for p in NETWORK.parameters())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again_without_asking_the_system():
    """Blocks of 64 MiB: the default allocator maps each of them anew, page by page."""
    code = """
import resource, torch
from fastcnn import machine
machine.keep_freed_memory()
def faults():
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
before = faults()
assert faults() - before < 1000, faults() - before  # of 16,384 pages
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
