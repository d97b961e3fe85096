"""Signals and kills of whole runs, from the start of the process on.

python -m pytest -m slow tests/faults/test_processes.py -s
SIGNALS=100 KILLS=30 python -m pytest -m slow tests/faults/test_processes.py -s
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import Launch, alone, by_torchrun, check_equal, check_whole

SIGNALS = int(os.environ.get("SIGNALS", "2"))
"""For one process, and for two."""
KILLS = int(os.environ.get("KILLS", "2"))
RESTARTS = 5
"""Of torchrun; as many kills in one run at most."""
EPOCHS, LONGER = 6, 30
SECONDS = 30
"""In which a run has to end after a signal."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc"),
]
Start = Callable[[Path, Path, int], Launch]


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory) -> dict[Start, tuple[Path, float]]:
    """Return an uninterrupted run of each kind, and its seconds."""
    runs: dict[Start, tuple[Path, float]] = {}
    for start in (alone, by_torchrun):
        folder = tmp_path_factory.mktemp(start.__name__)
        with start(folder, demo, EPOCHS) as run:
            assert run.wait(300) == 0, run.text()
            runs[start] = folder, time.monotonic() - run.begin
    return runs


@pytest.mark.parametrize("start", [alone, by_torchrun])
def test_a_signal_at_any_instant_ends_a_run_which_then_goes_on(tmp_path, demo, whole, start):
    uninterrupted, seconds = whole[start]
    instants = random.Random(f"{start.__name__} {SIGNALS}")
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for i in range(SIGNALS):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        instant = instants.uniform(0, 0.95 * seconds)
        folder = tmp_path / f"{i}-{number.name}-{instant:.2f}"
        with start(folder, demo, EPOCHS) as run:
            time.sleep(instant)
            # A terminal sends Ctrl-C to all processes; a scheduler sends SIGTERM to the first.
            (os.killpg if number == signal.SIGINT else os.kill)(run.process.pid, number)
            begin = time.monotonic()
            status = run.wait(SECONDS)
            slowest = max(slowest, time.monotonic() - begin)
            check_end(run, start, number, status)
            outcomes[f"{number.name} {status}"] += 1
        check_whole_or_locked(folder)
        with start(folder, demo, EPOCHS) as run:
            assert run.wait(300) == 0, run.text()
        check_whole(folder)
        check_equal(folder, uninterrupted)
    print(f"\n{start.__name__}: {SIGNALS} signals, slowest end {slowest:.1f} s, statuses {dict(outcomes)}")


def check_end(run: Launch, start: Start, number: signal.Signals, status: int) -> None:
    """Check status and output of a run after a signal; it may have ended before."""
    text = run.text()
    ended = {0, -number, 128 + number}
    assert status in (ended | {1} if start is by_torchrun else ended), (status, text)  # 1: torchrun's own
    assert not re.search(r'File "[^"]*fastcnn/', text), text


def check_whole_or_locked(folder: Path) -> None:
    """Check that a stopped run left no partial file; one that ended before its training leaves its lock."""
    left = [path.name for path in (folder / "run").glob(".*")]
    assert set(left) <= {".lock"}, left


def test_a_killed_rank_restarts_until_the_run_ends_in_the_same_bits(tmp_path, demo):
    with by_torchrun(tmp_path / "whole", demo, LONGER) as run:
        assert run.wait(300) == 0, run.text()
        seconds = time.monotonic() - run.begin
    instants = random.Random(f"kills {KILLS}")
    killed: Counter[int] = Counter()
    runs = 0
    while killed.total() < KILLS:
        folder = tmp_path / str(runs)
        runs += 1
        with by_torchrun(folder, demo, LONGER, max_restarts=RESTARTS) as run:
            for _ in range(min(RESTARTS, KILLS - killed.total())):
                rank, before = instants.randrange(2), time.monotonic()
                while run.worker(rank) is None and time.monotonic() < before + SECONDS:
                    time.sleep(0.02)
                time.sleep(instants.uniform(0, 0.7) * seconds)
                pid = run.worker(rank)
                if pid is not None:  # else the run has ended
                    os.kill(pid, signal.SIGKILL)
                    killed[rank] += 1
            assert run.wait(300) == 0, run.text()
        check_whole(folder)
        check_equal(folder, tmp_path / "whole")
    print(f"\n{killed.total()} ranks killed ({dict(killed)}) in {runs} runs: all ended in the same weights")


def test_workers_end_with_torchrun_and_the_run_goes_on(tmp_path, demo, whole):
    uninterrupted, _ = whole[by_torchrun]
    with by_torchrun(tmp_path, demo, 1000) as run:
        run.wait_for(lambda: (tmp_path / "run" / "last.pt").exists())
        run.process.kill()
        run.wait(15)
    check_whole_or_locked(tmp_path)
    (tmp_path / "run").rename(tmp_path / "another")
    with by_torchrun(tmp_path, demo, EPOCHS) as run:
        run.wait_for(lambda: (tmp_path / "run" / "last.pt").exists())
        for pid in run.running():  # of all at once
            os.kill(pid, signal.SIGKILL)
        run.wait(5)
    with by_torchrun(tmp_path, demo, EPOCHS) as run:
        assert run.wait(300) == 0, run.text()
        assert "took over the lock of run from process " in run.text()
    check_equal(tmp_path, uninterrupted)
