"""Trackers get a run's records, pictures and texts; they never hold it up and never end it."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import fastcnn
from fake_trackers import Blocked, Broken, Recorder, Unable, feed, installed, open_tracking
from fastcnn import files
from fastcnn.errors import WriteError
from fastcnn.trackers import background
from fastcnn.trackers.base import TrackedRun
from fastcnn.trackers.registry import chosen
from fastcnn.trackers.tensorboard import TensorBoard
from fastcnn.trackers.tracking import read_ids
from runs import QUICK, QUICK_SETTINGS, records

FLAGS = (*QUICK, "--data-backend", "torch", "--lr", "0.05", "--output-dir", "run")


def test_a_run_is_tracked_with_settings_numbers_pictures_and_bottleneck(whole_train, annotated):
    tracker, other = Recorder(), Recorder()
    flags = (*FLAGS, "--arch", "unet/lenet5", "--data", annotated, "--epochs", "1", "--log-interval", "5")
    with installed(wandb=tracker, trackio=other):
        assert whole_train(*flags, "--tracker", "wandb", "trackio", "--tracker-project", "shapes") == 0
    (_, run, resume), *_ = tracker.calls
    assert (run.name, run.project, run.settings["arch"], resume) == ("run", "shapes", "unet/lenet5", None)
    names = {name for _, _, numbers in tracker.of("log") for name in numbers}
    assert {"train/metrics/loss", "train/lr", "train/shares/computing"} <= names
    assert {"epoch/val/miou", "best/miou", "system/cpu_cores"} <= names
    first = records(Path("run"), "train")[0]
    assert tracker.of("log")[0][1] == first["step"]
    assert tracker.of("log")[0][2]["train/metrics/loss"] == first["metrics"]["loss"]
    assert [name for _, _, name in tracker.of("picture")] == ["validation", "curves"]
    assert [name for _, _, name, _ in tracker.of("text")] == ["bottleneck"]
    assert tracker.calls[-1] == ("finish", False)
    assert len(other.calls) == len(tracker.calls)


def test_a_resumed_run_continues_the_trackers_run(train, demo):
    with installed(wandb=(first := Recorder())):
        assert train(*FLAGS, "--data", demo, "--epochs", "1", "--tracker", "wandb") == 0
    assert json.loads(Path("run/trackers.json").read_text()) == {"wandb": "run-1"}
    with installed(wandb=(second := Recorder()), mlflow=(third := Recorder())):
        more = "--tracker", "wandb", "mlflow"
        assert train(*FLAGS, "--data", demo, "--epochs", "2", "--resume", *more) == 0
    assert [tracker.calls[0][2] for tracker in (first, second, third)] == [None, "run-1", None]
    assert min(step for _, step, _ in second.of("log")) > max(step for _, step, _ in first.of("log")[:-1])
    assert set(read_ids(Path("run/trackers.json"))) == {"wandb", "mlflow"}


def test_a_run_that_fails_is_marked(train, demo):
    with installed(wandb=(tracker := Recorder())):
        assert train(*FLAGS, "--data", demo, "--epochs", "1", "--lr", "1e30", "--tracker", "wandb") == 1
    assert tracker.calls[-1] == ("finish", True)


# Never a wait, never an end


def test_steps_go_on_while_a_tracker_waits_for_its_server(train, demo, capsys, monkeypatch):
    monkeypatch.setattr("fastcnn.trackers.tracking.FINISH_SECONDS", 0.2)
    monkeypatch.setattr("fastcnn.trackers.tracking.NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(background, "QUEUED", 3)
    tracker, other = Blocked(), Recorder()
    with installed(wandb=tracker, trackio=other):
        flags = "--epochs", "1", "--log-interval", "1", "--tracker", "wandb", "trackio"
        assert train(*FLAGS, "--data", demo, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(records(Path("run"), "train")) == 10
    assert len(other.of("log")) == 12  # beside it
    assert tracker.of("log") == []
    tracker.released.set()
    for line in (
        "warning: wandb does not answer: some of its records are dropped",
        "waiting up to 0.2 s for wandb",
        "warning: wandb did not finish in 0.2 s: its last records may be missing",
    ):
        assert lines.count(line) == 1, line
    assert lines[-1].startswith("best acc1 ")


LATER = "warning: records of wandb are not written, and tried again later: "


@pytest.mark.parametrize(
    ("tracker", "line"),
    [
        (Unable(), "warning: wandb does not start, and the run continues without it: no route to the server"),
        (Broken(ValueError("full")), f"{LATER}full"),
        (Broken(SystemExit(1)), f"{LATER}it ends the process with status 1"),
    ],
    ids=["start", "log", "exit"],
)
def test_a_tracker_that_fails_is_reported_once(tmp_path, tracker, line):
    with installed(wandb=tracker):
        tracking = open_tracking(tmp_path, "wandb")
        feed(tracking, tmp_path, tuple(range(5)))
    assert tracking.lines() == [line]


def test_tensorboard_writes_again_when_there_is_room_again(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard()
    board.start(TrackedRun(folder=tmp_path, settings={"lr": 1}), None)
    with monkeypatch.context() as patch:
        patch.setattr(files, "append", lambda path, *_: full_disk(path))
        with pytest.raises(WriteError):
            board.log(1, {"loss": 1.0})
    board.log(2, {"loss": 2.0})
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(2, 2.0)]
    assert "settings" in read.Tags()["tensors"]


def full_disk(path: Path) -> None:
    raise files.failure(path, "TensorBoard's file", OSError(errno.ENOSPC, "No space left on device"))


WAITS = ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu", "nonzero")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the operations that wait for the device, in all threads."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        real = getattr(Tensor, name)

        def call(self: Tensor, *args: Any, **settings: Any) -> Any:
            counts[name] += 1
            return real(self, *args, **settings)

        return call

    for name in WAITS:
        monkeypatch.setattr(Tensor, name, counted(name))
    return counts


def test_trackers_add_no_wait_for_the_device(train, demo, waits):
    flags = (*FLAGS, "--data", demo, "--epochs", "1", "--log-interval", "2")
    with installed(wandb=Recorder(), trackio=Recorder()):
        assert train(*flags, "--tracker", "none", "--output-dir", "untracked") == 0
        without = Counter(waits)
        waits.clear()
        assert train(*flags, "--tracker", "wandb", "trackio") == 0
    assert waits == without
    assert sum(without.values()) > 5


# Names, packages and files


def test_a_missing_package_is_one_line_before_anything_starts(train, capsys):
    with installed():
        assert train(*FLAGS, "--data", "nowhere", "--tracker", "wandb") == 2
        assert chosen(None) == ()
    out, err = capsys.readouterr()
    assert err == 'fastcnn: error: --tracker wandb: wandb is not installed; pip install "fastcnn[wandb]"\n'
    assert out == ""
    with installed(tensorboard=Recorder()):
        assert chosen(None) == ("tensorboard",)
        assert chosen("none") == ()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("wandb", "wandb"), "use one or more different trackers, or none"),
        (("wandbb",), "--tracker wandbb: use "),
    ],
)
def test_a_wrong_name_is_one_line(train, capsys, words, advice):
    assert train(*FLAGS, "--tracker", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert advice in line


def test_python_takes_one_name(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"arch": "lenet5", "data": demo, "data_backend": "torch", "lr": 0.05, **QUICK_SETTINGS}
    with installed(wandb=(tracker := Recorder())):
        fastcnn.fit(**settings, epochs=0.1, tracker="wandb", output_dir="run")
    assert tracker.of("finish") == [("finish", False)]


STRANGE = '{"wandb": 3, "other": "x", "mlflow": "../x"}'


@pytest.mark.parametrize("content", ["", "[]", "{", STRANGE, "[" * 9000])
def test_a_file_of_ids_of_somebody_else_is_harmless(tmp_path, content):
    path = tmp_path / "trackers.json"
    path.write_text(content)
    assert read_ids(path) == {}
    assert read_ids(tmp_path / "none") == {}


# The real ones


def test_tensorboard_reads_the_records(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = open_tracking(tmp_path, "tensorboard", arch="lenet5", lr=0.1)
    feed(tracking, tmp_path)
    assert tracking.lines() == []
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/metrics/loss")] == [(1, 0.5), (2, 1.0)]
    assert read.Scalars("train/images_per_second")[0].value == 7.0
    (picture,) = read.Images("validation")
    assert (picture.width, picture.height, picture.step) == (*Image.open(tmp_path / "validation.png").size, 2)
    tensors = {name: read.Tensors(name)[0].tensor_proto for name in read.Tags()["tensors"]}
    texts = {name: tensor.string_val[0].decode() for name, tensor in tensors.items()}
    assert "arch: lenet5" in texts["settings"]
    assert texts["bottleneck"] == "Bottleneck: data."
