"""Whole runs on a real disk that fills up or becomes read-only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastcnn.engine import checkpoint
from fastcnn.files import NEIGHBORS
from runs import QUICK

pytestmark = pytest.mark.faults

FLAGS = (*QUICK, "--data-backend", "torch", "--lr", "0.05", "--epochs", "6")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "fastcnn-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def start(demo: Path, run: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcnn.train", *FLAGS, "--data", str(demo), "--output-dir", str(run)]
    return subprocess.Popen(
        [*command, *flags], cwd=run.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status and the last line of stderr."""
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "Traceback" not in err, err
    return process.returncode, (err.splitlines() or [""])[-1]


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)


def fill(folder: Path, leave: int) -> None:
    """Fill a file system, except for `leave` bytes."""
    usage = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(0, usage.f_bavail * usage.f_frsize - leave)))


def same_weights(one: Path, other: Path) -> bool:
    first, second = (checkpoint.load(folder / "last.pt")["model"] for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("leave", [0, 4096, 100_000])
def test_a_disk_that_fills_up_stops_the_run_in_one_line(tmp_path, demo, disk, leave):
    assert finish(start(demo, tmp_path / "whole"))[0] == 0
    process = start(demo, disk / "run")
    wait_for((disk / "run" / "last.pt").exists, process)
    fill(disk, leave)
    status, line = finish(process)
    assert status == 3
    assert line.startswith("fastcnn: error: cannot write the ")
    assert ": No space left on device (" in line
    assert line.endswith(f"; make room there; then continue with --resume {disk}/run/last.pt")
    assert not list((disk / "run").glob(NEIGHBORS))
    assert all(
        r.endswith("\n") for r in (disk / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    )

    status, line = finish(start(demo, disk / "run", "--resume"))  # still full
    assert status == 3
    assert "cannot write " in line
    (disk / "filler").unlink()
    assert finish(start(demo, disk / "run", "--resume"))[0] == 0
    assert same_weights(tmp_path / "whole", disk / "run")


def test_a_disk_that_becomes_read_only_stops_the_run_in_one_line(tmp_path, demo, disk):
    assert finish(start(demo, tmp_path / "whole"))[0] == 0
    process = start(demo, disk / "run")
    wait_for((disk / "run" / "last.pt").exists, process)

    def remount(mode: str) -> bool:  # busy while a file is open for writing
        command = ["mount", "-o", f"remount,{mode}", disk]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0

    wait_for(lambda: remount("ro"), process)
    status, line = finish(process)
    assert status == 3
    assert ": Read-only file system; mount it for writing; then continue with --resume " in line
    assert remount("rw")
    assert finish(start(demo, disk / "run", "--resume"))[0] == 0
    assert same_weights(tmp_path / "whole", disk / "run")


def test_a_folder_that_is_removed_stops_the_run_in_one_line(demo, disk):
    process = start(demo, disk / "run")
    wait_for((disk / "run" / "last.pt").exists, process)
    (disk / "run").rename(disk / "moved")
    status, line = finish(process)
    assert status == 3
    assert ": No such file or directory; restore its folder; then start again" in line


def test_a_full_disk_of_the_cache_is_a_warning(demo, disk):
    fill(disk, 0)
    environment = {**os.environ, "FASTCNN_CACHE": str(disk)}
    code = "import sys; from fastcnn.train import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, *FLAGS, "--data", str(demo), "--epochs", "1"]
    run = subprocess.run(
        words, cwd=demo.parent, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "warning: cannot write " in run.stderr
    assert "No space left on device" in run.stderr
    assert "Traceback" not in run.stderr
