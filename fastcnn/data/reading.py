"""Read files of a data set: regular ones alone, again after errors that may pass, and within a time limit.

An error of the machine, such as too many open files, is not one of the image: it ends the run. torch-free.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fastcnn.errors import ReadError

T = TypeVar("T")
Path = str | bytes | os.PathLike[str]

FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags for reading bytes, without waiting for the writer of a pipe."""
LONGEST = 1 << 34
"""Bytes of a file at most: a sparse file may claim any length."""
OF_THE_FILE = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENXIO", "ENODEV", "EINVAL", "EFBIG")
)
"""Errors of a single file. All others are of the machine."""
MAY_PASS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "ENOMEM", "ENFILE", "ENOBUFS"),
        *("ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
    if hasattr(errno, name)
)
"""Errors of the machine after which a file is read again, such as those of a network file system."""
WAITS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds before each new attempt."""
ADVICE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise the machine's limit of open files",
    errno.ENOMEM: "close other programs, or use fewer --workers",
    errno.EACCES: "make it readable, or move it elsewhere",
    errno.EPERM: "make it readable, or move it elsewhere",
}
DEFAULT_ADVICE = "check its disk or network"


def read_file(path: Path, offset: int = 0, count: int | None = None) -> bytes:
    """Return `count` bytes of a regular file from `offset` on, by default all.

    Raises:
        OSError: missing or not a regular file, an error of this file alone.
        ReadError: an error of the machine that did not pass.
    """
    return read_stamped(path, offset, count)[0]


def read_stamped(path: Path, offset: int = 0, count: int | None = None) -> tuple[bytes, tuple[int, int]]:
    """Return bytes as `read_file`, with the size of the file and its modification time in ns after it."""
    return patiently(lambda: _read(path, offset, count), path)


def _read(path: Path, offset: int, count: int | None) -> tuple[bytes, tuple[int, int]]:
    file, length = open_regular(path)
    try:
        if offset:
            os.lseek(file, offset, os.SEEK_SET)
        content = _take(file, max(0, length - offset) if count is None else count)
        after = os.fstat(file)
    finally:
        os.close(file)
    return content, (after.st_size, after.st_mtime_ns)


def _take(file: int, count: int) -> bytes:
    content = os.read(file, count)
    while 0 < len(content) < count:  # a read of the system is limited
        part = os.read(file, count - len(content))
        if not part:  # it became shorter
            break
        content += part
    return content


def open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file; return its descriptor and its length in bytes.

    Raises:
        OSError: missing, or not a regular file, or longer than `LONGEST`.
    """
    file = os.open(path, FLAGS)
    try:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
        if status.st_size > LONGEST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fsdecode(path))
    except BaseException:
        os.close(file)
        raise
    return file, status.st_size


def patiently(read: Callable[[], T], path: Path) -> T:
    """Return `read()`, which reads a file, and repeat it after errors that may pass.

    Raises:
        OSError: an error of this file alone, see `OF_THE_FILE`.
        ReadError: another error; `path` names the file in it.
    """
    thread = threading.get_ident()
    for wait in (*WAITS, None):
        try:
            _under_way[thread] = time.monotonic(), path
            try:
                return read()
            finally:
                del _under_way[thread]
        except MemoryError as error:
            failure: OSError | MemoryError = error
            code = errno.ENOMEM
        except OSError as error:
            if error.errno is None or error.errno in OF_THE_FILE:
                raise
            failure, code = error, error.errno
        if wait is None or code not in MAY_PASS:
            raise read_error(path, code) from failure
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, in no order.

    Raises:
        OSError: no such folder.
        ReadError: an error of the machine, such as a folder without permission.
    """

    def listed() -> list[os.DirEntry[str]]:
        with os.scandir(os.fspath(folder)) as entries:
            return list(entries)  # type: ignore[arg-type]

    return patiently(listed, folder)


def refuse(error: OSError) -> None:
    """Raise the error of a folder that `os.walk` would pass over."""
    raise error


def read_error(path: Path, code: int | None) -> ReadError:
    """Return the error of the machine with this number of `errno`, met at a file; None: unknown."""
    code = errno.EIO if code is None else code
    name = errno.errorcode.get(code, str(code))
    advice = ADVICE.get(code, DEFAULT_ADVICE)
    return ReadError(f"{shown(path)}: {os.strerror(code)} ({name}); {advice}")


def shown(path: Path) -> str:
    """Return a path for messages; bytes that are no UTF-8 are escaped."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


# Time limit

_under_way: dict[int, tuple[float, Path]] = {}
"""When each thread began to read, and which file."""
LOOKS = 4
"""Looks at the files under way within a time limit."""


@contextmanager
def time_limit(seconds: float, *, flag: str = "--read-timeout") -> Iterator[None]:
    """End the process if a file has not been read within a time, while the block runs.

    A system call on a file system that does not answer cannot be interrupted. So a thread looks at the files
    that the others are at, names the one that is late, and ends the process with status 3.
    """
    done = threading.Event()

    def watch() -> None:
        before, running_since = time.monotonic(), 0.0
        while not done.wait(seconds / LOOKS):
            now = time.monotonic()
            if now - before > seconds / 2:  # this process was suspended, and its reads with it
                running_since = now
            before = now
            under_way = list(_under_way.values())
            late = [path for since, path in under_way if now - max(since, running_since) > seconds]
            if late and not done.is_set():
                _end(late[0], seconds, flag)

    thread = threading.Thread(target=watch, name="fastcnn-read-timeout", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _end(path: Path, seconds: float, flag: str) -> None:
    message = f"{shown(path)}: not read within {seconds:g} s; {DEFAULT_ADVICE}, or use a longer {flag}"
    os.write(2, f"fastcnn: error: {message}\n".encode())  # unlike print, safe within another print
    os._exit(ReadError.status)
