"""Stops by a signal or a lost rank outside of log lines: nothing that was trained is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcnn.engine import evaluate, loop
from fastcnn.errors import PeerLostError
from fastcnn.runtime import distributed
from runs import QUICK, records

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
FLAGS = (*QUICK, "--epochs", "3", "--val-interval", "2", "--deterministic", "--lr", "0.01")
FLAGS += ("--log-interval", "2")


@pytest.fixture
def at_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Return a function that calls another one at a validation batch, counted from 1 over the whole run."""

    def arrange(number: int, act: Callable[[], None]) -> None:
        real, batches = evaluate.evaluate_batch, []

        def evaluate_batch(*args: Any) -> object:
            batches.append(1)
            if len(batches) == number:
                act()
            return real(*args)

        monkeypatch.setattr(evaluate, "evaluate_batch", evaluate_batch)

    return arrange


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def check_equal(first: str, second: str) -> None:
    """Check that two runs ended in the same state and wrote the same epochs."""
    contents = [torch.load(Path(folder) / "last.pt") for folder in (first, second)]
    assert [content["step"] for content in contents] == [contents[0]["step"]] * 2
    for name, tensor in contents[0]["model"].items():
        assert torch.equal(tensor, contents[1]["model"][name]), name
    epochs = [
        [(record["epoch"], record["train"], record.get("val")) for record in records(Path(folder), "epoch")]
        for folder in (first, second)
    ]
    assert epochs[0] == epochs[1]


def test_a_signal_in_a_validation_breaks_it_off_until_the_resume(train, demo, at_batch):
    flags = (*FLAGS, "--data", demo)
    assert train(*flags, "--output-dir", "whole") == 0
    at_batch(2, stop)
    assert train(*flags, "--output-dir", "run") == 143
    assert [record["epoch"] for record in records(Path("run"), "epoch")] == [1]
    assert train(*flags, "--output-dir", "run", "--resume") == 0
    check_equal("whole", "run")


def test_a_signal_in_the_validation_of_the_average_leaves_it_to_the_resume(train, demo, at_batch):
    flags = (*FLAGS, "--data", demo, "--average-last", "2")
    assert train(*flags, "--output-dir", "whole") == 0
    batches = 3 * -(-len(list(demo.glob("val/*/*.jpg"))) // 16)
    at_batch(batches, stop)
    assert train(*flags, "--output-dir", "run") == 143
    assert not Path("run/average.pt").exists()
    assert train(*flags, "--output-dir", "run", "--resume") == 0
    averages = [torch.load(Path(folder) / "average.pt")["model"] for folder in ("whole", "run")]
    assert all(torch.equal(tensor, averages[1][name]) for name, tensor in averages[0].items())


class Lost:
    """Heartbeats of a run that loses a rank."""

    def __init__(self) -> None:
        self.lost = False

    def check(self) -> None:
        if self.lost:
            raise PeerLostError("rank 3 on node7 has not answered for 60 s")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Lost:
    """Return the heartbeats of this process, which ends without cleanup when a rank is lost."""
    lost = Lost()

    @contextlib.contextmanager
    def process_group(*_: object) -> Iterator[Lost]:
        yield lost

    def end_at_once(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(distributed, "process_group", process_group)
    monkeypatch.setattr("fastcnn.train.end_at_once", end_at_once)
    return lost


@pytest.mark.parametrize("where", ["step", "validation"])
def test_rank_0_saves_after_a_loss_if_it_is_not_in_a_collective(
    train, demo, peers, at_batch, monkeypatch, capsys, wording, where
):
    flags = (*FLAGS, "--data", demo)
    assert train(*flags, "--output-dir", "whole") == 0

    def lose() -> None:
        peers.lost = True

    if where == "validation":
        at_batch(2, lose)
    else:
        real, epochs = loop.train_epoch, []

        def train_epoch(*args: Any, **settings: Any) -> bool:
            epochs.append(1)
            peers.lost = len(epochs) == 2  # in its first step
            return real(*args, **settings)

        monkeypatch.setattr(loop, "train_epoch", train_epoch)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train(*flags, "--output-dir", "run", "--checkpoint-interval", "10")
    assert ended.value.code == 3
    wording(capsys.readouterr().err)
    steps = torch.load("whole/last.pt")["steps_per_epoch"]
    assert torch.load("run/last.pt")["step"] == (2 * steps if where == "validation" else steps + 1)
    peers.lost = False
    assert train(*flags, "--output-dir", "run", "--resume") == 0
    check_equal("whole", "run")
