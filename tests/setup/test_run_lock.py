"""One run at a time writes into a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastcnn.engine.checkpointer import Checkpointer
from fastcnn.errors import UserError
from fastcnn.setup import run_lock
from fastcnn.setup.run_lock import LOCK, STALE, Holder, RunLock
from runs import QUICK

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders are locked on POSIX systems")

TAKE = "import sys; from pathlib import Path; from fastcnn.setup.run_lock import RunLock; "
TAKE += "RunLock().take(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
OTHER_HOST: dict[str, Any] = {"host": "node7", "boot": "another"}
JOB = {"TORCHELASTIC_RUN_ID": "r50", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}


def general(message: str) -> str:
    """Return a message without the process and the time."""
    return re.sub(r"process \d+ on \S+, since [\d: -]+\d", "process PID on HOST, since TIME", message)


def write(folder: Path, seconds_ago: float = 0.0, **differences: object) -> None:
    """Write the lock of another process; nothing holds the kernel's lock."""
    path = folder / LOCK
    path.write_text(json.dumps(dataclasses.asdict(Holder.current()) | differences))
    at = time.time() - seconds_ago
    os.utime(path, (at, at))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(params=["flock", "no flock"])
def any_file_system(request, monkeypatch):
    if request.param == "no flock":
        monkeypatch.setattr(run_lock, "_flock", lambda file: None)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path, wording, any_file_system):
    with RunLock() as first, RunLock() as second:
        first.take(tmp_path)
        first.take(tmp_path)  # it has it already
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                second.take(tmp_path)
        wording(general(str(caught.value)))
        assert f"process {os.getpid()} on " in str(caught.value)
        first.release()
        assert list(tmp_path.iterdir()) == []
        second.take(tmp_path)
        assert second.note == ""
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_a_lock_that_the_next_one_takes_over(tmp_path, wording, any_file_system):
    command = [sys.executable, "-c", TAKE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with RunLock() as lock, pytest.raises(UserError, match=f"process {process.pid} on "):
            lock.take(tmp_path)
        process.kill()
    with RunLock() as lock:
        lock.take(tmp_path)
        wording(general(lock.note))
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_flock", lambda file: None)
    write(tmp_path, pid=os.getppid(), started="1")
    with RunLock() as lock:
        lock.take(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "node7"}'])
def test_a_file_that_is_not_a_lock_is_replaced(tmp_path, content, any_file_system):
    (tmp_path / LOCK).write_text(content)
    with RunLock() as lock:
        lock.take(tmp_path)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("seconds_ago", [0.9 * STALE, 1.1 * STALE])
def test_a_run_on_another_host_holds_the_folder_until_its_heartbeat_ends(
    tmp_path, seconds_ago, any_file_system
):
    write(tmp_path, seconds_ago, **OTHER_HOST)
    with RunLock() as lock:
        if seconds_ago < STALE:
            with pytest.raises(UserError, match="in use by process .* on node7, since "):
                lock.take(tmp_path)
        else:
            lock.take(tmp_path)
            assert "took over" in lock.note
            assert "node7" in lock.note


def test_the_kernels_lock_of_another_host_counts_for_more_than_its_heartbeat(tmp_path):
    write(tmp_path, 1000, **OTHER_HOST)
    with open(tmp_path / LOCK) as file, RunLock() as lock:
        assert run_lock._flock(file.fileno())
        with pytest.raises(UserError):
            lock.take(tmp_path)


def test_a_restart_on_another_node_takes_over_at_once(tmp_path, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    write(tmp_path, **OTHER_HOST)
    with RunLock() as lock:
        lock.take(tmp_path)
    for name in ("r18", "none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        write(tmp_path, **OTHER_HOST, job="r50")
        with RunLock() as another, pytest.raises(UserError):
            another.take(tmp_path)


def test_jobs_without_a_name_on_two_machines_are_two_jobs(tmp_path, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    write(tmp_path, **OTHER_HOST)
    with RunLock() as lock, pytest.raises(UserError, match="in use by process .* on node7"):
        lock.take(tmp_path)


def test_a_lock_of_another_version_is_understood_and_an_unreadable_one_ends_the_wait(tmp_path, monkeypatch):
    write(tmp_path, **OTHER_HOST, new_field=1)
    with RunLock() as lock, pytest.raises(UserError, match="in use by process .* on node7"):
        lock.take(tmp_path)
    monkeypatch.setattr(run_lock, "UNSIGNED", 0.1)
    (tmp_path / LOCK).write_text('{"pid": "7"}')
    with (tmp_path / LOCK).open() as held:
        run_lock._flock(held.fileno())
        with RunLock() as lock, pytest.raises(UserError, match="in use by process 0 on an unknown host"):
            lock.take(tmp_path)


def test_a_restart_waits_for_the_end_of_the_former_process(tmp_path, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with RunLock() as first, RunLock() as second:
        first.take(tmp_path)
        threading.Timer(0.2, first.release).start()
        second.take(tmp_path)
        monkeypatch.setattr(run_lock, "HANDOVER", 0.2)
        with RunLock() as third, pytest.raises(UserError):
            third.take(tmp_path)


def test_the_heartbeat_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.01)
    with RunLock() as lock:
        lock.take(tmp_path)
        for _ in range(2):
            os.utime(tmp_path / LOCK, (1, 1))
            deadline = time.monotonic() + 10
            while (tmp_path / LOCK).stat().st_mtime == 1:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path, any_file_system):
    for _ in range(3):
        write(tmp_path, pid=ended_process())  # of a dead run
        locks = [RunLock() for _ in range(8)]

        def take(lock: RunLock) -> bool:
            try:
                lock.take(tmp_path)
            except UserError:
                return False
            return True

        with ThreadPoolExecutor(len(locks)) as pool:
            assert sum(pool.map(take, locks)) == 1
        for lock in locks:
            lock.release()
        assert list(tmp_path.iterdir()) == []


def test_a_run_in_a_folder_in_use_ends_before_it_writes(train, demo, capsys, wording):
    flags = (*QUICK, "--data", demo, "--epochs", "1", "--output-dir", "run")
    assert train(*flags) == 0
    with RunLock() as lock:
        lock.take(Path("run"))
        before = {path: path.read_bytes() for path in Path("run").iterdir()}
        capsys.readouterr()
        for resume in ((), ("--resume", "auto"), ("--resume", "run/last.pt")):
            assert train(*flags, "--epochs", "2", *resume) == 2
            wording(general(capsys.readouterr().err))
        assert train(*flags, "--test-only", "--resume", "run/best.pt") == 0
        assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    assert train(*flags, "--epochs", "2", "--resume", "auto") == 0
    assert not (Path("run") / LOCK).exists()


def test_a_run_that_another_one_overtook_does_not_write(train, demo, capsys, wording, monkeypatch):
    flags = (*QUICK, "--data", demo, "--epochs", "1", "--output-dir", "run", "--resume", "auto")
    import fastcnn.setup.plan as plan

    real = plan.check_shapes

    def other_run(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(plan, "check_shapes", real)
        assert train(*flags) == 0

    monkeypatch.setattr(plan, "check_shapes", other_run)
    assert train(*flags) == 2
    wording(capsys.readouterr().err)


def test_a_run_whose_lock_was_taken_over_writes_nothing_more(train, demo, capsys, monkeypatch):
    real = Checkpointer.save
    saved: list[bytes] = []

    def take_over_then_save(run: Checkpointer, *args: object, **kwargs: object) -> None:
        if not saved:
            real(run, *args, **kwargs)  # type: ignore[arg-type]
            saved.append((run.folder / "last.pt").read_bytes())
        (run.folder / "other").mkdir()
        write(run.folder / "other", host="elsewhere")
        os.replace(run.folder / "other" / LOCK, run.folder / LOCK)
        real(run, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpointer, "save", take_over_then_save)
    assert train(*QUICK, "--data", demo, "--epochs", "2", "--output-dir", "run") == 2
    err = capsys.readouterr().err
    assert "--output-dir run: taken over by process" in err
    assert "on elsewhere" in err
    assert Path("run/last.pt").read_bytes() == saved[0]
    assert json.loads((Path("run") / LOCK).read_text())["host"] == "elsewhere"  # not removed at the end
