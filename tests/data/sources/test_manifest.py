"""Facts about files are kept between starts, also those of an interrupted scan."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastcnn.data.sources import manifest
from fastcnn.data.sources.manifest import examine_once, file_stamps, in_threads

COUNT = 300


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "manifests"


def fact(index: int) -> tuple[int, str]:
    return index * index, "odd" if index % 2 else ""


def examined(
    examine: Callable[[int], tuple[int, str]] = fact,
    order: list[int] | None = None,
    slow: int = COUNT,
    stamp: int = 5,
) -> tuple[list[int], dict[int, str]]:
    """Examine files 0 to COUNT, or those of `order`; return the facts and problems."""
    chosen = list(range(COUNT)) if order is None else order
    facts, problems = examine_once(
        "key",
        [f"{i}.jpg" for i in chosen],
        np.full((len(chosen), 2), stamp, dtype=np.int64),
        columns=1,
        examine=lambda i: examine(chosen[i]),
        notice="examining {}",
        slow=slow,
    )
    assert facts.dtype == np.int32
    return facts[:, 0].tolist(), problems


def expected(order: list[int]) -> tuple[list[int], dict[int, str]]:
    return [i * i for i in order], {place: "odd" for place, i in enumerate(order) if i % 2}


def forbidden(index: int) -> tuple[int, str]:
    raise AssertionError(f"{index} is examined again")


def interrupted_at(stop: int, seen: list[int]) -> Callable[[int], tuple[int, str]]:
    """Return facts until the file `stop`, where Ctrl-C comes."""

    def examine(index: int) -> tuple[int, str]:
        if index == stop:
            raise KeyboardInterrupt
        seen.append(index)
        return fact(index)

    return examine


def test_an_interrupted_scan_continues_where_it_was(capsys, wording):
    with pytest.raises(KeyboardInterrupt):
        examined(interrupted_at(250, []), slow=COUNT - 1)
    wording(capsys.readouterr().err.splitlines()[-1])
    again: list[int] = []
    assert examined(interrupted_at(-1, again)) == expected(list(range(COUNT)))
    assert min(again) >= 250 - manifest.PART
    assert 250 in again
    assert examined(forbidden) == expected(list(range(COUNT)))


def test_a_scan_that_is_killed_continues_at_the_last_save(monkeypatch):
    """Facts are saved during the scan, not only at its end."""
    monkeypatch.setattr(manifest, "SAVE_EVERY", 0.0)
    saved: list[int] = []
    save = manifest.Manifest.save

    def noted(self: manifest.Manifest) -> None:
        save(self)
        saved.append(int(self.known.sum()))

    monkeypatch.setattr(manifest.Manifest, "save", noted)
    examined()
    assert saved[:3] == [1, 2, 3]


def test_an_error_of_the_machine_in_the_middle_keeps_the_rest():
    def examine(index: int) -> tuple[int, str]:
        if index == 200:
            raise MemoryError
        return fact(index)

    with pytest.raises(MemoryError):
        examined(examine)
    again: list[int] = []
    examined(interrupted_at(-1, again))
    assert 0 not in again


def test_a_file_that_cannot_be_read_for_now_is_examined_again():
    passing = os.strerror(24)
    assert examined(lambda i: (0, passing if i == 3 else ""))[1] == {3: passing}
    again: list[int] = []
    examined(interrupted_at(-1, again))
    assert again == [3]


@pytest.mark.parametrize(
    "order", [[5, 3, 4], list(range(COUNT))[::-1], [7, 7, 8]], ids=["few", "all", "twice"]
)
def test_facts_and_problems_follow_their_names(order):
    examined()
    assert examined(forbidden, order) == expected(order)
    assert examined(forbidden, order) == expected(order)


def test_files_that_come_are_examined_alone():
    examined(order=[1, 2, 3])
    again: list[int] = []
    assert examined(interrupted_at(-1, again), [0, 1, 2, 3, 4]) == expected([0, 1, 2, 3, 4])
    assert again == [0, 4]


def test_all_files_are_examined_again_by_another_version(monkeypatch):
    """A newer version, or a package more or less, may read other files."""
    examined(order=[1, 2, 3])
    monkeypatch.setattr(manifest, "reader", lambda: "another")
    again: list[int] = []
    examined(interrupted_at(-1, again), [1, 2, 3])
    assert again == [1, 2, 3]
    assert examined(forbidden, [1, 2, 3]) == expected([1, 2, 3])


def test_other_stamps_or_another_format_make_all_be_examined(monkeypatch):
    examined()
    again: list[int] = []
    examined(interrupted_at(-1, again), stamp=6)
    assert len(again) == COUNT
    monkeypatch.setattr(manifest, "FORMAT", 99)
    examined(interrupted_at(-1, again), stamp=6)
    assert len(again) == 2 * COUNT


def test_a_long_examination_shows_its_progress(capsys):
    examined(slow=COUNT - 1)
    notice, bar = capsys.readouterr().err.split("\n", 1)
    assert notice == f"examining {COUNT}"
    assert f"{COUNT}/{COUNT}" in bar
    examined(slow=COUNT - 1)
    assert capsys.readouterr().err == ""


def test_stamps_are_those_of_the_files(tmp_path):
    names = [tmp_path / f"{i}.jpg" for i in range(5)]
    for i, name in enumerate(names[:4]):
        name.write_bytes(bytes(i))
        os.utime(name, ns=(0, 10**18 + i))
    paths = [str(names[i]) for i in (0, 1, 1, 4, 3, 1)]  # 4 is missing
    size_and_time = [[0, 10**18], [1, 10**18 + 1], [1, 10**18 + 1], [0, 0], [3, 10**18 + 3], [1, 10**18 + 1]]
    assert file_stamps(paths).tolist() == size_and_time
    assert file_stamps([]).shape == (0, 2)
    assert file_stamps(paths * 500).tolist() == size_and_time * 500


def test_threads_keep_the_order_and_do_not_run_far_ahead():
    seen: list[int] = []

    def work(index: int) -> int:
        seen.append(index)
        return -index

    results = in_threads(work, range(100_000))
    assert [next(results) for _ in range(10)] == [-i for i in range(10)]
    results.close()  # type: ignore[attr-defined]
    assert len(seen) <= manifest.PART
    results = in_threads(work, range(100_000))
    timed = manifest.PART * (manifest.ALONE + manifest.TRIAL)
    seen.clear()
    assert [next(results) for _ in range(timed + 1)] == [-i for i in range(timed + 1)]
    assert len(seen) <= timed + manifest.PART * (2 * manifest.SCAN_THREADS + 1)
    assert list(in_threads(work, range(1000))) == [-i for i in range(1000)]
    assert list(in_threads(work, [])) == []


@pytest.mark.parametrize(
    ("waits", "contends", "expected"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_threads_are_used_where_they_are_faster_and_cost_little(waits, contends, expected, monkeypatch):
    monkeypatch.setattr(manifest, "PART", 4)
    threads: set[int] = set()
    main, process_time, contention = threading.get_ident(), time.process_time, [0.0]

    def work(index: int) -> int:
        if waits:
            time.sleep(0.001)
        if contends and threading.get_ident() != main:
            contention[0] += 0.002
        if index >= 4 * (manifest.ALONE + manifest.TRIAL):
            threads.add(threading.get_ident())
        return index

    monkeypatch.setattr(time, "process_time", lambda: process_time() + contention[0])
    count = 4 * (manifest.ALONE + manifest.TRIAL) + 400
    assert list(in_threads(work, range(count))) == list(range(count))
    assert (threads != {main}) is expected
