"""Shrink the images of a data set and write them to WebDataset shards.

Each shard holds KEY.jpg and KEY.cls, the class number, of consecutive images, in the order of the data set.
Which images a shard holds is known before the first is encoded, so shards are the same bytes in every run. A
finished shard gets its name by a rename: a run that was stopped skips the shards that are there.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, features
from tqdm import tqdm

from fastcnn import files
from fastcnn.data.decode import DecodeError
from fastcnn.data.jpeg import is_jpeg
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.shards import CLASS_LIST, MANIFEST, read_index
from fastcnn.errors import UserError, WriteError

VERSION = 1
AHEAD = 4
"""Images per thread that are encoded ahead of the shard."""


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How images are shrunk and packed."""

    max_size: int = 500
    """Maximum long side in pixels."""
    quality: int = 90
    """Maximum JPEG quality, 1 to 95."""
    shard_images: int = 1000
    """Images in a shard."""


class Shard(NamedTuple):
    """Consecutive images of a split."""

    name: str
    files: Files
    labels: Sequence[int]
    keys: Sequence[str]
    first: int
    """Number of the first image in `files`."""

    def __len__(self) -> int:
        return len(self.keys)


def pack(source: Source, data: str, folder: Path, settings: PackSettings, *, workers: int) -> list[str]:
    """Write the images of a source into shards, or the rest of them after a stop.

    Args:
        data: name of the source, for messages.
        folder: new, empty, or the folder of a stopped run with the same images and settings.
        workers: threads.

    Returns:
        A line for each undecodable image; the shards leave them out.

    Raises:
        UserError: a source without image files and class numbers, or another content of the folder.
    """
    splits = _splits(source, data)
    shards = [shard for phase, split in splits.items() for shard in _shards(phase, split, settings)]
    manifest = {
        "fastcnn pack": VERSION,
        **asdict(settings),
        "encoder": f"Pillow {Image.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}",
        "images": {phase: len(split) for phase, split in splits.items()},
        "levels": _levels(splits["train"]),
        "data": _digest(splits, source.class_names),
        "shards": [shard.name for shard in shards],
    }
    try:
        with files.of_flag("SHARDS"):
            files.make_folder(folder, "the folder")
        with _lock(folder):
            _begin(folder, manifest, source.class_names, data)
            done = [shard for shard in shards if (folder / shard.name).exists()]
            rest = [shard for shard in shards if not (folder / shard.name).exists()]
            bad = [line for shard in done for line in _left_out(folder, shard)]
            return bad + _write(folder, rest, settings, workers)
    except WriteError as error:
        raise WriteError(f"{error}; then the same command completes {folder}", error.code) from error


def _splits(source: Source, data: str) -> dict[str, Split]:
    """Return the splits to pack, by their names in shards."""
    found = {"train": source.train, "val": source.val, "test": source.test}
    splits = {phase: split for phase, split in found.items() if split is not None and len(split)}
    for split in splits.values():
        if split.annotations is not None:
            raise UserError(f"{data}: only images with one class each can be packed; train on it unpacked")
        if split.files is None:
            raise UserError(f"{data}: holds no image files to pack; use a folder of images")
    if source.channels > 3:
        raise UserError(f"{data}: JPEG has no {source.channels} channels; train on it unpacked")
    odd = [name for name in source.class_names if "\n" in name or "\r" in name]
    if odd:
        raise UserError(f"{data}: the class {odd[0]!r} has a line break in its name; rename it")
    return splits


def _shards(phase: str, split: Split, settings: PackSettings) -> Iterator[Shard]:
    assert split.files is not None
    labels, keys = split.labels.tolist(), _keys(split.files)
    for number, first in enumerate(range(0, len(split), settings.shard_images)):
        part = slice(first, first + settings.shard_images)
        yield Shard(f"{phase}-{number:06}.tar", split.files, labels[part], keys[part], first)


def _keys(files: Files) -> list[str]:
    """Return a key for each image: folder and name without suffix, unique, and without dots or spaces.

    WebDataset ends a key at the first dot."""
    keys: list[str] = []
    used: dict[str, int] = {}
    for i in range(len(files)):
        parent, _, name = files.name(i).replace(os.sep, "/").rpartition("/")
        words = parent.rpartition("/")[2], name.rpartition(".")[0] or name
        key = "/".join(re.sub(r"[^\w+-]", "_", word) for word in words)
        while key in used:  # the same name with another suffix, or in another folder
            used[key] += 1
            key = f"{key}-{used[key]}"
        used[key] = 1
        keys.append(key)
    return keys


def _digest(splits: dict[str, Split], class_names: Iterable[str]) -> str:
    """Return a digest of names, labels and times of the images."""
    stamp = functools.cache(_stamp)
    digest = hashlib.sha256("\n".join(class_names).encode("utf-8", "surrogateescape"))
    for split in splits.values():
        assert split.files is not None
        digest.update(split.fingerprint.encode())
        for path in split.files.paths:
            digest.update(repr(stamp(path)).encode())
        if split.files.orientations is not None:
            digest.update(split.files.orientations.tobytes())
    return digest.hexdigest()


def _levels(split: Split) -> list[float] | None:
    """Return the levels of deep images; None if each has its own."""
    assert split.files is not None
    return None if split.files.levels is None else list(split.files.levels)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # reported as undecodable
        return None
    return status.st_size, status.st_mtime_ns


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder, so that a second run does not write into it. Without effect on Windows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{folder}: another fastcnn pack is writing it; wait for its end") from error
    finally:
        os.close(handle)


def _begin(folder: Path, manifest: dict[str, object], class_names: Sequence[str], data: str) -> None:
    """Write the manifest into an empty folder, or compare it with that of a stopped run."""
    path = folder / MANIFEST
    if not path.exists():
        strangers = sorted(entry.name for entry in folder.iterdir() if not entry.match(files.NEIGHBORS))
        if strangers:
            raise UserError(f"{folder}: holds {strangers[0]}, and no stopped pack; use a new folder")
        files.write_text(path, json.dumps(manifest, indent=1), "the manifest")
    else:
        before = None
        with suppress(ValueError):
            before = json.loads(path.read_text())
        if not isinstance(before, dict) or "fastcnn pack" not in before:
            raise UserError(f"{path}: is not of fastcnn pack; use a new folder")
        _compare(folder, before, manifest, data)
    for rest in folder.glob(files.NEIGHBORS):
        rest.unlink()
    files.write_text(folder / CLASS_LIST, "".join(f"{name}\n" for name in class_names), "the list of classes")


def _compare(folder: Path, before: dict[str, object], now: dict[str, object], data: str) -> None:
    for name in ("max_size", "quality", "shard_images", "levels"):
        if before.get(name) != now[name]:
            flag, value = "--" + name.replace("_", "-"), before.get(name)
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"{folder}: was begun with {flag} {shown}; use that, or a new folder")
    if before.get("encoder") != now["encoder"]:
        raise UserError(f"{folder}: was begun with {before.get('encoder')}; use a new folder")
    if before != now:
        raise UserError(f"{folder}: holds other images than {data} has now; use a new folder")


def _left_out(folder: Path, shard: Shard) -> list[str]:
    """Return a line for each image that a finished shard lacks."""
    present = {member.rpartition(".")[0] for member in read_index(str(folder / shard.name)).members}
    return [
        _bad_line(shard.files, shard.first + i, _reason(shard.files, shard.first + i))
        for i, key in enumerate(shard.keys)
        if key not in present
    ]


def _reason(files: Files, index: int) -> str:
    try:
        files.decode(index, 3)
    except DecodeError as error:
        return files.problems.get(index, str(error))
    return files.problems.get(index, "was undecodable")


def _bad_line(files: Files, index: int, reason: str) -> str:
    return f"{files.name(index)}: {reason}".encode("utf-8", "backslashreplace").decode()


def _write(folder: Path, shards: Sequence[Shard], settings: PackSettings, workers: int) -> list[str]:
    """Write shards; return a line for each undecodable image."""
    bad = []
    tasks = ((shard, i) for shard in shards for i in range(len(shard)))

    def work(shard: Shard, i: int) -> bytes | DecodeError:
        try:
            return encode(shard.files, shard.first + i, settings)
        except DecodeError as error:
            return error

    with (
        tqdm(total=sum(map(len, shards)), desc="pack", unit="img", disable=None) as bar,
        _results_ahead(work, tasks, workers) as results,
    ):
        for shard in shards:
            with files.writing(folder / shard.name, "the shard", durable=True) as file:
                bad += _write_shard(file, shard, results, bar)
    return bad


def _write_shard(
    file: BinaryIO, shard: Shard, results: Iterator[bytes | DecodeError], bar: tqdm
) -> list[str]:
    bad = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for i, (key, label) in enumerate(zip(shard.keys, shard.labels), shard.first):
            content = next(results)
            if isinstance(content, DecodeError):
                bad.append(_bad_line(shard.files, i, str(content)))
            else:
                _add(tar, f"{key}.jpg", content)
                _add(tar, f"{key}.cls", str(label).encode())
            bar.update()
    return bad


@contextmanager
def _results_ahead(
    work: Callable[[Shard, int], bytes | DecodeError], tasks: Iterator[tuple[Shard, int]], workers: int
) -> Iterator[Iterator[bytes | DecodeError]]:
    """Map `work` over the tasks by threads, in order, a few results ahead; cancel the rest at the end."""
    pool = ThreadPoolExecutor(workers, "fastcnn-pack")

    def results() -> Iterator[bytes | DecodeError]:
        under_way: deque[Future[bytes | DecodeError]] = deque()
        for task in tasks:
            under_way.append(pool.submit(work, *task))
            if len(under_way) > AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of time, user and group 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def encode(files: Files, index: int, settings: PackSettings) -> bytes:
    """Return an image as JPEG within size and quality; a JPEG that is within them is returned as it is.

    Raises:
        DecodeError: undecodable.
    """
    if index in files.problems:
        raise DecodeError(files.problems[index])
    height, width = files.sizes[index].tolist()
    long = max(height, width)
    if long <= settings.max_size:
        files.decode(index, 3, shape=(-(-height // 16), -(-width // 16)))  # finds what the header hides
        data = files.read(index)
        if is_jpeg(data) and _quantization(data) >= _quantization_of(settings.quality):
            return data.tobytes()
    shape = tuple(max(1, round(side * min(settings.max_size, long) / long)) for side in (height, width))
    image = Image.fromarray(files.decode(index, 3, shape=shape))
    if image.size != shape[::-1]:
        image = image.resize(shape[::-1], Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=settings.quality)
    return stream.getvalue()


def _quantization(data: np.ndarray) -> int:
    """Return the sum of a JPEG's steps of brightness; more is coarser."""
    with Image.open(io.BytesIO(data.tobytes()), formats=("JPEG",)) as image:
        return sum(image.quantization.get(0, ()))  # type: ignore[attr-defined]


@functools.cache
def _quantization_of(quality: int) -> int:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG", quality=quality)
    return _quantization(np.frombuffer(stream.getvalue(), dtype=np.uint8))
