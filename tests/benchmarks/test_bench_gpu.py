"""benchmarks/gpu.py: in which order, within which time, and from where it goes on."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
gpu = importlib.import_module("gpu")
CPU = torch.device("cpu")


def item(name: str, at_most: float = 1.0, left_out: str = ""):
    return gpu.Item(name=name, command=(name,), at_most=at_most, left_out=left_out)


class Machine:
    """A clock, and commands that take a known time of it."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        self.called: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, command, limit: float):
        name = command[0]
        self.called.append(name)
        taken = self.seconds[name]
        self.now += min(taken, limit)
        return None if taken > limit else 3 if name == "broken" else 0


def work(items, minutes, path, machine, commit="abc"):
    return gpu.run(items, minutes, path, commit, clock=machine.clock, call=machine.call)


def test_items_are_worked_off_in_order_and_what_is_left_out_says_why(tmp_path):
    machine = Machine(a=10, b=20)
    outcome = work([item("a"), item("c", left_out="needs a CUDA GPU"), item("b")], 5, tmp_path / "p", machine)
    assert machine.called == ["a", "b"]
    assert outcome == {"a": "done in 10 s", "c": "left out: needs a CUDA GPU", "b": "done in 20 s"}


def test_it_ends_in_time_and_begins_nothing_when_it_is_over(tmp_path):
    machine = Machine(a=100, b=1000, c=1)
    outcome = work([item("a"), item("b"), item("c")], 5, tmp_path / "p", machine)
    assert machine.now <= 300
    assert outcome["b"] == "ended after 190 s: its time was over"
    assert outcome["c"] == "no time was left"


def test_an_item_takes_no_more_than_its_share(tmp_path):
    machine = Machine(a=1000, b=1)
    outcome = work([item("a", at_most=0.5), item("b")], 10, tmp_path / "p", machine)
    assert outcome == {"a": "ended after 300 s: its time was over", "b": "done in 1 s"}


def test_the_next_run_goes_on_after_what_is_done(tmp_path):
    items, path = [item("a"), item("broken"), item("b")], tmp_path / "p"
    outcome = work(items, 5, path, Machine(a=1, broken=1, b=1000))
    assert outcome["broken"] == "ended after 1 s: status 3"
    machine = Machine(a=1, broken=1, b=1)
    outcome = work(items, 5, path, machine)
    assert machine.called == ["broken", "b"]
    assert outcome["a"] == "done before"


def test_what_goes_on_by_itself_is_called_again(tmp_path):
    kernels = gpu.Item(name="a", command=("a",), at_most=1.0, resumes=True)
    work([kernels], 5, tmp_path / "p", Machine(a=1))
    machine = Machine(a=1)
    work([kernels], 5, tmp_path / "p", machine)
    assert machine.called == ["a"]


@pytest.mark.parametrize("commit", ["def", "abc+", ""])
def test_another_commit_or_changed_files_begin_anew(tmp_path, commit):
    work([item("a")], 5, tmp_path / "p", Machine(a=1), commit="abc" if commit == "def" else commit)
    machine = Machine(a=1)
    work([item("a")], 5, tmp_path / "p", machine, commit=commit)
    assert machine.called == ["a"]


def test_later_commits_go_on_unless_they_change_what_is_measured(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        person = "-c", "user.name=a", "-c", "user.email=a@b"
        call = ("git", "-C", str(tmp_path), *person, *command)
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    def commit(file: str, text: str) -> str:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        git("add", ".")
        git("commit", "-qm", "x")
        return git("rev-parse", "--short", "HEAD")

    git("init", "-q")
    (tmp_path / "fastcnn").mkdir()
    monkeypatch.setattr("comparison.__file__", str(tmp_path / "benchmarks" / "comparison.py"))
    first = commit("fastcnn/engine/step.py", "1")
    results = commit("benchmarks/results/gpu/a.json", "{}")
    words = commit("benchmarks/LOG.md", "it was fast")
    tests = commit("tests/test_x.py", "1")
    for later in (first, results, words, tests):
        assert gpu.same_code(first, later, *gpu.CODE)
    code = commit("fastcnn/engine/step.py", "2")
    assert not gpu.same_code(first, code, *gpu.CODE)
    assert gpu.same_code(first, code, "kernels")
    for unknown in ("", "0123456", f"{first}+"):
        assert not gpu.same_code(first, unknown, *gpu.CODE)
        assert not gpu.same_code(unknown, first, *gpu.CODE)

    work([item("a")], 5, tmp_path / "p", Machine(a=1), commit=first)
    assert work([item("a")], 5, tmp_path / "p", Machine(), commit=tests) == {"a": "done before"}
    machine = Machine(a=1)
    work([item("a")], 5, tmp_path / "p", machine, commit=code)
    assert machine.called == ["a"]


def test_chosen_items_share_all_the_time(wording):
    items = [item("train-a", 0.1), item("ladder-a", 0.3), item("train-b", 0.2), item("loader", 0.3)]
    (alone,) = gpu.chosen(items, ["ladder"])
    assert (alone.name, alone.at_most) == ("ladder-a", 1.0)
    some = gpu.chosen(items, ["loader", "train"])
    assert [(i.name, round(i.at_most, 3)) for i in some] == [
        ("train-a", 0.167),
        ("train-b", 0.333),
        ("loader", 0.5),
    ]
    with pytest.raises(SystemExit, match="^--only leader: ") as caught:
        gpu.chosen(items, ["train", "leader"])
    wording(caught.value)


def test_a_command_that_ends_by_itself_is_told_how_long_it_has(tmp_path):
    told = []

    def call(command, limit):
        told.append((command, limit))
        return 0

    ladder = gpu.Item(name="a", command=("a",), at_most=0.5, takes_minutes=True)
    gpu.run([ladder, item("b")], 10, tmp_path / "p", "abc", clock=lambda: 0.0, call=call)
    assert told == [(("a", "--minutes", "3.75"), 300), (("b",), 590)]


@pytest.mark.parametrize(("seconds", "done"), [(200, True), (230, False)])
def test_what_ended_for_want_of_time_is_not_done(tmp_path, seconds, done):
    ladder = gpu.Item(
        name="a", command=("a",), at_most=0.5, takes_minutes=True
    )  # told to begin nothing after 225 of 300 seconds
    outcome = work([ladder], 10, tmp_path / "p", Machine(a=seconds))
    said = "done in 200 s" if done else "ended after 230 s, maybe not with everything"
    assert outcome == {"a": said}
    machine = Machine(a=seconds)
    work([ladder], 10, tmp_path / "p", machine)
    assert machine.called == ([] if done else ["a"])


def test_progress_is_written_after_each_item(tmp_path):
    path, machine = tmp_path / "sub" / "p", Machine(a=1, b=1)

    def call(command, limit):
        if command[0] == "b":
            assert json.loads(path.read_text())["seconds"] == {"a": 1.0}
        return machine.call(command, limit)

    gpu.run([item("a"), item("b")], 5, path, "abc", clock=machine.clock, call=call)


@pytest.mark.slow
def test_a_command_and_what_it_started_are_ended(tmp_path):
    """Its child would outlive it."""
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); "
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(60)"
    )
    begin = time.monotonic()
    assert gpu._call([sys.executable, "-c", code], gpu.GRACE + 3) is None
    assert time.monotonic() - begin < gpu.GRACE + 3
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the child lives on")


def test_kernels_come_first_then_resnet50_then_the_others_then_the_loader():
    cuda = torch.device("cuda")
    settings = gpu.Settings(minutes=20, data="/photos")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as m:
        m.setattr(gpu.environment, "machine_name", lambda device: "gpu")
        names = [item.name for item in gpu.plan(settings, cuda, Path("r"))]
    assert names[:3] == ["precompile", "kernels", "accelerate"]
    assert names[3:5] == ["train-resnet50-224px-batch256", "ladder-resnet50-224px-batch256"]
    assert names.index("loader") < names.index("train-efficientnet_b0-224px-batch256")
    assert names.index("train-vit_b_16-224px-batch128") < names.index("batch32-kernels")
    assert names[-1] == "layers"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_measures_nothing(capsys):
    assert gpu.main(gpu.Settings()) == 0
    assert "no CUDA device here" in capsys.readouterr().out
