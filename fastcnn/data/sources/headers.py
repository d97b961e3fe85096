"""Image headers: sizes and unreadable files, without decoding.

Headers are read once, by threads, and cached; changed or new files are read again.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from fastcnn.data.arrays import FULL, MAX_PIXELS, SHARED, Header, Levels
from fastcnn.data.decode import TRANSPOSED, DecodeError, decode
from fastcnn.data.header import examine_header
from fastcnn.data.jpeg import decode_reduced, is_jpeg, reduction
from fastcnn.data.reading import open_regular, patiently, read_error, read_file, read_stamped
from fastcnn.data.sources.manifest import examine_once, file_stamps
from fastcnn.data.sources.names import Names
from fastcnn.data.sources.quick_headers import quick_header

SLOW_SCAN = 50_000
"""Number of files above which a scan is announced."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Encoded images: files, or members of tar shards."""

    paths: Names
    """N paths of the images, or of their shards."""
    sizes: np.ndarray
    """Height and width in pixels of the decoded image, int32 [N, 2]; 0 if the header is unreadable."""
    problems: dict[int, str] = field(default_factory=dict)
    """Reason for each unreadable image."""
    orientations: np.ndarray | None = None
    """EXIF orientation by which decoding turns an image upright, uint8 [N], 1 to 8; None: all as stored."""
    bits: np.ndarray
    """Bits per channel as stored, uint8 [N]; 0 if unknown."""
    bands: np.ndarray
    """Channels as stored, uint8 [N]: 1 for gray and palettes, 2 or 4 with alpha; 0 if unknown."""
    lengths: np.ndarray | None = None
    """Number of encoded bytes, int64 [N]; 0 for missing files, None if unknown."""
    readers: np.ndarray
    """What decodes each image, uint8 [N]: `SHARED`, `PILLOW` or `ARRAY`."""
    levels: Levels | None = None
    """Levels of images of more than 8 bits; None: each its own."""
    spans: np.ndarray | None = None
    """First byte and number of bytes in the shard, int64 [N, 2]; None for files."""
    members: Names | None = None
    """N names in the shards; None for files."""

    @classmethod
    def unread(
        cls, paths: Sequence[str], spans: np.ndarray | None = None, members: Sequence[str] | None = None
    ) -> Files:
        """Return images whose headers are not read yet."""
        return cls(
            paths=Names.of(paths),
            sizes=np.zeros((len(paths), 2), dtype=np.int32),
            bits=np.zeros(len(paths), dtype=np.uint8),
            bands=np.zeros(len(paths), dtype=np.uint8),
            readers=np.zeros(len(paths), dtype=np.uint8),
            spans=spans,
            members=None if members is None else Names.of(members),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> Names:
        """Paths, or shards and members with a slash between them."""
        return self.paths if self.members is None else Names.pairs(self.paths, self.members)

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""
        path = self.paths[index]
        return path if self.members is None else f"{path}/{self.members[index]}"

    def read(self, index: int) -> np.ndarray:
        """Read an image's encoded bytes, uint8 [length], by `fastcnn.data.reading.read_file`."""
        return np.frombuffer(read_file(self.paths.encode(index), *self._span(index)), dtype=np.uint8)

    def read_stamped(self, index: int) -> tuple[bytes, tuple[int, int]]:
        """Read an image's encoded bytes, and size and time of its file or shard after that."""
        return read_stamped(self.paths.encode(index), *self._span(index))

    def _span(self, index: int) -> tuple[int, int | None]:
        """Return first byte and number of bytes of an image in its file."""
        return (0, None) if self.spans is None else tuple(self.spans[index].tolist())

    def decode(
        self,
        index: int,
        channels: int,
        region: tuple[int, int, int, int] | None = None,
        *,
        shape: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Decode an image by `fastcnn.data.decode.decode`; DecodeError if that fails.

        Args:
            shape: height and width to which the caller resizes the pixels. A JPEG of several times that size
                is decoded at a reduced scale and returned in this shape.
        """
        try:
            data = self.read(index)
        except OSError as error:
            raise DecodeError(error.strerror or str(error)) from error
        return self.decode_bytes(data, index, channels, region, shape=shape)

    def decode_bytes(
        self,
        data: np.ndarray,
        index: int,
        channels: int,
        region: tuple[int, int, int, int] | None = None,
        *,
        shape: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Decode the bytes of an image, uint8 [length], as `decode` does."""
        try:
            return self._decode(data, index, channels, region, shape)
        except MemoryError as error:
            raise read_error(self.name(index), errno.ENOMEM) from error

    def _decode(
        self,
        data: np.ndarray,
        index: int,
        channels: int,
        region: tuple[int, int, int, int] | None,
        shape: tuple[int, int] | None,
    ) -> np.ndarray:
        height, width = self.sizes[index].tolist()
        orientation = 1 if self.orientations is None else int(self.orientations[index])
        whole = (0, 0, height, width)
        region = None if region == whole else region
        reduces = shape is not None and channels in (1, 3) and reduction((region or whole)[2:], shape) > 1
        if shape is not None and reduces and is_jpeg(data):
            return decode_reduced(
                data, channels, (height, width), region or whole, shape, orientation=orientation
            )
        return decode(data, channels, (height, width), region, orientation=orientation, levels=self.levels)

    def with_facts(self, facts: np.ndarray, problems: dict[int, str], *, upright: bool) -> Files:
        """Return the images with the facts of their headers.

        Args:
            facts: the fields of `Header` but the last, int32 [N, 6].
            problems: reason for each unreadable image.
            upright: images are turned by their EXIF orientation.
        """
        sizes, orientations = facts[:, :2].copy(), None
        if upright and (facts[:, 2] > 1).any():
            orientations = facts[:, 2].astype(np.uint8)
            sizes = np.where((orientations >= TRANSPOSED)[:, None], sizes[:, ::-1], sizes)
        bits, bands, readers = facts[:, 3:].T.astype(np.uint8)
        return dataclasses.replace(
            self,
            sizes=sizes,
            orientations=orientations,
            bits=bits,
            bands=bands,
            readers=readers,
            problems=problems,
        )

    @property
    def special(self) -> np.ndarray | None:
        """Images that DALI would decode differently, bool [N]; None: there are none."""
        special = self.readers != SHARED
        if self.levels not in (None, FULL):
            special |= self.bits > 8
        return special if special.any() else None

    def take(self, indices: np.ndarray) -> Files:
        """Return the images at `indices`, in that order."""
        bad = np.flatnonzero(np.isin(indices, list(self.problems)))
        return Files(
            paths=self.paths.take(indices),
            sizes=self.sizes[indices],
            orientations=None if self.orientations is None else self.orientations[indices],
            lengths=None if self.lengths is None else self.lengths[indices],
            bits=self.bits[indices],
            bands=self.bands[indices],
            readers=self.readers[indices],
            levels=self.levels,
            problems={new: self.problems[int(indices[new])] for new in bad.tolist()},
            spans=None if self.spans is None else self.spans[indices],
            members=None if self.members is None else self.members.take(indices),
        )


@dataclass(frozen=True, kw_only=True)
class InMemory(Files):
    """Encoded images in memory; `paths` are their names."""

    contents: tuple[bytes, ...]

    def read(self, index: int) -> np.ndarray:
        return np.frombuffer(self.contents[index], dtype=np.uint8)


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
        announce: show a notice and a progress bar during a long scan.
    """
    encoded = Files.unread(paths, spans, members)
    stamps = file_stamps(encoded.paths)
    if spans is not None:
        stamps = np.column_stack([stamps, spans])
    facts, problems = examine_once(
        root,
        encoded.names,
        stamps,
        columns=6,
        examine=lambda i: examine(encoded, i),
        notice="reading the headers of {:,} images, once",
        slow=SLOW_SCAN if announce else len(paths),
    )
    encoded = encoded.with_facts(facts, problems, upright=upright)
    return dataclasses.replace(encoded, lengths=stamps[:, 0] if spans is None else spans[:, 1])


def in_memory(name: str, data: bytes, *, upright: bool = True, levels: Levels | None = None) -> Files:
    """Return one encoded image in memory, with the facts of its header.

    Args:
        name: for messages.
        upright: turn it by its EXIF orientation.
    """
    empty = Files.unread([name])
    try:
        *facts, problem = _facts_of(_Memory(data))
    except OSError as error:
        *facts, problem = Header(problem=error.strerror or "not an image")
    problems = {0: problem} if problem else {}
    image = empty.with_facts(np.array([facts], dtype=np.int32), problems, upright=upright)
    return InMemory(**{**vars(image), "levels": levels}, contents=(data,))


def examine(files: Files, index: int) -> Header:
    """Return the facts of an image; all but the problem are 0 if it is unreadable."""
    path = files.paths.encode(index)
    try:
        return patiently(lambda: _examine(path, None if files.spans is None else files.spans[index]), path)
    except OSError as error:
        return Header(problem=error.strerror or "not an image")


def _examine(path: bytes, span: np.ndarray | None) -> Header:
    """Return the facts of the image in a file, or in a span of it; OSError if it cannot be read."""
    file, length = open_regular(path)
    try:
        return _facts_of(_Span(file, 0, length) if span is None else _Span(file, *span.tolist()))
    finally:
        os.close(file)


def _facts_of(part: _Span) -> Header:
    """Return the facts of the image in a byte range; OSError if it cannot be read."""
    try:
        return quick_header(part.read_at, part.length) or examine_header(io.BufferedReader(part))
    except Image.DecompressionBombError:
        return Header(problem=f"declares more than {MAX_PIXELS:,} pixels")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers may raise anything on corrupt bytes
        return Header(problem=f"not an image that Pillow reads: {error}")


class _Span(io.RawIOBase):
    """A byte range of an open file, as a file of its own."""

    def __init__(self, file: int, first: int, length: int) -> None:
        self.file, self.first, self.length, self.at = file, first, length, 0
        self.name = ""  # pydicom and tifffile read it

    def read_at(self, place: int, count: int) -> bytes:
        """Return at most `count` bytes from `place` on."""
        os.lseek(self.file, self.first + place, os.SEEK_SET)
        return os.read(self.file, max(0, min(count, self.length - place)))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        self.at = base + place
        return self.at

    def readinto(self, buffer: Any) -> int:
        data = self.read_at(self.at, len(buffer))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class _Memory(_Span):
    """Bytes in memory, as a file of its own."""

    def __init__(self, data: bytes) -> None:
        super().__init__(-1, 0, len(data))
        self.data = data

    def read_at(self, place: int, count: int) -> bytes:
        return self.data[place : place + max(0, count)]
