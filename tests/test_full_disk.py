"""A run whose files cannot be written stops with one line and status 3, and can be resumed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import full_disk
from fastcnn import files
from fastcnn.engine import checkpoint
from fastcnn.engine.logger import Logger
from fastcnn.files import NEIGHBORS
from fastcnn.optim.schedules import Schedule
from full_disk import refuse_writes
from ranks import run_ranks
from runs import QUICK, records

FLAGS = (*QUICK, "--data-backend", "torch", "--lr", "0.05", "--epochs", "3", "--output-dir", "run")


def refuse(name: str, code: int, monkeypatch: pytest.MonkeyPatch, when: Callable[[], bool]) -> None:
    """Refuse to write a file of the run as soon as `when()` holds."""
    append = files.append

    def refused(path: Path, content: bytes, what: str) -> None:
        if name in path.name and when():
            raise files.failure(path, what, OSError(code, os.strerror(code)))
        append(path, content, what)

    refuse_writes(monkeypatch, code, lambda path, _: name in path and when())
    monkeypatch.setattr(files, "append", refused)


def has_epochs(count: int) -> bool:
    return Path("run/metrics.jsonl").exists() and len(records(Path("run"), "epoch")) >= count


def weights(folder: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(folder, "last.pt"))["model"]


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if line.startswith("fastcnn: error: "))
    assert "Traceback" not in err
    return line


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "code", "what"),
    [
        (".last.pt.new", errno.ENOSPC, "the checkpoint run/last.pt"),
        slow("metrics.jsonl", errno.EDQUOT, "the log run/metrics.jsonl"),
        slow(".config.yaml.new", errno.EROFS, "the settings run/config.yaml"),
    ],
)
def test_a_run_stops_in_one_line_and_resumes_to_the_same_bits(
    train, demo, capsys, monkeypatch, name, code, what
):
    flags = (*FLAGS, "--data", demo, "--sched", "constant", "--warmup-epochs", "0")
    assert train(*flags, "--output-dir", "whole") == 0
    capsys.readouterr()
    on_resume = name == ".config.yaml.new"
    if on_resume:
        assert train(*flags, "--epochs", "1") == 0
        capsys.readouterr()
    with monkeypatch.context() as patch:
        refuse(name, code, patch, lambda: has_epochs(2 - on_resume))
        assert train(*flags, *(["--resume"] if on_resume else [])) == 3
    line = only_line(capsys)
    assert line.startswith(f"fastcnn: error: cannot write {what}: {os.strerror(code)}")
    assert line.endswith("; then continue with --resume run/last.pt")
    assert not list(Path("run").glob(NEIGHBORS))
    before = checkpoint.load(Path("run/last.pt"))["step"]
    assert train(*flags, "--resume") == 0
    assert f"Resuming from run/last.pt, step {before}" in capsys.readouterr().out
    whole, resumed = weights("whole"), weights("run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [[r["step"] for r in records(Path(folder), "epoch")] for folder in ("run", "whole")]
    assert logs[0] == logs[1]


def test_nothing_was_saved_yet(train, demo, capsys, monkeypatch):
    refuse(".last.pt.new", errno.ENOSPC, monkeypatch, lambda: True)
    assert train(*FLAGS, "--data", demo) == 3
    assert only_line(capsys).endswith("; then start again")
    assert not list(Path("run").glob("*.pt"))


@pytest.mark.slow
def test_pictures_and_tensorboard_do_not_end_a_run(whole_train, annotated, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fastcnn.files.save_picture", fail)
    monkeypatch.setattr("fastcnn.trackers.tensorboard.TensorBoard._write", fail)
    monkeypatch.setattr("fastcnn.engine.logger.CURVES_EVERY", 0.0)
    flags = (*FLAGS, "--arch", "unet/lenet5", "--data", annotated, "--epochs", "1")
    assert whole_train(*flags) == 0
    lines = capsys.readouterr().out.splitlines()
    for what in ("the pictures run/validation.png", "records of tensorboard", "the curves run/curves.png"):
        assert len([line for line in lines if what in line]) == 1, what
    assert Path("run/last.pt").exists()


def test_curves_go_on_when_there_is_room_again(tmp_path, capsys, monkeypatch):
    logger = Logger(tmp_path, Schedule(peak=0.1, steps_per_epoch=1, epochs=9), enabled=True)
    figures = {"images_per_second": 1.0, "data_wait": 0.0, "main_metric": "acc1", "metrics": {"loss": 1.0}}
    for step in range(1, 5):
        with monkeypatch.context() as patch:
            if step in (2, 3):
                refuse("curves", errno.ENOSPC, patch, lambda: True)
            logger.log_steps(0, "", {**figures, "step": step, "progress": float(step)})
            logger._draw()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("epoch")]
    assert [line.partition(":")[0] if line.startswith("warning") else line for line in lines] == [
        "warning",
        f"the curves {tmp_path / 'curves.png'} are written again",
    ]
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_a_terminal_that_is_gone_does_not_end_a_run(tmp_path, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = Logger(tmp_path, Schedule(peak=0.1, steps_per_epoch=1, epochs=9), enabled=True)
    with monkeypatch.context() as patch:
        patch.setattr("fastcnn.engine.logger.print", full, raising=False)
        for _ in range(3):
            logger.info("line")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")  # the same device
    logger.info("line")
    assert capsys.readouterr().out == "line\n"


@pytest.mark.slow
def test_the_room_for_checkpoints_is_compared_before_the_first_step(train, demo, capsys, monkeypatch):
    flags = (*FLAGS, "--data", demo, "--epochs", "1")
    assert train(*flags) == 0
    size = Path("run/last.pt").stat().st_size
    capsys.readouterr()

    def run(free: float, *more: str) -> int:
        monkeypatch.setattr(files, "free_bytes", lambda path: int(free))
        return train(*flags, *more)

    assert run(0.8 * size, "--output-dir", "other") == 3
    line = only_line(capsys)
    assert "cannot write checkpoints to other: one takes about " in line
    assert not list(Path("other").glob("*.pt"))
    assert run(1.5 * size, "--output-dir", "other") == 0
    assert "warning: other: checkpoints may take " in capsys.readouterr().out
    assert run(1.5 * size, "--resume", "--epochs", "2") == 0  # last.pt and best.pt are one file: room for two
    assert "warning: run: checkpoints may take " in capsys.readouterr().out
    assert run(3.5 * size, "--resume", "--epochs", "3") == 0
    assert "warning: run: " not in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="no limits of file sizes")
@pytest.mark.slow
def test_a_limit_of_file_sizes_ends_both_ranks_in_one_line(tmp_path, demo):
    flags = (*FLAGS, "--data", str(demo), "--epochs", "1")
    (first, _, err), (second, _, silent) = run_ranks(full_disk.limited, str(tmp_path), 100_000, *flags)
    assert (first, second) == (3, 3)
    (line,) = (line for line in err.splitlines() if line.startswith("fastcnn: error: "))
    assert line.startswith("fastcnn: error: cannot write the checkpoint run/last.pt: File too large (")
    assert "ulimit -f" in line
    assert "Traceback" not in err + silent
    assert sorted(path.suffix for path in (tmp_path / "run").iterdir() if "tfevents" not in path.name) == [
        *(".json", ".jsonl", ".png", ".yaml")
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no limits of file sizes")
def test_a_log_that_cannot_grow_ends_both_ranks(tmp_path, demo):
    flags = (*FLAGS, "--data", str(demo), "--log-interval", "1")
    answers = run_ranks(full_disk.limited, str(tmp_path), 5_000, *flags)
    assert [status for status, _, _ in answers] == [3, 3]
    assert "cannot write the " in answers[0][2]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)


def test_a_preview_of_the_schedule_in_a_folder_that_cannot_be_written(train, demo, capsys, monkeypatch):
    refuse("schedule.png", errno.EACCES, monkeypatch, lambda: True)
    assert train(*FLAGS, "--data", demo, "--preview-schedule") == 3
    line = only_line(capsys)
    assert "cannot write the picture schedule.png: Permission denied; make it writable for this user" in line


@pytest.mark.parametrize("flag", ["--data", "--output-dir", "--resume", "--weights", "--labels", "--config"])
@pytest.mark.parametrize(
    ("path", "reason"), [("~nouser/x", "no home folder is known for it"), ("x" * 300, "File name too long")]
)
def test_a_path_that_cannot_be_is_one_line(train, demo, capsys, flag, path, reason):
    data = () if flag == "--data" else ("--data", demo)
    assert train(*QUICK, *data, flag, path) == 2
    assert f"{flag} {path}: {reason}; use " in only_line(capsys)
