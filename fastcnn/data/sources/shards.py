"""WebDataset shards: tar files that hold KEY.jpg and KEY.cls, the class's number or name, for each sample.

    python -m fastcnn.train --data 'shards/{train-{000..146},val-{00..06}}.tar'
    python -m fastcnn.train --data 's3://bucket/{train-{000..146},val-00}.tar'

A shard is indexed once; samples are then read by their byte range, in any order. Remote shards are copied to
--data-root on first use.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from fastcnn import files
from fastcnn.config.settings import DataSettings
from fastcnn.data.cache import cache_root, keep
from fastcnn.data.reading import OF_THE_FILE, open_regular, patiently, read_error
from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.layout import Phase, folders
from fastcnn.data.sources.names import Names
from fastcnn.data.sources.splits import check_shares, split_off
from fastcnn.data.sources.walk import IMAGE_SUFFIXES, and_more
from fastcnn.errors import UserError

REMOTE = ("s3://", "gs://")
CLASS_LIST = "classes.txt"
MANIFEST = "pack.json"
"""File of `fastcnn pack` (`fastcnn.data.pack`) that lists the shards."""
PREFIXES: tuple[Phase, ...] = ("val", "test")
"""Beginnings of the names of shards that are not for training."""
INDEX_THREADS = 8
MAX_HEADER, MAX_WORD = 1_000_000, 200
"""Max bytes of an extended tar header, and of a .cls member."""
MAX_CLASSES = 1_000_000


class Index(NamedTuple):
    """Samples of a shard, in its order."""

    members: Names
    """Names of the image members."""
    words: list[str]
    """Different contents of their .cls members."""
    classes: np.ndarray
    """Number of each member's word, int64 [N]."""
    spans: np.ndarray
    """First byte and number of bytes, int64 [N, 2]."""


def is_shards(data: str) -> bool:
    """Return whether `--data` is a pattern of tar files, or a folder of them."""
    if data.startswith(REMOTE) or data.endswith(".tar"):
        return True
    folder = files.expand_user(data, "--data")
    if not folder.is_dir() or folders(folder):
        return False
    return any(folder.glob("*.tar"))


def read_shards(settings: DataSettings, seed: int) -> Source:
    """Read shards; names that begin with val or test are for validation or test, the others for training.

    Args:
        settings: `data` is a folder of tar files, or a pattern with {000..146} and {a,b}; `data_root` is the
            folder for copies of remote shards.
        seed: seed of the splits.

    Raises:
        UserError: a missing or malformed shard.
    """
    data, data_root = settings.data, files.expand_user(settings.data_root, "--data-root")
    folder = files.expand_user(data, "--data")
    if folder.is_dir():
        _check_complete(data, folder)
    names = sorted(map(str, folder.glob("*.tar"))) if folder.is_dir() else list(expand(data))
    if not names:
        raise UserError(f"--data {data}: stands for no shard; correct the pattern")
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        local = list(pool.map(partial(_local, data_root=data_root), names))
        indices = list(pool.map(_index, local))
    numbers, class_names = _classes(data, Path(local[0]).parent / CLASS_LIST, indices)
    phases = [_phase(name) for name in names]

    def split(phase: Phase) -> Split | None:
        chosen = [(path, index) for path, index, of in zip(local, indices, phases) if of == phase]
        counts = [len(index.members) for _, index in chosen]
        if not sum(counts):
            return None
        paths = Names.of([path for path, _ in chosen]).take(np.repeat(np.arange(len(chosen)), counts))
        members = Names.join([index.members for _, index in chosen])
        spans = np.concatenate([index.spans for _, index in chosen])
        labels = [np.array([numbers[w] for w in i.words], dtype=np.int64)[i.classes] for _, i in chosen]
        root = " ".join(os.path.abspath(path) for path, _ in chosen)
        files = scan(root, paths, spans, members, upright=settings.exif == "upright")
        return Split(np.concatenate(labels), files)

    train, val, test = split("train"), split("val"), split("test")
    if train is None:
        raise UserError(
            f"--data {data}: no shard to train on; name them train-000.tar, val-000.tar and so on"
        )
    check_shares(
        settings,
        val="shards to validate on" if val is not None else "",
        test="test shards" if test is not None else "",
        expected="a shard called val*.tar",
    )
    parts = split_off(train, settings, seed, val=val, test=test)
    stem = re.sub(r"\W+", "-", posixpath.basename(posixpath.dirname(data) if data.endswith(".tar") else data))
    return Source(
        name=stem.strip("-") or "shards",
        train=parts.train,
        val=parts.val,
        test=parts.test,
        class_names=class_names,
        native_size=native_size(parts.train),
        remarks=parts.remarks,
    )


def _classes(data: str, listed: Path, indices: Sequence[Index]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of each class as it is written in the shards, and the names of the classes.

    Numbers have the names of the list if there is one. Other words are sorted names.
    """
    words = {word for index in indices for word in index.words}
    if all(word.isdecimal() for word in words):
        numbers = {word: int(word) for word in words}
        count = max(numbers.values(), default=0) + 1
        if count > MAX_CLASSES:
            raise UserError(
                f"--data {data}: a class has the number {count - 1}; number the classes from 0 on, up to "
                f"{MAX_CLASSES - 1:,} at most"
            )
        names = [str(i) for i in range(count)]
        if listed.is_file():
            names = listed.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
            names = [name.removesuffix("\r") for name in names[: None if names[-1] else -1]]
            if len(names) < count:
                raise UserError(
                    f"{listed}: names {len(names)} classes, and the shards number them up to {count - 1}; "
                    "complete it"
                )
    else:
        names = sorted(words)
        numbers = {name: i for i, name in enumerate(names)}
    if len(names) < 2:
        raise UserError(f"--data {data}: one class only; classification needs two")
    return numbers, tuple(names)


def _check_complete(data: str, folder: Path) -> None:
    """Raise UserError if `fastcnn pack` was stopped in the middle."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())["shards"]
        missing = [str(name) for name in listed if not (folder / str(name)).is_file()]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # no manifest of fastcnn pack
        return
    if missing:
        raise UserError(
            f"--data {data}: {missing[0]} is not there{and_more(missing)}; finish fastcnn pack first"
        )


def _phase(name: str) -> Phase:
    """Return the phase of a shard by the beginning of its name."""
    base = posixpath.basename(name).lower()
    return next((phase for phase in PREFIXES if base.startswith(phase)), "train")


def expand(pattern: str) -> Iterator[str]:
    """Expand `{a,b}` and `{000..146}` as a shell does, also nested."""
    start = pattern.find("{")
    # Commas and the closing brace of the first group.
    depth, cuts = 0, [start]
    for i in range(start, len(pattern)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(pattern[i], 0)
        if depth == 1 and pattern[i] == ",":
            cuts.append(i)
        if depth == 0:
            cuts.append(i)
            break
    else:
        yield pattern
        return
    words = [pattern[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", words[0])
    if numbers and len(words) == 1:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        words = [f"{i:0{width}}" for i in range(int(numbers[1]), int(numbers[2]) + 1)]
    for word in words:
        for inner in expand(word):
            for rest in expand(pattern[cuts[-1] + 1 :]):
                yield pattern[:start] + inner + rest


def _local(name: str, data_root: Path) -> str:
    return fetched(name, data_root) if name.startswith(REMOTE) else _checked(name)


def _checked(name: str) -> str:
    path = files.expand_user(name, "--data")
    if not path.is_file():
        raise UserError(f"--data {name}: no such shard; correct the pattern")
    return str(path)


def fetched(uri: str, data_root: Path) -> str:
    """Return the local copy of a remote shard, downloaded by DALI on first use."""
    parent = posixpath.dirname(uri)
    mark = hashlib.sha256(parent.encode()).hexdigest()[:8]
    folder = data_root / "shards" / f"{re.sub(r'[^a-zA-Z0-9]+', '-', parent)}-{mark}"
    path = folder / posixpath.basename(uri)
    if path.is_file():
        return str(path)
    try:
        from fastcnn.data.sources.remote import read_remote
    except ImportError as error:
        raise UserError(f"--data {uri}: remote shards are read by DALI, which is not installed") from error
    try:
        content = read_remote(uri)
    except RuntimeError as error:
        raise UserError(f"--data {uri}: cannot be read: {error}") from error
    files.make_folder(folder, "the folder of remote shards")
    files.write_bytes(path, content, "a remote shard", shared=True)
    return str(path)


def _index(path: str) -> Index:
    """Return the index of a shard, from the cache if the shard is unchanged."""
    status = os.stat(path)
    key = f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}"
    entry = cache_root() / "shards" / (hashlib.sha256(os.fsencode(key)).hexdigest()[:24] + ".npz")
    try:
        with np.load(entry, allow_pickle=False) as kept:
            members = Names.split(kept["members"], len(kept["spans"]))
            return Index(members, kept["words"].tolist(), kept["classes"], kept["spans"])
    except Exception:  # missing or truncated: rebuilt
        index = read_index(path)
    keep(
        entry,
        "shards are indexed anew next time",
        members=index.members.joined(),
        words=index.words,
        classes=index.classes,
        spans=index.spans,
    )
    return index


def _opened(path: str) -> BinaryIO:
    return os.fdopen(patiently(lambda: open_regular(path)[0], path), "rb")


class _Bounded:
    """A file for `tarfile`, which reads the whole of an extended header at once, whatever its size."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _files(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar of `size` bytes; tarfile.ReadError for members beyond it, or backwards."""
    end = 0
    for member in tar:
        if member.size < 0 or member.offset_data < end or member.offset_data + member.size > size:
            raise tarfile.ReadError("a member outside of the file")
        end = member.offset_data
        if member.isfile() and not member.issparse():
            yield member


def _read_word(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """Return the content of a .cls member; "" if there is none.

    Raises:
        tarfile.ReadError: it is neither a number nor a name.
    """
    content = tar.extractfile(member) if member.size <= MAX_WORD else None
    word = content.read().decode().strip() if content is not None else ""
    if member.size > MAX_WORD or not word.isprintable():
        raise tarfile.ReadError(f"{member.name} is neither a class's number nor its name")
    return word


def read_index(path: str) -> Index:
    """Read the index of a shard from its tar headers; UserError if it is malformed."""
    images: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, str] = {}
    try:
        with _opened(path) as file, tarfile.open(fileobj=cast(BinaryIO, _Bounded(file)), mode="r:") as tar:
            for member in _files(tar, os.fstat(file.fileno()).st_size):
                folder, name = posixpath.split(member.name)
                key = posixpath.join(folder, name.partition(".")[0])
                if name.endswith(".cls"):
                    classes[key] = _read_word(tar, member)
                elif name.lower().endswith(IMAGE_SUFFIXES) and not name.lower().endswith(".npy"):
                    if key in images:
                        raise UserError(f"--data {path}: {key} has more than one image; keep one")
                    images[key] = member
            file.seek(tar.offset)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("cut or damaged")
    except UserError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # also numbers of its headers
        if isinstance(error, OSError) and error.errno in errno.errorcode and error.errno not in OF_THE_FILE:
            raise read_error(path, error.errno) from error
        raise UserError(
            f"--data {path}: not a tar that can be read ({' '.join(str(error).split())}); copy it again"
        ) from error
    empty = [key for key, word in classes.items() if not word]
    if empty:
        raise UserError(f"--data {path}: {empty[0]}.cls is empty; write the class's number or name")
    lonely = sorted(images.keys() ^ classes.keys())
    if lonely:
        missing = ".cls" if lonely[0] in images else "image"
        raise UserError(f"--data {path}: {lonely[0]} has no {missing}; every sample needs both")
    members: Sequence[tarfile.TarInfo] = list(images.values())
    spans = np.array([(m.offset_data, m.size) for m in members], dtype=np.int64).reshape(-1, 2)
    words, numbers = np.unique([classes[key] for key in images], return_inverse=True)
    return Index(Names.of(m.name for m in members), words.tolist(), numbers, spans)
