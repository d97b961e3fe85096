"""Writes of files: whole or not at all, with one error for everything that the machine refuses. Torch-free.

A file is written to a neighbor and renamed. After an error the neighbor is gone, the former file is
there, and `WriteError` names the file, the reason, the free space and the remedy. Writes that a run can do
without, such as its pictures, go through `BestEffort`.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastcnn.errors import UserError, WriteError

NEIGHBORS = ".*.new"
"""Pattern of unfinished files."""
REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or use a file system for larger files",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "make it writable for this user",
    errno.EPERM: "make it writable for this user",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EIO: "check the disk",
    errno.ENOENT: "restore its folder",
    errno.ESTALE: "restore its folder",
    errno.EEXIST: "rename what is in its place",
    errno.ENOTDIR: "rename the file in place of a folder",
    errno.EISDIR: "rename the folder in its place",
    errno.ELOOP: "correct the links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
MISPLACED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}
"""Errors of the place itself, which another place does not have."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def writing(
    path: Path, what: str, *, durable: bool = False, shared: bool = False, twin: Path | None = None
) -> Iterator[BinaryIO]:
    """Open a file whose content gets the name `path` at the end of the block.

    Args:
        what: noun for the error message, such as "the checkpoint".
        durable: wait until the content and its name survive a power cut.
        shared: other processes may write the same file at the same time.
        twin: second name of the content, replaced before `path`.

    Raises:
        WriteError: the content or a name cannot be written. `path` is as it was.
    """
    with reported(path, what):
        if path.is_symlink():
            path = path.resolve()
        if path.exists() and not (path.is_file() or path.is_dir()):  # such as /dev/null, and not replaced
            with open(path, "wb") as special:
                yield special
            return
        temporary = _neighbor(path, shared=shared)
        raw = _Raw(temporary, "w")
    try:
        with io.BufferedWriter(raw) as file:
            yield file
            if durable:
                file.flush()
                with reported(path, what):
                    os.fsync(file.fileno())
        with reported(path, what):
            if twin is not None:
                _duplicate(temporary, twin, durable=durable)
            _rename(temporary, path, durable=durable)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if raw.error is not None:  # serializers raise errors of their own after it
            raise failure(path, what, raw.error) from error
        raise


def write_bytes(path: Path, content: bytes, what: str, *, shared: bool = False) -> None:
    """Write a file atomically; see `writing`."""
    with writing(path, what, shared=shared) as file:
        file.write(content)


def write_text(path: Path, text: str, what: str, *, shared: bool = False) -> None:
    """Write UTF-8 text atomically; bytes of file names that are none stay as they are. See `writing`."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"), what, shared=shared)


def append(path: Path, content: bytes, what: str) -> None:
    """Append to a file, all or nothing.

    Raises:
        WriteError: it cannot be written. The file ends as before.
    """
    with reported(path, what), open(path, "ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def make_folder(path: Path, what: str, *, new: bool = False) -> None:
    """Create a folder and its parents.

    Args:
        new: an existing folder is an error.

    Raises:
        WriteError: it cannot be created.
    """
    with reported(path, what):
        path.mkdir(parents=True, exist_ok=not new)


def save_picture(picture: Any, path: Path, what: str) -> None:
    """Write a picture of Pillow or figure of matplotlib atomically, in the format of its suffix.

    Raises:
        ValueError: the suffix names no format.
        WriteError: it cannot be written.
    """
    stream, suffix = io.BytesIO(), path.suffix.lower()
    if hasattr(picture, "savefig"):
        picture.savefig(stream, dpi=120, format=suffix[1:] or "png")
    else:
        from PIL import Image

        formats = Image.registered_extensions()
        if suffix not in formats:
            raise ValueError(f"unknown file extension: {suffix}")
        picture.save(stream, formats[suffix])
    write_bytes(path, stream.getvalue(), what)


def failure(path: Path, what: str, error: OSError) -> WriteError:
    """Return the error of a write that failed."""
    reason, remedy = error.strerror or str(error), REMEDIES.get(error.errno or 0, "correct it")
    room = None if error.errno in MISPLACED else free_bytes(path)
    free = "" if room is None else f" ({in_units(room)} free)"
    return WriteError(f"cannot write {what} {path}: {reason}{free}; {remedy}", error.errno)


@contextmanager
def of_flag(flag: str) -> Iterator[None]:
    """Turn errors of a place that the user has named into errors of the flag."""
    try:
        yield
    except WriteError as error:
        if error.code not in MISPLACED:
            raise
        raise UserError(f"{flag}: {error}, or use another place") from error


def free_bytes(path: Path) -> int | None:
    """Return the free bytes of the file system that holds a path, or will; None if unknown."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError, ValueError):
            return shutil.disk_usage(place).free
    return None


def in_units(count: float) -> str:
    """Format bytes, such as "1.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def expand_user(path: str | Path, flag: str) -> Path:
    """Expand ~ and ~user of a path, which need not exist.

    Raises:
        UserError: a user without a home folder, or a path that cannot be looked up, such as one too long.
    """
    try:
        expanded = Path(path).expanduser()
        expanded.exists()
    except RuntimeError as error:
        raise UserError(f"{flag} {path}: no home folder is known for it; use the whole path") from error
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; use another path") from error
    return expanded


class BestEffort:
    """Writes that a run can do without: announce the first failure and the next success, and never raise.

    Args:
        what: plural noun for the messages, such as "the curves".
        announce: prints a line.
    """

    def __init__(self, what: str, announce: Callable[[str], None]) -> None:
        self.what = what
        self.announce = announce
        self.failed = False

    def __call__(self, write: Callable[[], None]) -> bool:
        """Call `write`; return False if it failed."""
        try:
            write()
        except Exception as error:  # also those of foreign libraries
            if not self.failed:
                self.failed = True
                with suppress(OSError):  # a log on the same disk
                    self.announce(
                        f"warning: {self.what} are not written, and tried again later: {reason(error)}"
                    )
            return False
        if self.failed:
            self.failed = False
            with suppress(OSError):
                self.announce(f"{self.what} are written again")
        return True


def reason(error: Exception) -> str:
    """Return one line about an error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def report_stdout(error: OSError) -> int:
    """Report a print that failed in one line, and return the exit status; raise any other error again."""
    if error.filename is not None or error.errno not in FULL:
        raise error
    drop_stdout()
    message = f"cannot write to standard output: {error.strerror}; redirect it elsewhere"
    print(f"fastcnn: error: {message}", file=sys.stderr)
    return WriteError.status


def drop_stdout() -> None:
    """Discard what standard output still holds, so that Python does not fail on it at exit."""
    with suppress(OSError, ValueError):  # a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Raw(io.FileIO):
    """A file that keeps its first error."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # network file systems report a full disk here
            self.error = self.error or error
            raise


@contextmanager
def reported(path: Path, what: str) -> Iterator[None]:
    """Turn an OSError of writing `path` into a WriteError."""
    try:
        yield
    except OSError as error:
        raise failure(path, what, error) from error


def _neighbor(path: Path, *, shared: bool) -> Path:
    """Return the name of the unfinished file; it is no longer than a file's name may be."""
    own = f".{os.getpid()}" if shared else ""  # a single writer overwrites the rest of a killed one
    return path.with_name(f".{path.name[:50]}{own}.new")


def _duplicate(path: Path, copy: Path, *, durable: bool) -> None:
    """Give a file a second name, unaffected by later writes under the first."""
    temporary = _neighbor(copy, shared=False)
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        _rename(temporary, copy, durable=durable)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _rename(temporary: Path, path: Path, *, durable: bool) -> None:
    os.replace(temporary, path)
    if durable and os.name == "posix":  # the new name itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
