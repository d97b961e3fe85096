"""run.json: a session for each start of a run, its reasons, bottleneck and end."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from fastcnn import files
from fastcnn.errors import WriteError
from fastcnn.setup.run_record import MAX_SESSIONS, RunRecord, read_record
from runs import QUICK


def test_each_start_of_a_run_is_a_session(train, demo):
    flags = (*QUICK, "--data", demo, "--output-dir", "run", "--log-interval", "4")
    assert train(*flags, "--epochs", "1") == 0
    assert train("--resume", "run/last.pt", "--epochs", "2") == 0
    content = read_record(Path("run"))
    assert (content["arch"], content["task"], content["metric"]) == ("lenet5", "classification", "acc1")
    assert content["images"] == {"train": 160, "val": 50, "test": 0}
    assert (content["classes"], content["epochs"]) == (10, 2)
    first, second = content["sessions"]
    assert (first["step"], second["step"]) == (0, 10)
    assert first["reasons"]["num_classes"] == "of the data"
    assert first["verdict"].startswith("Bottleneck: ")
    assert first["bottleneck"] is not None
    assert 0 < first["setup_seconds"] < first["seconds"]
    assert first["started"] <= second["started"]
    assert first["images_per_second"] > 0
    assert second["best"]["epoch"] in (1, 2)
    assert (second["stopped_by"], second["processes"], second["device"]) == (None, 1, "cpu")
    assert second["environment"]["python"].startswith("3.")


def test_a_run_that_ends_with_an_error_records_it(train, demo, capsys):
    assert train(*QUICK, "--data", demo, "--output-dir", "run", "--epochs", "1", "--lr", "1e30") == 1
    (session,) = read_record(Path("run"))["sessions"]
    assert session["error"] in capsys.readouterr().err
    assert session["seconds"] > 0


def test_a_record_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch):
    lines: list[str] = []
    attempt = files.BestEffort("the records run.json", lines.append)
    record = RunRecord(tmp_path / "run.json", {"sessions": [{}]}, 0.0, attempt)
    real = files.write_text

    def refuse(path: Path, *words: str) -> None:
        raise WriteError("cannot write", errno.ENOSPC)

    monkeypatch.setattr(files, "write_text", refuse)
    record.update(a=1)
    record.update(b=2)
    monkeypatch.setattr(files, "write_text", real)
    record.update(c=3)
    assert [line.partition(":")[0] for line in lines] == [
        "warning",
        "the records run.json are written again",
    ]
    assert read_record(tmp_path)["sessions"] == [{"a": 1, "b": 2, "c": 3}]


def test_other_ranks_write_nothing(tmp_path):
    RunRecord(tmp_path / "run.json", {}, 0.0, None).update(a=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sessions": [1]}', "[" * 100_000, " " * 3_000_000])
def test_a_record_that_is_none_is_empty(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert read_record(tmp_path) == {}


def test_restarts_without_end_do_not_grow_the_record(train, demo):
    Path("run").mkdir()
    Path("run/run.json").write_text(json.dumps({"sessions": [{"step": i} for i in range(200)]}))
    assert train(*QUICK, "--data", demo, "--output-dir", "run", "--epochs", "1") == 0
    sessions = read_record(Path("run"))["sessions"]
    assert len(sessions) == MAX_SESSIONS
    assert [sessions[0]["step"], sessions[-1]["step"]] == [151, 0]
