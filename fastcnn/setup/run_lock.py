"""The lock of a run's folder: one run at a time writes into it.

The file `.lock` names the holder. It is locked for as long as the holder lives (flock), and its modification
time is the holder's heartbeat, for hosts and file systems between which that lock does not work.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fastcnn import files
from fastcnn.errors import UserError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
HEARTBEAT = 30.0
"""Seconds between two heartbeats."""
STALE = 180.0
"""Seconds without a heartbeat after which the holder on another host is taken for dead."""
REPLACE_WAIT = 0.3
"""Seconds after which a lock without the kernel's help is the last one of those written at once."""
UNSIGNED = 2.0
"""Max seconds until the holder has written its name."""
HANDOVER = 10.0
"""Max seconds of waiting for a former process of the same torchrun job to end."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that writes into a folder."""

    host: str
    pid: int
    started: str
    """Start of the process since boot, where the system tells it: another process may get the number."""
    boot: str
    """Boot of the machine; "" if unknown."""
    namespace: str
    """Namespace of `pid` on this machine."""
    job: str
    """torchrun's job; "" without torchrun."""
    since: float
    """Unix time at which the lock was taken."""

    @staticmethod
    def current() -> Holder:
        return Holder(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            boot=_boot(),
            namespace=_namespace(),
            job=_job(),
            since=time.time(),
        )

    def has_ended(self) -> bool | None:
        """Return whether the process has ended; None if it cannot be seen from here."""
        if not self.boot or (self.boot, self.namespace) != (_boot(), _namespace()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is another user's
            pass
        return _start_of(self.pid) != self.started

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


UNKNOWN = Holder(host="an unknown host", pid=0, started="", boot="", namespace="", job="", since=0.0)


def is_running(folder: Path) -> bool:
    """Return whether a living process writes into a folder, without a change there; False if unknown."""
    path = folder / LOCK
    try:
        if sys.platform == "win32" or not path.is_file():
            return False
        file = os.open(path, os.O_RDONLY)
        try:
            holder = _read(file)
            age = time.time() - os.fstat(file).st_mtime
        finally:
            os.close(file)
        ended = None if holder is None else holder.has_ended()
    except (OSError, OverflowError):  # a process number out of a foreign file
        return False
    return holder is not None and (age < STALE if ended is None else not ended)


class RunLock:
    """Lock of one folder at a time; released at the end of the block."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.note = ""
        """Line about a lock that was taken over."""
        self._file: int | None = None
        self._end = threading.Event()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, folder: Path) -> None:
        """Lock an existing folder; without effect if this object has locked it, and on Windows.

        Raises:
            UserError: another run holds it.
            WriteError: the folder is not writable.
        """
        if sys.platform == "win32":  # it does not replace open files
            return
        if self.folder is not None and self.folder.samefile(folder):
            return
        self.release()
        deadline = time.monotonic() + HANDOVER
        self.folder = folder
        try:
            while (holder := self._hold(folder / LOCK)) is not None:
                if not (holder.job and holder.job == _job()) or time.monotonic() > deadline:
                    raise UserError(
                        f"--output-dir {folder}: in use by {holder}; wait for its end, or use another folder"
                    )
                time.sleep(0.1)
        except BaseException:
            self.release()
            raise
        threading.Thread(target=self._beat, name="fastcnn-lock", daemon=True).start()

    def check(self) -> None:
        """Check, before a write, that this process still holds the folder; without effect without a lock.

        Raises:
            UserError: another run took over the lock, as after this process was suspended for minutes.
        """
        if self._file is None or self.folder is None:
            return
        path = self.folder / LOCK
        with contextlib.suppress(OSError):  # nobody's, or not readable for now
            if not os.path.samestat(os.fstat(self._file), path.stat()):
                holder = _holder_of(path)
                raise UserError(
                    f"--output-dir {self.folder}: taken over by {holder}, as this process gave no sign of "
                    f"life for {STALE:.0f} s; nothing was written since"
                )

    def release(self) -> None:
        """Remove the lock."""
        if self._file is not None and self.folder is not None:
            self._end.set()
            with contextlib.suppress(OSError):
                if _is_file_of(self._file, self.folder / LOCK):
                    os.unlink(self.folder / LOCK)
            os.close(self._file)
        self.folder, self._file, self._end = None, None, threading.Event()

    def _hold(self, path: Path) -> Holder | None:
        with files.reported(path, "the lock"):
            return self._try(path)

    def _try(self, path: Path) -> Holder | None:
        """Take the lock, or return its holder."""
        begin = time.monotonic()
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            locked = _flock(file)
            holder = _read(file)
            current = _is_file_of(file, path)  # else it was released or replaced meanwhile
            if locked is False and holder is None and time.monotonic() > begin + UNSIGNED:
                holder = UNKNOWN
            if current and holder is not None and not _is_stale(holder, path, locked=locked):
                os.close(file)
                return holder
            if current and locked:
                self._file = file
                _write(file)
            else:
                os.close(file)
                self._file = _replace(path) if current and locked is None else None
            if self._file is not None:
                if holder is not None:
                    self.note = f"took over the lock of {path.parent} from {holder}, which has ended"
                return None
            time.sleep(0.01)

    def _beat(self) -> None:
        end, file = self._end, self._file
        assert file is not None
        while not end.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(file)


def _is_stale(holder: Holder, path: Path, *, locked: bool | None) -> bool:
    """Return whether the holder is gone.

    Args:
        locked: whether this process got the kernel's lock; None if the file system has none.
    """
    if locked and holder.boot and holder.boot == _boot():
        return True
    if locked is False:
        return False
    ended = holder.has_ended()
    if ended is not None:
        return ended
    # Another host, to which the kernel's lock may not extend; a restart of the job may come to another node.
    return (holder.job != "" and holder.job == _job()) or _age(path) > STALE


def _age(path: Path) -> float:
    """Return the seconds since the last heartbeat, by the clock of the file system."""
    probe = _own_name(path)
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _flock(file: int) -> bool | None:
    """Take the kernel's lock: True, False if another process has it, None if there is none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(file: int) -> Holder | None:
    """Return the holder; None if the file is empty or not a lock's. Other versions may have other fields."""
    try:
        stated = json.loads(os.pread(file, 4096, 0))
        known = {name: stated.get(name, value) for name, value in asdict(UNKNOWN).items()}
    except (ValueError, AttributeError):
        return None
    if not {"host", "pid", "since"} <= stated.keys():
        return None
    same_types = all(isinstance(known[name], type(value)) for name, value in asdict(UNKNOWN).items())
    return Holder(**known) if same_types else None


def _holder_of(path: Path) -> Holder:
    file = os.open(path, os.O_RDONLY)
    try:
        return _read(file) or UNKNOWN
    finally:
        os.close(file)


def _write(file: int) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(asdict(Holder.current())).encode(), 0)
    os.fsync(file)


def _replace(path: Path) -> int | None:
    """Put an own file in place of the present one, without the kernel's lock.

    Returns:
        The file; None if another process did the same at once, and later.
    """
    temporary = _own_name(path)
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    _write(file)
    os.replace(temporary, path)
    time.sleep(REPLACE_WAIT)
    if _is_file_of(file, path):
        return file
    os.close(file)
    return None


def _own_name(path: Path) -> Path:
    """Return the name of a file that no other process writes."""
    own = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    return path.with_name(f"{path.name}.{own}")


def _is_file_of(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _job() -> str:
    """Return the name of torchrun's job; without --rdzv-id, its store's address stands for it."""
    name, address = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("MASTER_ADDR", "")
    if name != "none":
        return name
    if address in ("localhost", "::1") or address.startswith("127."):  # every machine may have such a job
        return ""
    return " ".join([name, address, os.environ.get("MASTER_PORT", "")])


def _boot() -> str:
    """Return what identifies the running kernel: on other POSIX systems than Linux the host name."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname() if os.name == "posix" else ""


def _namespace() -> str:
    """Return the namespace of process numbers, which containers of one machine do not share."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _start_of(pid: int) -> str:
    """Return the start of a process in ticks since boot; "" without /proc or such a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
