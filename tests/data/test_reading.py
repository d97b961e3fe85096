"""Files that are none, errors of the machine, and file systems that do not answer."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data import reading
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.mask_files import read_mask
from fastcnn.data.pack import PackSettings, encode
from fastcnn.data.reading import read_file, read_stamped
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.open import open_data
from fastcnn.data.sources.text import read_text_any
from fastcnn.data.sources.walk import list_images
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import ReadError, UserError
from fastcnn.runtime.distributed import Ranks

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
BACKENDS = [pytest.param("dali", marks=needs_dali), "torch", "cached"]
OF_THE_MACHINE = ("EMFILE", "ENFILE", "ENOMEM", "EIO", "EACCES", "ESTALE", "ENOTCONN", "ETIMEDOUT")
PASSING = ("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EAGAIN", "ENOMEM", "ENFILE")

opened = os.open


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WAITS", (0.0, 0.0))


def failing(code: int, times: float, name: str = "") -> Callable[..., int]:
    """`os.open` that fails so many times at files whose path contains `name`."""
    left = [times]

    def fail(path: Any, *args: Any, **kwargs: Any) -> int:
        if name in os.fsdecode(path) and left[0] > 0 and not os.fsdecode(path).endswith(".npz"):
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return opened(path, *args, **kwargs)

    return fail


def photos(folder: Path, count: int = 8) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i}.jpg") for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    return paths


# Regular files alone


@pytest.fixture(params=["pipe", "socket", "folder", "null"])
def special(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    path = tmp_path / "x.jpg"
    with socket.socket(socket.AF_UNIX) as own:
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "socket":
            monkeypatch.chdir(tmp_path)  # the name of a socket is short
            own.bind(path.name)
        elif request.param == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        yield path


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_not_read(special):
    with pytest.raises(OSError):
        read_file(special)


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_a_problem_of_that_image(special, tmp_path):
    (path,) = photos(tmp_path / "photos", 1)
    found = scan("special", [path, str(special)])
    assert list(found.problems) == [1]


@pytest.mark.timeout(20)
def test_pipes_sockets_and_devices_are_skipped_and_named(special, tmp_path):
    photos(tmp_path, 2)
    listing = list_images([tmp_path])
    assert len(listing.paths) == 2
    if special.is_dir():
        assert listing.remarks == ()
    else:
        assert listing.remarks == (f"skipped: {special} is not a regular file",)


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_labels_is_named(tmp_path):
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(UserError, match="not a regular file"):
        read_text_any(tmp_path / "classes.txt")
    with pytest.raises(ValueError, match="not a regular file"):
        read_mask(str(tmp_path / "classes.txt"))


@pytest.mark.timeout(20)
def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path):
    with open(tmp_path / "x.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert scan("sparse", [str(tmp_path / "x.jpg")]).problems == {0: "File too large"}


def test_bytes_and_stamps_are_those_of_the_file(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(200)))
    status = os.stat(tmp_path / "x")
    assert read_stamped(tmp_path / "x") == (bytes(range(200)), (200, status.st_mtime_ns))
    assert read_file(tmp_path / "x", 10, 5) == bytes(range(10, 15))
    assert read_file(tmp_path / "x", 190, 50) == bytes(range(190, 200))
    assert read_file(str(tmp_path / "x"), 300) == b""


# Errors of the machine


@pytest.mark.parametrize("name", PASSING)
def test_an_error_that_passes_is_not_noticed(tmp_path, monkeypatch, name):
    (path,) = photos(tmp_path, 1)
    content = Path(path).read_bytes()
    monkeypatch.setattr(os, "open", failing(getattr(errno, name), times=2))
    assert read_file(path) == content


@pytest.mark.parametrize("name", OF_THE_MACHINE)
def test_an_error_of_the_machine_is_named_in_one_line(tmp_path, monkeypatch, name, wording):
    (path,) = photos(tmp_path, 1)
    monkeypatch.setattr(os, "open", failing(getattr(errno, name), times=9))
    with pytest.raises(ReadError) as caught:
        read_file(path)
    assert caught.value.status == 3
    wording(caught.value)


def test_waits_grow():
    assert list(reading.WAITS) == sorted(reading.WAITS)


@pytest.mark.parametrize("name", ["ENOENT", "ENOTDIR", "ELOOP"])
def test_an_error_of_a_file_is_no_error_of_the_machine(tmp_path, monkeypatch, name):
    paths = photos(tmp_path, 2)
    monkeypatch.setattr(os, "open", failing(getattr(errno, name), times=9, name="1.jpg"))
    assert scan("of the file", paths).problems == {1: os.strerror(getattr(errno, name))}


def loaders_of(paths: list[str], backend: Any) -> Any:
    split = Split(np.arange(len(paths)) % 2, scan("data", paths))
    source = Source(name="photos", train=split, val=split, class_names=("a", "b"))
    settings = LoaderSettings(data_backend=backend, batch_size=4, workers=2, max_bad_fraction=0.5)
    return build_loaders(
        source, Transform(size=16), settings, ranks=Ranks(), device=torch.device("cpu"), seed=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["EMFILE", "EIO", "EACCES"])
def test_an_error_of_the_machine_ends_loading_and_is_no_bad_image(tmp_path, monkeypatch, backend, name):
    paths = photos(tmp_path)
    scan("data", paths)
    train = None if backend == "cached" else loaders_of(paths, backend)[0]  # cached reads as it is built
    monkeypatch.setattr(os, "open", failing(getattr(errno, name), times=99, name="3.jpg"))
    with pytest.raises(ReadError, match=name):
        list(loaders_of(paths, backend)[0] if train is None else train)
    if train is not None:
        assert len(train.bad) == 0
        train.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_little_memory_is_no_bad_image(tmp_path, monkeypatch, backend):
    paths = [path.replace(".jpg", ".png") for path in photos(tmp_path)]
    for path in paths:
        Image.new("RGB", (24, 24), (9, 9, 9)).save(path)

    def too_little(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    scan("data", paths)
    monkeypatch.setattr("fastcnn.data.loaders.dali_images.intact_png", lambda data: None)
    monkeypatch.setattr(Image, "open", too_little)
    with pytest.raises(ReadError, match="ENOMEM"):
        next(iter(loaders_of(paths, backend)[0]))


def test_an_error_of_the_machine_ends_packing(tmp_path, monkeypatch):
    files = scan("data", photos(tmp_path))
    monkeypatch.setattr(os, "open", failing(errno.EIO, times=99))
    with pytest.raises(ReadError, match="EIO"):
        encode(files, 0, PackSettings(max_size=100, quality=90, shard_images=10))


# Folders without permission


def classes(root: Path) -> Path:
    for phase in ("train", "val"):
        for name in ("cat", "dog/puppies"):
            photos(root / phase / name, 2)
    return root


@pytest.mark.parametrize("folder", ["", "train", "train/cat", "train/dog/puppies", "val", "val/dog"])
def test_a_folder_without_permission_is_named_and_not_left_out(tmp_path, monkeypatch, folder):
    root = classes(tmp_path / "data")
    listed = os.scandir

    def refuse(path: Any) -> Any:
        if Path(os.fsdecode(path)) == root / folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError) as caught:
        open_data(DataSettings(data=str(root)), task="classification", seed=0)
    assert str(caught.value) == (
        f"{root / folder}: Permission denied (EACCES); make it readable, or move it elsewhere"
    )


# Time limit

HANGING = """
import os, sys, time
from fastcnn.data import reading
read = os.read
def hang(file, count):
    if os.readlink(f"/proc/self/fd/{file}").endswith("3.jpg"):
        time.sleep(60)
    return read(file, count)
os.read = hang
"""
TRAIN = """
from fastcnn.train import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc names open files")
def test_a_file_that_is_not_read_in_time_is_named_and_ends_the_process(tmp_path):
    photos(tmp_path / "photos")
    script = f"""{HANGING}
from fastcnn.data.sources.headers import scan
with reading.time_limit(0.5):
    for i in range(8):
        reading.read_file(f"photos/{{i}}.jpg")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False
    )
    assert done.returncode == 3
    assert done.stderr == (
        "fastcnn: error: photos/3.jpg: not read within 0.5 s; check its disk or network, or use a longer "
        "--read-timeout\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc names open files")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_ends_at_a_file_that_is_not_read_in_time(tmp_path, backend):
    classes(tmp_path / "data")
    photos(tmp_path / "data" / "train" / "cat")
    flags = ["--data", "data", "--arch", "lenet5", "--data-backend", backend, "--read-timeout", "1s"]
    flags += ["--batch-size", "4", "--epochs", "1", "--device", "cpu", "--output-dir", "run"]
    done = subprocess.run(
        [sys.executable, "-c", HANGING + TRAIN, *flags],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "3.jpg" in line]
    assert line.startswith("fastcnn: error: data/train/cat/3.jpg: not read within 1 s")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_suspended_process_is_not_late(tmp_path):
    script = """
import time
from fastcnn.data import reading
with reading.time_limit(1.0):
    reading.patiently(lambda: (print("begun", flush=True), time.sleep(0.7)), "a.jpg")
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=30) == 0


def test_files_that_are_read_in_time_are_no_reason_to_end(tmp_path):
    paths = photos(tmp_path)
    with reading.time_limit(5):
        assert all(read_file(path) for path in paths)
    assert reading._under_way == {}
