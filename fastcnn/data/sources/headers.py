"""Image headers: sizes and unreadable files, without decoding.

Headers are read once, by threads, and cached; changed or new files are read again.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageFile

from fastcnn.data.cache import cache_root, keep
from fastcnn.data.decode import FORMATS, MAX_PIXELS, TRANSPOSED, DecodeError, decode, orientation_of

SCAN_THREADS = 16
"""More than cores, as a scan of a network file system mostly waits."""
SLOW_SCAN = 50_000
"""Number of files above which a scan is announced."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Encoded images: files, or members of tar shards."""

    paths: tuple[str, ...]
    """N paths of the images, or of their shards."""
    sizes: np.ndarray
    """Height and width in pixels of the decoded image, int32 [N, 2]; 0 if the header is unreadable."""
    problems: dict[int, str] = field(default_factory=dict)
    """Reason for each unreadable image."""
    orientations: np.ndarray | None = None
    """EXIF orientation by which decoding turns an image upright, uint8 [N], 1 to 8; None: all as stored."""
    spans: np.ndarray | None = None
    """First byte and number of bytes in the shard, int64 [N, 2]; None for files."""
    members: tuple[str, ...] | None = None
    """N names in the shards; None for files."""

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""
        path = self.paths[index]
        return path if self.members is None else f"{path}/{self.members[index]}"

    def read(self, index: int) -> np.ndarray:
        """Read an image's encoded bytes, uint8 [length]; OSError if they are missing."""
        if self.spans is None:
            return np.fromfile(self.paths[index], dtype=np.uint8)
        offset, length = (int(v) for v in self.spans[index])
        return np.fromfile(self.paths[index], dtype=np.uint8, count=length, offset=offset)

    def decode(
        self, index: int, channels: int, region: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Decode an image by `fastcnn.data.decode.decode`; DecodeError if that fails."""
        try:
            data = self.read(index)
        except OSError as error:
            raise DecodeError(error.strerror or str(error)) from error
        height, width = self.sizes[index].tolist()
        orientation = 1 if self.orientations is None else int(self.orientations[index])
        return decode(data, channels, (height, width), region, orientation=orientation)

    def take(self, indices: np.ndarray) -> Files:
        """Return the images at `indices`, in that order."""
        chosen = indices.tolist()
        return Files(
            paths=tuple(self.paths[i] for i in chosen),
            sizes=self.sizes[indices],
            orientations=None if self.orientations is None else self.orientations[indices],
            problems={new: self.problems[old] for new, old in enumerate(chosen) if old in self.problems},
            spans=None if self.spans is None else self.spans[indices],
            members=None if self.members is None else tuple(self.members[i] for i in chosen),
        )


def scan(
    root: str,
    paths: Sequence[str],
    spans: np.ndarray | None = None,
    members: Sequence[str] | None = None,
    *,
    upright: bool = True,
    announce: bool = True,
) -> Files:
    """Read the headers of images; unchanged files (by size and time) come from the cache.

    Args:
        root: name of the data set, the cache's key.
        paths, spans, members: see `Files`.
        upright: turn images by their EXIF orientation; otherwise they stay as stored.
        announce: print a notice before a long scan.
    """
    stamps = file_stamps(paths)
    if spans is not None:
        stamps = np.column_stack([stamps, spans])
    names = list(paths) if members is None else [f"{p}/{m}" for p, m in zip(paths, members)]
    encoded = Files(
        paths=tuple(paths),
        sizes=np.zeros((len(paths), 2), dtype=np.int32),
        problems={},
        spans=spans,
        members=tuple(members) if members is not None else None,
    )
    notice = "reading the headers of {:,} images, once"
    slow = SLOW_SCAN if announce else len(paths)
    facts, problems = examine_once(
        root,
        names,
        stamps,
        columns=3,
        examine=lambda i: examine(encoded, i),
        notice=notice,
        slow=slow,
    )
    sizes, orientations = facts[:, :2], None
    if upright and (facts[:, 2] > 1).any():
        orientations = facts[:, 2].astype(np.uint8)
        sizes = np.where((orientations >= TRANSPOSED)[:, None], sizes[:, ::-1], sizes)
    return dataclasses.replace(encoded, sizes=sizes, orientations=orientations, problems=problems)


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

    Args:
        key: cache key.
        names: N names.
        stamps: int64 [N, S]; a changed row means a changed file.
        columns: numbers per file.
        examine: returns these numbers for the i-th file, then its problem ("" if none).
        notice: printed before more than `slow` files are examined, with their number for {}.

    Returns:
        The numbers, int32 [N, columns], and the problems by file.
    """
    entry = cache_root() / "manifests" / (hashlib.sha256(os.fsencode(key)).hexdigest()[:24] + ".npz")
    known = _recall(entry)
    # From the cache.
    facts = np.zeros((len(names), columns), dtype=np.int32)
    problems: dict[int, str] = {}
    missing = []
    for i, name in enumerate(names):
        before = known.get(name)
        if before is None or before[0] != tuple(stamps[i].tolist()):
            missing.append(i)
            continue
        facts[i] = before[1]
        if before[2]:
            problems[i] = before[2]
    # Examine the rest.
    if missing:
        if len(missing) > slow:
            print(notice.format(len(missing)), file=sys.stderr, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for i, (*found, problem) in zip(missing, in_threads(examine, missing)):
                facts[i] = found
                if problem:
                    problems[i] = problem
    if missing or len(known) != len(names):
        _remember(entry, names, stamps, facts, problems)
    return facts, problems


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Map `work` over the items by threads, in order; for work that mostly waits for files."""
    parts = [items[i : i + 64] for i in range(0, len(items), 64)]
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        for found in pool.map(lambda part: [work(item) for item in part], parts):
            yield from found


def examine(files: Files, index: int) -> tuple[int, int, int, str]:
    """Return stored height and width, orientation and problem ("" if none) of an image."""
    try:
        if files.spans is None:
            with open(files.paths[index], "rb") as stream:
                return examine_header(stream)
        offset, length = files.spans[index].tolist()
        with open(files.paths[index], "rb", buffering=0) as shard:
            return examine_header(io.BufferedReader(_Window(shard, offset, length)))
    except Image.DecompressionBombError:
        return 0, 0, 1, f"declares more than {MAX_PIXELS:,} pixels"
    except OSError as error:
        return 0, 0, 1, error.strerror or "not an image"
    except Exception as error:  # Pillow's parsers may raise anything on corrupt bytes
        return 0, 0, 1, f"not an image that Pillow reads: {error}"


def examine_header(stream: BinaryIO) -> tuple[int, int, int, str]:
    end = stream.seek(0, os.SEEK_END)
    if end == 0:
        return 0, 0, 1, "empty"
    stream.seek(0)
    with Image.open(stream) as image:
        width, height = image.size
        if image.format not in FORMATS:
            return 0, 0, 1, f"{image.format} is not read; convert it to PNG"
        if _is_rare(image):
            return 0, 0, 1, f"a rare kind of {image.format}, which is not read; convert it to PNG"
        if width * height > MAX_PIXELS:
            return 0, 0, 1, f"declares {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}"
        orientation = orientation_of(image)
        # A truncated file lacks the end marker.
        stream.seek(max(0, end - 16))
        tail = stream.read()
        jpeg = tail.endswith(b"\xff\xd9")
        ends = {"JPEG": jpeg, "MPO": jpeg, "PNG": tail.endswith(b"IEND\xaeB`\x82")}
        if not ends.get(image.format, True):  # trailing bytes are harmless
            stream.seek(0)
            try:
                image.load()
                stream.seek(0)
                if image.format == "PNG" and b"IEND\xaeB`\x82" not in stream.read():
                    return 0, 0, 1, "truncated"
            except (OSError, SyntaxError):
                return 0, 0, 1, "truncated"
    return height, width, orientation, ""


def _is_rare(image: ImageFile.ImageFile) -> bool:
    """Return whether DALI and Pillow decode an image differently."""
    if image.format == "TIFF":
        return orientation_of(image) != 1 or image.mode in ("1", "I", "F")
    if image.format == "PPM":
        return image.tile[0][0] != "raw"  # text, or a maximum other than 255 and 65,535
    return False


class _Window(io.RawIOBase):
    """A byte range of an open file as a file of its own."""

    def __init__(self, file: io.FileIO, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.at = file, offset, length, 0
        self.taken = 0
        """Bytes read so far."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        self.at = base + place
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.at)
        data = self.file.read(max(0, min(len(buffer), self.length - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        self.taken += len(data)
        return len(data)


def file_stamps(paths: Sequence[str]) -> np.ndarray:
    """Return size in bytes and modification time in ns of each file, int64 [N, 2]; 0 if missing."""
    stamps = np.zeros((len(paths), 2), dtype=np.int64)
    seen: dict[str, tuple[int, int]] = {}  # shards repeat
    for i, path in enumerate(paths):
        if path not in seen:
            try:
                status = os.stat(path)
            except OSError:
                continue
            seen[path] = (status.st_size, status.st_mtime_ns)
        stamps[i] = seen[path]
    return stamps


def _recall(entry: Path) -> dict[str, tuple[tuple[int, ...], np.ndarray, str]]:
    """Load stamps, facts and problem by name; empty without a readable cache entry."""
    try:
        with np.load(entry, allow_pickle=False) as kept:
            names, problems = _split_text(kept["names"]), _split_text(kept["problems"])
            stamps, facts = kept["stamps"].tolist(), kept["facts"]
    except Exception:  # missing, truncated or of another version: rebuilt
        return {}
    return {
        name: (tuple(stamp), fact, problem)
        for name, stamp, fact, problem in zip(names, stamps, facts, problems)
    }


def _remember(
    entry: Path, names: Sequence[str], stamps: np.ndarray, facts: np.ndarray, problems: dict[int, str]
) -> None:
    passing = {os.strerror(code) for code in errno.errorcode}  # errors of the machine, not of the file
    stamps = stamps.copy()
    for i, problem in problems.items():
        if problem in passing:
            stamps[i] = -1
    keep(
        entry,
        "files are examined anew next time",
        names=_join_text(names),
        stamps=stamps,
        facts=facts,
        problems=_join_text([problems.get(i, "") for i in range(len(names))]),
    )


def _join_text(lines: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\0".join(lines).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def _split_text(data: np.ndarray) -> Iterator[str]:
    return iter(data.tobytes().decode("utf-8", "surrogateescape").split("\0"))
