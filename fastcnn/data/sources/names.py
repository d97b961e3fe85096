"""Many file names in one buffer: a million Python strings would take seconds and hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

CHUNK = 10_000
"""Names that exist as Python objects at a time."""


class Names(Sequence[str]):
    """A read-only sequence of N file names, as `os.fsdecode` gives them.

    Args:
        text: encoded names, each followed by at least one other byte or the end, uint8 [bytes].
        starts: first byte of each name, int64 [N].
        lengths: number of bytes of each name, int32 [N].
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        self.text, self.starts, self.lengths = text, starts, lengths

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Return the names in one buffer; they hold no zero bytes."""
        if isinstance(names, Names):
            return names
        names = list(names)
        return cls.split("\0".join(names).encode("utf-8", "surrogateescape"), len(names))

    @classmethod
    def split(cls, text: bytes | np.ndarray, count: int) -> Names:
        """Return the `count` encoded names that zero bytes separate."""
        data = np.frombuffer(text, dtype=np.uint8) if isinstance(text, bytes) else text
        if not count:
            return cls(data[:0], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32))
        ends = np.append(np.flatnonzero(data == 0), len(data))
        if len(ends) != count:
            raise ValueError(f"{len(ends)} names in a text of {count}")
        starts = np.concatenate([[0], ends[:-1] + 1])
        return cls(data, starts, (ends - starts).astype(np.int32))

    @classmethod
    def join(cls, parts: Sequence[Names]) -> Names:
        """Return the names of all parts, in order."""
        parts = [part for part in parts if len(part)]
        return cls.split(b"\0".join(part.joined().data for part in parts), sum(map(len, parts)))

    @classmethod
    def pairs(cls, first: Names, second: Names) -> Names:
        """Return the names `first/second`."""
        pairs = zip(first.encoded(), second.encoded())
        return cls.split(b"\0".join(b"/".join(pair) for pair in pairs), len(first))

    def joined(self) -> np.ndarray:
        """Return the encoded names, separated by zero bytes, uint8 [bytes]; equal for equal names."""
        text = self._in_place()
        return np.frombuffer(b"\0".join(self.encoded()), dtype=np.uint8) if text is None else text

    def _in_place(self) -> np.ndarray | None:
        """Return the names as they lie in the buffer, if zero bytes separate them there, else None."""
        if not len(self):
            return self.text[:0]
        ends = self.starts + self.lengths
        together = (self.starts[1:] == ends[:-1] + 1).all() and not self.text[ends[:-1]].any()
        return self.text[self.starts[0] : ends[-1]] if together else None

    def encoded(self) -> Iterator[bytes]:
        """Yield the names as bytes."""
        for first in range(0, len(self), CHUNK):
            yield from self[first : first + CHUNK].as_bytes()

    def as_bytes(self) -> list[bytes]:
        """Return the names as bytes, for parts of many names."""
        text = self._in_place()
        if text is not None and len(self):
            return text.tobytes().split(b"\0")
        view, ends = self.text.data, self.starts + self.lengths
        return [bytes(view[start:end]) for start, end in zip(self.starts.tolist(), ends.tolist())]

    def encode(self, index: int) -> bytes:
        """Return a name as bytes."""
        start = self.starts[index]
        return self.text[start : start + self.lengths[index]].tobytes()

    def take(self, indices: np.ndarray) -> Names:
        """Return the names at `indices`, in that order, in the same buffer."""
        return Names(self.text, self.starts[indices], self.lengths[indices])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return Names(self.text, self.starts[index], self.lengths[index])
        return self.encode(index).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for name in self.encoded():
            yield name.decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return len(self) == len(other) and np.array_equal(self.joined(), other.joined())
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({list(self[:3])}{', ...' if len(self) > 3 else ''})"
