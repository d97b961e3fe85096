"""Files are written whole or not at all, and one line says what the machine refused."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fastcnn import files
from fastcnn.engine import checkpoint
from fastcnn.errors import UserError, WriteError
from full_disk import refuse_writes

CODES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.EIO, errno.ENOENT, errno.ESTALE, errno.EMFILE, errno.EBUSY),
)


def raises(code: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def break_step(step: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if step == "open":
        monkeypatch.setattr(files._Raw, "__init__", raises(code))
    elif step == "write":
        refuse_writes(monkeypatch, code)
    else:
        monkeypatch.setattr(os, {"sync": "fsync", "rename": "replace"}[step], raises(code))


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["open", "write", "sync", "rename"])
def test_an_error_at_any_step_keeps_the_file_and_leaves_nothing(tmp_path, monkeypatch, step, code):
    path, twin = tmp_path / "last.pt", tmp_path / "best.pt"
    for file in (path, twin):
        file.write_bytes(b"before")
    with monkeypatch.context() as patch:
        break_step(step, code, patch)
        with (
            pytest.raises(WriteError) as caught,
            files.writing(path, "the checkpoint", durable=True, twin=twin) as file,
        ):
            file.write(b"after" * 10_000)
    line = str(caught.value)
    assert line.startswith(f"cannot write the checkpoint {path}: {os.strerror(code)}")
    assert "\n" not in line
    assert "; " in line
    assert (" free)" in line) == (code not in files.MISPLACED)
    assert caught.value.code == code
    assert caught.value.status == 3
    assert [file.read_bytes() for file in (path, twin)] == [b"before"] * 2
    assert sorted(tmp_path.iterdir()) == [twin, path]


def test_a_remedy_is_named_for_every_kind(tmp_path):
    lines = {
        str(files.failure(tmp_path, "x", OSError(code, "no"))).partition("; ")[2] for code in files.REMEDIES
    }
    assert "make room there" in lines
    assert "correct it" not in lines


@pytest.mark.parametrize("count", [0, 100, 60_000, 400_000])
def test_torch_hides_no_reason(tmp_path, monkeypatch, count):
    checkpoint.save(tmp_path / "last.pt", {"format": 2, "step": 1})
    refuse_writes(monkeypatch, errno.ENOSPC, lambda name, written: written > count)
    with pytest.raises(WriteError, match="No space left on device"):
        checkpoint.save(tmp_path / "last.pt", {"step": 2, "model": {"weight": torch.zeros(200_000)}})
    assert torch.load(tmp_path / "last.pt")["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_of_the_writer_is_not_one_of_the_disk(tmp_path):
    def read_and_write(source: Path) -> None:
        with files.writing(tmp_path / "a", "a file") as file:
            file.write(b"half")
            file.write(source.read_bytes())

    with pytest.raises(FileNotFoundError):
        read_and_write(tmp_path / "source")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_links_stay_and_what_is_no_file_is_written_to(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    files.write_text(tmp_path / "link", "new", "a file")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "text", "a file")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        files.write_text(tmp_path / name, "whole", "a file")
        assert (tmp_path / name).read_text() == "whole"
    with pytest.raises(WriteError, match=r"File name too long; use a shorter name"):
        files.write_text(tmp_path / ("x" * 256), "whole", "a file")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_was_removed_is_named(tmp_path):
    with pytest.raises(WriteError, match="No such file or directory; restore its folder"):
        files.write_text(tmp_path / "gone" / "config.yaml", "", "the settings")
    with pytest.raises(WriteError, match="No such file or directory; restore its folder"):
        files.append(tmp_path / "gone" / "metrics.jsonl", b"", "the log")


def test_a_twin_has_the_same_content_and_stays_when_the_first_changes(tmp_path, monkeypatch):
    path, twin = tmp_path / "last.pt", tmp_path / "best.pt"
    for link in (os.link, raises(errno.EPERM)):
        monkeypatch.setattr(os, "link", link)
        for content, best in ((b"1", twin), (b"2", None)):
            with files.writing(path, "the checkpoint", twin=best) as file:
                file.write(content)
        assert (path.read_bytes(), twin.read_bytes()) == (b"2", b"1")


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    files.append(path, b"first\n", "the log")

    class Full(io.FileIO):
        """A file whose disk takes three more bytes."""

        room = 3

        def write(self, content: Any) -> int:
            if not self.room:
                raises(errno.ENOSPC)()
            taken = super().write(content[: self.room])
            self.room -= taken
            return taken

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", lambda path, mode, **_: Full(path, "a"), raising=False)
        with pytest.raises(WriteError, match="No space left"):
            files.append(path, b"second\n", "the log")
    assert path.read_bytes() == b"first\n"
    files.append(path, b"third\n", "the log")
    assert path.read_bytes() == b"first\nthird\n"


def test_what_a_run_can_do_without_is_announced_once_and_tried_again():
    lines: list[str] = []
    attempt = files.BestEffort("the curves", lines.append)
    fails: Callable[[], None] = raises(errno.ENOSPC)

    def works() -> None:
        pass

    assert [attempt(write) for write in (works, fails, fails, works, works, fails)] == [
        *(True, False, False),
        *(True, True, False),
    ]
    assert lines == [
        "warning: the curves are not written, and tried again later: No space left on device",
        "the curves are written again",
        "warning: the curves are not written, and tried again later: No space left on device",
    ]


@pytest.mark.parametrize("suffix", ["png", "jpg", "PNG"])
def test_pictures_have_the_format_of_their_suffix(tmp_path, monkeypatch, suffix):
    pictures = Image.new("RGB", (4, 4)), Figure(figsize=(1, 1))
    for i, picture in enumerate(pictures):
        path = tmp_path / f"{i}.{suffix}"
        files.save_picture(picture, path, "the picture")
        with Image.open(path) as read:
            assert read.format == {"png": "PNG", "jpg": "JPEG"}[suffix.lower()]
        with monkeypatch.context() as patch:
            refuse_writes(patch, errno.EDQUOT)
            with pytest.raises(WriteError, match="Disk quota exceeded"):
                files.save_picture(picture, path, "the picture")
        assert path.stat().st_size > 0
    with pytest.raises(ValueError, match="unknown file extension"):
        files.save_picture(pictures[0], tmp_path / "x.nothing", "the picture")
    assert len(list(tmp_path.iterdir())) == 2


def test_errors_of_a_place_are_mistakes_of_its_flag(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"^--output-dir: .*or use another place$") as caught,
        files.of_flag("--output-dir"),
    ):
        files.make_folder(tmp_path / "file" / "run", "the run's folder")
    assert caught.value.status == 2
    with pytest.raises(WriteError), files.of_flag("--output-dir"):
        raise files.failure(tmp_path, "a file", OSError(errno.ENOSPC, "full"))


def test_the_free_space_is_that_of_the_file_system(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        if not path.exists():
            raise FileNotFoundError(path)
        asked.append(path)
        return usage(12_345_678)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    error = files.failure(tmp_path / "a" / "b", "the log", OSError(errno.ENOSPC, "No space left on device"))
    assert str(error) == (
        f"cannot write the log {tmp_path}/a/b: No space left on device (12.3 MB free); make room there"
    )
    assert asked == [tmp_path]
    assert [files.in_units(n) for n in (0, 999, 1500, 2e12)] == ["0 bytes", "999 bytes", "1.5 kB", "2 TB"]


def test_an_error_reaches_other_ranks_whole():
    error = pickle.loads(pickle.dumps(WriteError("cannot write x: full", errno.ENOSPC).shared()))
    assert (type(error), str(error), error.code) == (WriteError, "cannot write x: full", errno.ENOSPC)


def test_a_home_that_is_not_known_is_a_line():
    assert files.expand_user("~/x", "--data") == Path.home() / "x"
    with pytest.raises(UserError, match=r"^--data ~nouser/x: no home folder is known for it"):
        files.expand_user("~nouser/x", "--data")
