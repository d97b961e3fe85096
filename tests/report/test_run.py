"""Runs as their folders show them: finished, unfinished, older, damaged, foreign."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from fastcnn.cli.main import main
from fastcnn.errors import UserError
from fastcnn.report import words
from fastcnn.report.listing import find_runs
from fastcnn.report.log import Log
from fastcnn.report.run import open_run
from fastcnn.setup.run_lock import RunLock, is_running
from fastcnn.setup.run_record import read_record
from small_runs import epoch, interval, write_run

# Reading


def test_the_figures_of_a_run(tmp_path):
    run = open_run(write_run(tmp_path / "a", accuracies=(10.0, 60.0, 50.0), planned=3))
    assert (run.name, run.arch, run.data, run.metric) == ("a", "lenet5", "photos", "acc1")
    assert run.best == (60.0, 2.0)
    assert (run.done, run.planned, run.status) == (3, 3, "finished")
    assert run.seconds == 40
    assert run.images_per_second == 900
    assert run.bottleneck == "data wait"
    assert run.shares == pytest.approx(
        {"computing": 0.6, "data": 0.3, "launching": 0, "synchronising": 0.1, "communication": 0}
    )
    assert not run.notes


def test_a_run_of_an_older_version_has_no_run_json(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0, 20.0), planned=2)
    (folder / "run.json").unlink()
    run = open_run(folder)
    assert (run.arch, run.metric, run.best, run.status) == ("lenet5", "acc1", (20.0, 2), "finished")
    assert run.seconds == 20  # of the epochs
    assert run.images_per_second == pytest.approx(1000)
    assert (run.bottleneck, run.verdict) == (None, "")
    assert run.started == pytest.approx(time.time(), abs=60)


def test_the_best_epoch_may_be_the_average_which_no_epoch_has(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0, 20.0), best={"acc1": 25.0, "epoch": 2})
    assert open_run(folder).best == (25.0, 2)


@pytest.mark.parametrize(
    ("session", "status"),
    [
        ({"seconds": 5, "stopped_by": "SIGTERM"}, "stopped"),
        ({}, "stopped"),  # killed
        ({"seconds": 5, "error": "disk full"}, "failed"),
        ({"seconds": 5, "stopped_by": None}, "finished"),  # by --patience
    ],
)
def test_the_status_is_of_the_last_session(tmp_path, session, status):
    folder = write_run(tmp_path / "a", accuracies=(10.0,), planned=9)
    content = read_record(folder)
    content["sessions"].append(session)
    (folder / "run.json").write_text(json.dumps(content))
    assert open_run(folder).status == status


def test_a_run_in_progress_is_known_by_its_lock_which_stays_as_it_is(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0,), planned=9)
    with RunLock() as lock:
        lock.take(folder)
        before = (folder / ".lock").stat()
        assert open_run(folder).status == "running"
        assert (folder / ".lock").stat() == before
    assert not is_running(folder)


def test_the_lock_of_another_host_counts_for_as_long_as_its_heartbeat(tmp_path):
    holder = {
        "host": "other",
        "pid": 7,
        "started": "1",
        "boot": "b",
        "namespace": "n",
        "job": "",
        "since": 1.0,
    }
    (tmp_path / ".lock").write_text(json.dumps(holder))
    assert is_running(tmp_path)
    os.utime(tmp_path / ".lock", (1, 1))
    assert not is_running(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "h", "pid": 1e400, "since": 0}'])
def test_a_damaged_lock_is_no_running_run(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    assert not is_running(tmp_path)


def test_the_line_that_is_being_written_is_no_damage(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0, 20.0))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "epo')
    run = open_run(folder)
    assert len(run.epochs) == 2
    assert run.notes == []


DAMAGE = {
    "not JSON": "nonsense",
    "another type": "[1, 2]",
    "deeply nested": "[" * 50_000,
    "no kind": "{}",
    "an unknown kind": '{"kind": "new", "progress": 1}',
    "no progress": '{"kind": "train"}',
    "a name for a number": '{"kind": "epoch", "progress": 1, "epoch": "one"}',
    "not finite": '{"kind": "epoch", "progress": NaN, "epoch": 1}',
    "a huge number": '{"kind": "epoch", "progress": 1, "epoch": 1' + "0" * 400 + "}",
    "bytes": "\udcff\udcfe",
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_skipped_and_counted(tmp_path, line):
    folder = write_run(tmp_path / "a", accuracies=(10.0, 20.0))
    with (folder / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    run = open_run(folder)
    assert len(run.epochs) == 2
    assert run.notes == ["metrics.jsonl: 1 damaged line skipped"]


@pytest.mark.parametrize("values", [{"val": 7}, {"val": {"acc1": "high"}}, {"shares": []}, {"seconds": None}])
def test_a_record_with_foreign_values_leaves_out_what_it_does_not_know(tmp_path, values):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**epoch(2, 20.0), **values}) + "\n")
    run = open_run(folder)
    assert run.done == 2
    assert run.best is not None
    assert run.shares["data"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("run.json", "{", "run.json is damaged, and skipped"),
        ("run.json", '{"sessions": 3}', "run.json is damaged, and skipped"),
        ("config.yaml", "arch: [", "config.yaml is damaged, and skipped"),
        ("config.yaml", "- a\n", "config.yaml is damaged, and skipped"),
    ],
)
def test_a_damaged_file_is_a_note(tmp_path, name, content, note):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    (folder / name).write_text(content)
    run = open_run(folder)
    assert run.notes == [note]
    assert run.best == (10.0, 1.0)


def test_a_pipe_in_place_of_a_log_is_no_log(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=())
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    assert list(Log(folder)) == []


@pytest.mark.parametrize("path", ["nowhere", "empty", "note.txt"])
@pytest.mark.parametrize("command", ["report", "compare", "runs"])
def test_no_run_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, command, path):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("note.txt").write_text("")
    assert main([command, path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastcnn: error: {path}: ")
    assert err.count("\n") == 1


def test_a_checkpoint_stands_for_its_run(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    (folder / "best.pt").write_bytes(b"")
    assert open_run(folder / "best.pt").folder == folder


# A list of runs


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[list[str]]:
    assert main(["runs", *argv]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


def test_the_list_has_a_line_for_each_run(tmp_path, capsys):
    write_run(tmp_path / "a", accuracies=(10.0, 20.0), planned=2, started=0)
    write_run(tmp_path / "b", accuracies=(), planned=5, started=86400)
    (tmp_path / "notes").mkdir()
    later, earlier = listed(capsys, str(tmp_path))
    day = words.moment(0).split()
    assert earlier == ["a", "lenet5", "photos", "acc1", "20.00%", "2/2", "900", *day, "finished"]
    assert later[:5] == ["b", "lenet5", "photos", "-", "0/5"]
    assert later[-1] == "finished"


@pytest.mark.parametrize(
    ("order", "names"),
    [("when", "cba"), ("name", "abc"), ("best", "bac"), ("epochs", "bac"), ("speed", "abc")],
)
def test_the_list_is_sorted(tmp_path, capsys, order, names):
    for number, (name, accuracies) in enumerate([("a", (50.0,)), ("b", (10.0, 60.0)), ("c", ())]):
        write_run(tmp_path / name, accuracies=accuracies, started=number)
    assert [line[0] for line in listed(capsys, str(tmp_path), "--sort", order)] == list(names)


def test_the_list_as_json(tmp_path, capsys):
    folder = write_run(tmp_path / "a", accuracies=(10.0, 20.0), planned=3, started=5)
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run == {
        "name": "a",
        "folder": str(folder),
        "arch": "lenet5",
        "data": "photos",
        "metric": "acc1",
        "best": 20.0,
        "best_epoch": 2,
        "epochs": 2,
        "planned_epochs": 3,
        "images_per_second": 900,
        "seconds": 40,
        "bottleneck": "data wait",
        "started": 5,
        "status": "finished",
    }


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    write_run(tmp_path / "a\x1b[31m\nb", accuracies=(), arch="x\x1b]0;y\x07\r")
    assert main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert not {"\x1b", "\x07", "\r"} & set(out)


def test_a_list_reads_neither_checkpoints_nor_all_lines(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "a", accuracies=(10.0,), intervals=50)
    (folder / "best.pt").write_bytes(b"no checkpoint")
    parsed: list[bytes] = []
    real: Any = json.loads

    def count(text, *args, **kwargs):
        parsed.append(text)
        return real(text, *args, **kwargs)

    monkeypatch.setattr("fastcnn.report.log.json.loads", count)
    (run,) = find_runs(tmp_path)
    assert run.best == (10.0, 1.0)
    assert len(parsed) <= 4  # run.json, the first line, the epoch


def test_an_older_run_is_listed_without_parsing_all_of_its_settings(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    (folder / "run.json").unlink()
    lengths: list[int] = []

    def parse(text: str) -> dict[str, Any]:
        lengths.append(len(text))
        return {"arch": "lenet5", "data": "photos", "epochs": 3}

    monkeypatch.setattr("fastcnn.report.run.parse_yaml", parse)
    (run,) = find_runs(tmp_path)
    assert (run.arch, run.planned) == ("lenet5", 3)
    assert lengths == [len("arch: lenet5\ndata: photos\nepochs: 2")]


def test_a_run_itself_is_listed(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=(10.0,))
    assert [run.name for run in find_runs(folder)] == ["a"]


def test_intervals_of_a_partial_first_epoch_have_a_metric(tmp_path):
    folder = write_run(tmp_path / "a", accuracies=())
    (folder / "run.json").unlink()
    (folder / "metrics.jsonl").write_text(json.dumps(interval(0.5)) + "\n")
    run = open_run(folder)
    assert (run.metric, run.best, run.done) == ("acc1", None, 0)
    with pytest.raises(UserError):
        open_run(tmp_path)
