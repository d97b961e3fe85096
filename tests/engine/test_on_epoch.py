"""`fastcnn.fit(on_epoch=...)` and `Result.history`."""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcnn
from ranks import run_ranks
from runs import QUICK_SETTINGS, records

SETTINGS: dict[str, Any] = {
    "arch": "lenet5",
    "data_backend": "torch",
    "lr": 0.05,
    "warmup_epochs": 0,
    "sched": "constant",
    **QUICK_SETTINGS,
    "output_dir": "run",
    "tracker": "none",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_core: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastcnn.engine.logger.Logger._draw", lambda self: None)


def test_true_stops_the_run_which_is_saved_and_can_be_resumed(demo, capsys):
    start = time.perf_counter()
    seen: list[dict[str, Any]] = []

    def stop_after_two(epoch: dict[str, Any]) -> bool:
        seen.append(epoch)
        assert Path("run/last.pt").exists()
        return len(seen) == 2

    result = fastcnn.fit(**SETTINGS, data=demo, epochs=4, checkpoint_interval=4, on_epoch=stop_after_two)
    wall = time.perf_counter() - start
    assert seen == result.history
    assert seen == records(Path("run"), "epoch")
    assert [epoch["epoch"] for epoch in seen] == [1, 2]
    assert result.stopped_by is None
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("best acc1 ")
    total = re.search(r", total time (\d+):(\d\d), run$", last)
    assert total is not None
    minutes, seconds = total.groups()
    assert result.seconds <= 60 * int(minutes) + int(seconds) + 0.5 <= wall + 1
    assert torch.load("run/last.pt")["epoch"] == 2
    best = torch.load("run/best.pt")["weights"]
    assert all(torch.equal(value, best[name]) for name, value in result.network.state_dict().items())

    resumed = fastcnn.fit(resume="run/last.pt", output_dir="run", data=demo, epochs=3)
    assert resumed.history == records(Path("run"), "epoch")
    assert [epoch["epoch"] for epoch in resumed.history] == [1, 2, 3]


class Pruned(Exception):
    """An error of the user's."""


class Stubborn(Exception):
    """An error that cannot be pickled."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}", lambda: code)


def prune(epoch: dict[str, Any]) -> None:
    epoch["val"].clear()  # a copy
    raise Pruned(f"epoch {epoch['epoch']}")


def refuse(epoch: dict[str, Any]) -> None:
    raise Stubborn(7)


def test_an_error_ends_the_run_with_its_traceback_after_the_save(demo):
    with pytest.raises(Pruned, match="epoch 1") as caught:
        fastcnn.fit(**SETTINGS, data=demo, epochs=2, on_epoch=prune)
    assert caught.traceback[-1].name == "prune"
    assert torch.load("run/last.pt")["epoch"] == 1
    assert records(Path("run"), "epoch")[0]["val"]["samples"] == 50


# Two ranks


def two_ranks(folder: str, data: str) -> list[Any]:
    """Stop by a result, then by two errors; return calls, histories and tracebacks of this rank."""
    os.chdir(folder)
    calls: list[float] = []
    settings = {**SETTINGS, "data": data, "epochs": 2, "batch_size": 8}

    def stop(epoch: dict[str, Any]) -> bool:
        calls.append(epoch["epoch"])
        return True

    result = fastcnn.fit(**settings, on_epoch=stop)
    texts = []
    for name, function in (("pruned", prune), ("refused", refuse)):
        try:
            fastcnn.fit(**{**settings, "output_dir": name}, on_epoch=function)
        except Exception as error:
            texts.append((type(error).__name__, "".join(traceback.format_exception(error))))
    return [calls, json.dumps(result.history), texts]


@pytest.mark.slow
def test_rank_0_calls_it_and_all_ranks_follow(tmp_path, demo):
    first, second = run_ranks(two_ranks, str(tmp_path), str(demo))
    assert (first[0], second[0]) == ([1], [])
    assert first[1] == second[1]
    assert json.loads(first[1]) == records(tmp_path / "run", "epoch")
    assert [name for name, _ in first[2]] == ["Pruned", "Stubborn"]
    assert [name for name, _ in second[2]] == ["Pruned", "RuntimeError"]
    for rank in (first, second):
        for (_, text), line in zip(rank[2], ("in prune", "in refuse")):
            assert line in text
