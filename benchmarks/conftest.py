"""Options and fixtures of the benchmarks.

    python -m pytest benchmarks                        # all, about an hour
    python -m pytest benchmarks/bench_train.py -k resnet50
    python -m pytest benchmarks --quick                # a minute each; nothing is written

pytest-benchmark times one function after the other, so a machine that changes its speed favors one of them.
Here all sides of a comparison are timed in turn first, and the measured times are replayed to
pytest-benchmark: it prints its table, and its flags, such as --benchmark-json, work. Each comparison is
written as JSON under benchmarks/results/MACHINE/. The reasons for skipped sides are printed at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from comparison import Comparison
from fastcnn.bench import timing
from fastcnn.runtime import environment

ROW_LIMIT = 20 * 60
"""Time limit in seconds of a row on a CPU; the other rows go on after a failure."""


class Playback:
    """A timer that replays measured times: each round begins at 0 and ends at its seconds."""

    def __init__(self) -> None:
        self.readings: list[float] = []

    def load(self, seconds: list[float]) -> None:
        self.readings = [reading for value in seconds for reading in (0.0, value)]

    def __call__(self) -> float:
        return self.readings.pop(0)


CLOCK = Playback()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcnn benchmarks")
    group.addoption("--quick", action="store_true", help="few rounds and small sizes; nothing is written")
    group.addoption("--results", metavar="FOLDER", help="write the JSON files there")
    group.addoption("--data", metavar="FOLDER", help="images for bench_loader.py (the demo set)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        row = item.callspec.params.get("row") if hasattr(item, "callspec") else None
        item.add_marker(pytest.mark.benchmark(timer=CLOCK, group=None if row is None else str(row)))
        item.add_marker(pytest.mark.timeout(0 if torch.cuda.is_available() else ROW_LIMIT))


FAILED: set[tuple[str, str]] = set()
"""Failed rows, by file. All sides of a row are measured together, so the others are not measured again."""


def _row_of(item: pytest.Item) -> tuple[str, str] | None:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return (item.path.name, str(params["row"])) if "row" in params else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    row = _row_of(item)
    if row in FAILED:
        pytest.fail(f"{row[1]}: failed with another side", pytrace=False)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    row = _row_of(item)
    if row is not None and call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        FAILED.add(row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report.longrepr for report in terminalreporter.getreports("skipped")]
    for reason in dict.fromkeys(why[2] for why in skipped if isinstance(why, tuple)):
        terminalreporter.write_line(reason)


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def save(request: pytest.FixtureRequest, *, quick: bool) -> Callable[[Comparison], None]:
    """A function that writes a comparison, except with --quick and without --results."""
    folder = request.config.getoption("--results")

    def write(comparison: Comparison) -> None:
        if folder or not quick:
            root = Path(folder) if folder else Path(__file__).parent / "results"
            path = root / environment.machine_name(comparison.device) / f"{comparison.what}.json"
            timing.write_json(path, comparison.as_json())

    return write


@pytest.fixture
def play(benchmark) -> Callable[[Comparison, str], None]:
    """A function that replays a side's times to pytest-benchmark, or skips a side that was left out."""

    def run(comparison: Comparison, side: str) -> None:
        if side in comparison.left_out:  # such as sides for a GPU; the reason is in the JSON too
            pytest.skip(comparison.left_out[side])
        found = comparison.as_json()["sides"][side]
        CLOCK.load(comparison.seconds[side])
        benchmark.pedantic(lambda: None, rounds=len(comparison.seconds[side]), iterations=1)
        benchmark.extra_info.update(
            {
                f"{comparison.unit} a second": found["per_second"],
                f"times {comparison.baseline}": found["speedup"]["median"],
                **comparison.settings,
                **comparison.sides.get(side, {}),
            }
        )

    return run
