"""Mutated input of every kind, with fixed seeds; `python -m tests.fuzz --minutes 60` tries others."""

from __future__ import annotations

import os
import sys

import pytest

from fuzz_harness import Kind, run
from fuzz_kinds import KINDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bound on memory is Linux's")

FEW = {"predict": 10, "resume": 6, "weights": 8, "masks": 6}
"""Cases of the default run; 12 of all others."""
MANY = {"predict": 200, "resume": 150, "weights": 150, "yaml": 150}
"""Cases of the slow run; 100 of all others."""


@pytest.mark.parametrize("name", KINDS)
def test_mutated_input_is_accepted_or_refused_with_one_line(name):
    outcome = run(KINDS[name], range(FEW.get(name, 12)))
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.accepted + outcome.refused == FEW.get(name, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_much_mutated_input_is_accepted_or_refused_with_one_line(name):
    outcome = run(KINDS[name], range(1000, 1000 + MANY.get(name, 100)))
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.accepted
    assert outcome.refused or name in ("yolo", "voc", "labelme-boxes", "labelme-masks", "masks")


# The harness itself


def broken(check) -> Kind:
    return Kind("broken", lambda folder: (folder / "input").mkdir(), lambda rng: "nothing", check)


def hang() -> None:
    while True:
        pass


def fill() -> None:
    bytearray(4 << 30)


def write_outside() -> None:
    with open("stray", "w"):
        pass


def two_lines() -> None:
    from fastcnn.errors import UserError

    error = UserError("one")
    error.args = ("one\ntwo",)
    raise error


@pytest.mark.parametrize(
    ("check", "named"),
    [
        (hang, "Hang: more than 0.2 s"),
        (fill, "MemoryError"),
        (write_outside, "stray"),
        (two_lines, "not one line"),
        (lambda: next(iter(())), "StopIteration"),
        (lambda: __import__("evil"), "EVIL"),
    ],
)
def test_what_must_not_happen_is_a_failure(monkeypatch, check, named):
    monkeypatch.setattr("fuzz_harness.SECONDS", 0.2)
    before = os.getcwd()
    (failure,) = run(broken(check), range(1)).failures
    assert named in failure
    assert os.getcwd() == before
