"""Facts about files, such as their headers: examined once by threads, then kept in the cache.

A file is examined again if its size or modification time has changed. Both are read at every start, for every
file: the time of a folder does not change when a file in it is rewritten in place, as image tools do.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from fastcnn.data.arrays import NO_PACKAGE
from fastcnn.data.cache import cache_root, keep
from fastcnn.data.reading import patiently
from fastcnn.data.sources.names import Names
from fastcnn.version import __version__

SCAN_THREADS = 16
"""More than cores, as a scan of a network file system mostly waits."""
PART = 64
"""Files that a thread takes at a time."""
ALONE, TRIAL = 4, 2 * SCAN_THREADS
"""Parts by which one thread and all of them are timed; the fastest counts, as the first ones are slow."""
MIN_GAIN = 0.9
"""Threads are used for the rest if they take less than this fraction of one thread's time."""
MAX_COST, OVERHEAD = 1.25, 0.05
"""They are not if they take more processor time than this multiple of one thread's, and this fraction of its
time: contending for the GIL, they are faster only on a busy machine, at the cost of other processes."""
SAVE_EVERY = 30.0
"""Seconds after which the facts found so far are kept during a long scan."""
FORMAT = 2
"""Version of the cache's entries."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def examine_once(
    key: str,
    names: Sequence[str],
    stamps: np.ndarray,
    *,
    columns: int,
    examine: Callable[[int], tuple[Any, ...]],
    notice: str,
    slow: int,
) -> tuple[np.ndarray, dict[int, str]]:
    """Examine N files by threads; results of unchanged files come from the cache.

    What is found is kept every `SAVE_EVERY` seconds and at Ctrl-C, so that the next start continues there.

    Args:
        key: cache key.
        names: N names.
        stamps: int64 [N, S]; a changed row means a changed file.
        columns: numbers per file.
        examine: returns these numbers for the i-th file, then its problem ("" if none).
        notice: printed before more than `slow` files are examined, with their number for {}; a progress bar
            follows.

    Returns:
        The numbers, int32 [N, columns], and the problems by file.
    """
    manifest = Manifest(key, Names.of(names), stamps, columns)
    missing = np.flatnonzero(~manifest.known).tolist()
    if missing:
        shown = len(missing) > slow
        if shown:
            print(notice.format(len(missing)), file=sys.stderr, flush=True)
        results = zip(missing, in_threads(examine, missing))
        try:
            with warnings.catch_warnings(), _bar(results, len(missing), shown=shown) as bar:
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                saved = time.monotonic()
                for i, (*found, problem) in bar:
                    manifest.add(i, found, problem)
                    if time.monotonic() - saved > SAVE_EVERY:
                        manifest.save()
                        saved = time.monotonic()
        except KeyboardInterrupt:
            if shown:
                print("interrupted; the next start continues here", file=sys.stderr, flush=True)
            raise
        finally:
            manifest.save()
    elif manifest.outdated:
        manifest.save()
    return manifest.facts, manifest.problems


def _bar(results: Iterable[Item], count: int, *, shown: bool) -> tqdm[Item]:
    """Return a progress bar on stderr: in a terminal, or else a line every half minute."""
    seconds = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        results, total=count, disable=not shown, unit=" files", mininterval=seconds, dynamic_ncols=True
    )


class Manifest:
    """Facts about N files, partly from the cache.

    Args:
        key, names, stamps, columns: see `examine_once`.
    """

    def __init__(self, key: str, names: Names, stamps: np.ndarray, columns: int) -> None:
        digest = hashlib.sha256(os.fsencode(key)).hexdigest()
        self.path = cache_root() / "manifests" / f"{digest[:24]}.npz"
        self.names, self.stamps = names, stamps
        self.facts = np.zeros((len(names), columns), dtype=np.int32)
        self.problems: dict[int, str] = {}
        self.known = np.zeros(len(names), dtype=bool)
        self.outdated = True
        """The cache has no entry of exactly these files."""
        self._recall()

    def add(self, index: int, facts: Sequence[int], problem: str) -> None:
        """Add the facts of a file, and its problem ("" if none)."""
        self.facts[index] = facts
        self.known[index] = True
        if problem:
            self.problems[index] = problem

    def save(self) -> None:
        """Keep the facts in the cache; files that could not be read for now are examined anew next time."""
        passing = {os.strerror(code) for code in errno.errorcode}  # errors of the machine, not of the file
        stamps = np.where(self.known[:, None], self.stamps, -1)
        stamps[
            [i for i, problem in self.problems.items() if problem in passing or NO_PACKAGE in problem]
        ] = -1
        keep(
            self.path,
            "files are examined anew next time",
            format=FORMAT,
            reader=reader(),
            names=self.names.joined(),
            stamps=stamps,
            facts=self.facts,
            bad=np.array(list(self.problems), dtype=np.int64),
            problems=Names.of(self.problems.values()).joined(),
        )

    def _recall(self) -> None:
        """Take over what the cache knows of unchanged files."""
        try:
            with np.load(self.path, allow_pickle=False) as kept:
                stamps, facts, bad, text = (kept[name] for name in ("stamps", "facts", "bad", "names"))
                names = Names.split(text, len(stamps))
                problems = dict(zip(bad.tolist(), Names.split(kept["problems"], len(bad))))
                fits = kept["format"] == FORMAT and facts.shape[1:] == self.facts.shape[1:]
                if not fits or stamps.shape[1:] != self.stamps.shape[1:] or len(facts) != len(stamps):
                    return
                if kept["reader"] != reader():  # which may read other files, and some differently
                    return
        except Exception:  # missing, truncated or of another version: rebuilt
            return
        if np.array_equal(text, self.names.joined()):
            self.outdated = False
            rows = np.arange(len(names))
        else:
            place = {name: row for row, name in enumerate(names.encoded())}
            found = (place.get(name, -1) for name in self.names.encoded())
            rows = np.fromiter(found, np.int64, len(self.names))
        if not len(names):
            return
        self.known = (rows >= 0) & (stamps[rows] == self.stamps).all(axis=1)
        self.facts[self.known] = facts[rows[self.known]]
        for i in np.flatnonzero(self.known & np.isin(rows, bad)).tolist():
            self.problems[i] = problems[int(rows[i])]


def reader() -> str:
    """Return the versions and optional packages that decide which images can be read."""
    packages = [
        name for name in ("pillow_heif", "pydicom", "tifffile") if importlib.util.find_spec(name) is not None
    ]
    return " ".join((f"fastcnn {__version__}, Pillow {PIL.__version__}", *packages))


def file_stamps(paths: Sequence[str]) -> np.ndarray:
    """Return size in bytes and modification time in ns of each file, int64 [N, 2]; 0 if missing."""
    names = Names.of(paths)
    parts = [names[i : i + 1000] for i in range(0, len(names), 1000)]
    return np.concatenate([np.zeros((0, 2), dtype=np.int64), *_map_parts(_stamps, parts)])


def _stamps(names: Names) -> np.ndarray:
    found: list[int] = []
    before, stamp = b"", (0, 0)
    for path in names.as_bytes():
        if path != before:  # else the next image of a shard
            try:
                status: os.stat_result | None = os.stat(path)
            except OSError:
                status = _stat_again(path)
            stamp = (0, 0) if status is None else (status.st_size, status.st_mtime_ns)
            before = path
        found += stamp
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _stat_again(path: bytes) -> os.stat_result | None:
    """Return the status of a file that was not found, after errors that may pass; None if it is missing."""
    try:
        return patiently(lambda: os.stat(path), path)
    except OSError:
        return None


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Map `work` over the items in order, by threads where they are faster than one."""
    parts = [items[i : i + PART] for i in range(0, len(items), PART)]
    for found in _map_parts(lambda part: [work(item) for item in part], parts):
        yield from found


def _map_parts(work: Callable[[Item], Result], parts: Sequence[Item]) -> Iterator[Result]:
    """Map `work` over parts of equal length in order, by threads where they are faster than one.

    They are for files of a network and for decoders, and are not where each result takes some microseconds of
    Python. So the first parts are timed in this thread, and the next ones by threads.
    """
    alone, together, rest = parts[:ALONE], parts[ALONE : ALONE + TRIAL], parts[ALONE + TRIAL :]
    seconds, processor_seconds = [], []
    for part in alone:
        start, processor = time.perf_counter(), time.process_time()
        result = work(part)
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor)
        yield result
    start, processor = time.perf_counter(), time.process_time()
    results = list(_map(work, together))
    elapsed, cost = time.perf_counter() - start, time.process_time() - processor
    yield from results
    use_threads = (
        bool(rest)
        and elapsed < MIN_GAIN * min(seconds) * len(together)
        and cost < (MAX_COST * min(processor_seconds) + OVERHEAD * min(seconds)) * len(together)
    )
    yield from _map(work, rest) if use_threads else map(work, rest)


def _map(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map `work` over items by threads, in order, and not far ahead, so that Ctrl-C ends it at once."""
    pool = ThreadPoolExecutor(SCAN_THREADS)
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(running) == 2 * SCAN_THREADS:
                yield running.popleft().result()
            running.append(pool.submit(work, item))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
