"""benchmarks/counts.py: what a step dispatches, allocates, waits for and compiles changes on purpose only."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import counts

CASES = {str(case): case for case in counts.CASES}


@pytest.mark.gate
def test_a_step_of_lenet5_dispatches_and_allocates_what_it_did():
    versions, known = counts.version("torch"), counts.read(counts.FILE)
    other = counts.nearest(versions, list(known))
    assert other is not None
    before, now = known[other]["lenet5 float32"], counts.step_counts(CASES["lenet5 float32"])
    of_a_step = {"lenet5": {name: before[name] for name in now}}
    assert counts.compare(versions, of_a_step, {"lenet5": now}, exact=other == versions) == []
    assert now["waits"] == 0


def test_what_is_supported_is_recorded_and_waits_for_nothing():
    known = counts.read(counts.FILE)
    assert {"torch 2.11", "torch 2.14", "torch 2.15", "triton 3.6", "triton 3.8", "triton 3.9"} <= set(known)
    for versions, found in known.items():
        for what in found.values():
            if versions.startswith("torch"):
                assert what["waits"] == what["recompilations"] == what["graph breaks"] == 0
                assert what["graphs"] == 2  # one for training, one for validation
            else:
                assert what["spilled"] == 0


@pytest.mark.gate
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_counts_are_what_they_were(capsys):
    assert counts.main(["--check"]) == 0, capsys.readouterr().out


def test_operators_and_memory_of_their_own_are_counted():
    x = torch.zeros(100, 10)

    def step() -> None:
        y = x + 1  # 4000 bytes
        y[0].mul_(2)  # a view, and in place
        y.t().sum(0)  # 400 bytes

    assert counts.counted(step) == {"operators": 5, "tensors": 2, "bytes": 4400, "waits": 0}


def test_the_backward_pass_is_counted_too():
    x = torch.zeros(8, requires_grad=True)
    forward = counts.counted(lambda: x.exp())
    both = counts.counted(lambda: torch.autograd.grad(x.exp(), x, torch.ones(8)))
    assert both["operators"] > forward["operators"] + 1


@pytest.mark.parametrize(
    "wait",
    [Tensor.item, bool, float, int, Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.nonzero, Tensor.unique],
    ids=lambda wait: wait.__name__,
)
def test_what_waits_for_a_gpu_is_counted(wait):
    assert counts.counted(lambda: wait(torch.ones(1)))["waits"] == 1


def test_every_difference_is_a_line(tmp_path, capsys):
    before: counts.Found = {
        "torch 2.15": {"a": {"operators": 5, "bytes": 8}, "gone": {"waits": 0}},
        "torch 2.11": {},
    }
    now: counts.Found = {"torch 2.15": {"a": {"operators": 6, "bytes": 8}, "new": {"waits": 1}}}
    path = tmp_path / "counts.json"
    assert counts.check(before, now, path) == 1
    assert capsys.readouterr().out.splitlines() == [
        "torch 2.15, a: operators 5 before, 6 now",
        "torch 2.15, gone: waits 0 before, nothing now",
        "torch 2.15, new: waits nothing before, 1 now",
    ]
    assert counts.check(before, {"torch 2.15": before["torch 2.15"]}, path) == 0
    assert capsys.readouterr().out == "torch 2.15: unchanged\n"


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ("torch 2.11", "torch 2.11"),
        ("torch 2.12", "torch 2.11"),
        ("torch 2.13", "torch 2.15"),  # as near as 2.11, and newer
        ("torch 2.16", "torch 2.15"),
        ("triton 3.7", "triton 3.6"),
        ("jax 1.0", None),
    ],
)
def test_the_nearest_recorded_version_is_of_the_same_library(versions, expected):
    assert counts.nearest(versions, ["torch 2.11", "torch 2.15", "triton 3.6"]) == expected


@pytest.mark.parametrize(
    ("now", "wrong"),
    [
        ({"operators": 110, "waits": 0}, None),
        ({"operators": 90, "waits": 0}, None),
        ({"operators": 111, "waits": 0}, "operators 100 before, 111 now"),
        ({"operators": 100, "waits": 1}, "waits 0 before, 1 now"),
        ({"operators": 100, "spilled": 4}, "spilled nothing before, 4 now"),
    ],
)
def test_other_versions_are_compared_with_the_nearest_which_is_said(tmp_path, capsys, now, wrong):
    before: counts.Found = {"torch 2.15": {"a": {"operators": 100, "waits": 0}}}
    path = tmp_path / "counts.json"
    assert counts.check(before, {"torch 2.14": {"a": now}}, path) == (wrong is not None)
    said, line = capsys.readouterr().out.splitlines()
    assert said.startswith(f"torch 2.14: not in {path} (")
    assert said.endswith("; compared with torch 2.15")
    assert line == (f"torch 2.14, a: {wrong}" if wrong else "torch 2.14: within bounds")


def test_what_is_not_counted_any_more_fails_the_check_of_other_versions_too(tmp_path, capsys):
    before: counts.Found = {"torch 2.15": {"a": {"waits": 0}, "b": {"waits": 0}}, "triton 3.9": {}}
    path = tmp_path / "counts.json"
    assert counts.check(before, {"torch 2.14": {"a": {"waits": 0}, "c": {"waits": 0}}}, path) == 1
    assert capsys.readouterr().out.splitlines()[2:] == [
        "torch 2.14, b: counted before, nothing now",
        "torch 2.14, c: nothing before, counted now",
    ]
    assert counts.check(before, {"torch 2.15": before["torch 2.15"]}, path) == 1
    assert capsys.readouterr().out.splitlines()[0] == "triton: nothing was counted; install it"


def test_a_library_that_was_never_counted_fails_the_check(tmp_path, capsys):
    assert counts.check({"torch 2.15": {}}, {"triton 4.0": {}}, tmp_path / "counts.json") == 1
    assert "triton 4.0: " in capsys.readouterr().out


def test_figures_of_other_versions_stay_in_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"torch 2.11": {"a": {"bytes": 1}}, "torch 2.15": {"a": {"bytes": 2}}}))
    monkeypatch.setattr(counts, "measure", lambda: {"torch 2.15": {"a": {"bytes": 3}}})
    assert counts.main(["--check", "--file", str(path)]) == 1
    assert counts.main(["--file", str(path)]) == 0
    assert json.loads(path.read_text()) == {
        "torch 2.11": {"a": {"bytes": 1}},
        "torch 2.15": {"a": {"bytes": 3}},
    }
    assert counts.main(["--check", "--file", str(path)]) == 0
    assert "torch 2.15, a: bytes 2 before, 3 now" in capsys.readouterr().out
