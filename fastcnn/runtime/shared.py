"""Values in a file whose arrays other processes of the machine map, so that they share its memory."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from typing import Any

ALIGNMENT = 64
"""Arrays begin at multiples of so many bytes."""


def write_shared(value: Any) -> str:
    """Write a value to a temporary file of this user; return its path.

    Raises:
        OSError: the file cannot be written.
    """
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    with tempfile.NamedTemporaryFile(prefix="fastcnn-", delete=False) as file:
        try:
            pickle.dump((content, [array.raw().nbytes for array in arrays]), file)
            for array in arrays:
                file.seek(_aligned(file.tell()))
                file.write(array.raw())
            file.flush()
        except BaseException:  # such as a full disk
            os.remove(file.name)
            raise
    return file.name


def map_shared(path: str) -> Any:
    """Return the value of a file that this user's `write_shared` wrote.

    Its arrays are memory of the file until this process writes to them; the file may be removed meanwhile.
    """
    with open(path, "rb") as file:
        content, sizes = pickle.load(file)
        at = file.tell()
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    arrays = []
    for size in sizes:
        at = _aligned(at)
        arrays.append(mapped[at : at + size])
        at += size
    return pickle.loads(content, buffers=arrays)


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
