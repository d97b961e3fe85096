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
    ticks = itertools.accumulate(itertools.chain([0.0, 0.0], spans[:1], itertools.cycle(spans[2:] + [0.0])))
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


FP32 = machine.Arithmetic("fp32", True)


def probe_compile(monkeypatch, steps: int, eager: float, compiled: float, first: float, fails: bool = False):
    """The choice where steps take so long on a clock that only they move."""
    now = [0.0]

    def trial(model, images, way, clock):
        taken = eager if isinstance(model, nn.Module) else first if not model else compiled
        if not isinstance(model, nn.Module):
            if fails:
                raise RuntimeError("no compiler\nmore")
            model.append("called")
        now[0] += taken
        return taken

    monkeypatch.setattr(machine, "_trial_step", trial)
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: [])
    return machine.probe_compile(NETWORK, 8, 3, 4, FP32, steps)


@pytest.mark.parametrize(
    ("case", "chosen", "word"),
    [
        ({"steps": 10_000, "eager": 0.3, "compiled": 0.1, "first": 60}, False, "less than an hour"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.2, "first": 60}, True, "200 ms a step, 300 without"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.29, "first": 60}, False, "290 ms"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.2, "first": 9000}, False, "after 9000 s"),
        ({"steps": 20_000, "eager": 0.3, "compiled": 0.2, "first": 60, "fails": True}, False, "no compiler"),
    ],
)
def test_compilation_is_tried_in_long_runs_and_kept_where_it_pays_off(monkeypatch, case, chosen, word):
    choice, why = probe_compile(monkeypatch, **case)
    assert choice is chosen
    assert word in why
    assert "\n" not in why


@pytest.mark.slow
def test_a_compiled_trial_runs(monkeypatch):
    monkeypatch.setattr(machine, "WORTH_COMPILING", 0)
    choice, why = machine.probe_compile(NETWORK, 8, 3, 4, FP32, steps=1)
    assert choice is False  # a step never wins seconds back
    assert "without, after" in why


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
counts = [faults() for _ in range(6)]  # the first ones find the place
assert counts[-1] - counts[2] < 1000, counts  # of three times 16,384 pages
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
