"""`fastcnn doctor`: each check alone on made-up machines, and its child processes that hang or crash."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcnn.cli.main import main
from fastcnn.doctor import accelerator, checks, compilers, dali, disk, machine, processes
from fastcnn.doctor.finding import Finding


def status(finding: Finding) -> tuple[str, bool]:
    return finding.status, bool(finding.advice)


# Children


def crash(data: str | None) -> Iterator[Finding]:
    yield Finding("first", "OK", f"in {Path.home()}/x")
    os.kill(os.getpid(), signal.SIGSEGV)
    yield Finding("second", "OK", "")


def hang(data: str | None) -> Iterator[Finding]:
    yield Finding("first", "OK", "")
    time.sleep(600)
    yield Finding("second", "OK", "")


def fail(data: str | None) -> Iterator[Finding]:
    yield Finding("first", "OK", "")
    raise ImportError(f"no {data}")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("function", "text"),
    [("crash", "ended by SIGSEGV"), ("hang", "no answer in 3 s"), ("fail", "ImportError: no libx.so")],
)
def test_a_check_that_crashes_or_hangs_is_a_finding(function, text, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    first, second = checks.run_check("sick", f"test_doctor:{function}", 3, "libx.so")
    assert first.status == "OK"
    assert (second.name, second.status, second.text) == ("sick", "FAIL", text)
    if function == "crash":
        assert first.text == "in ~/x"


def test_the_report_and_its_status(monkeypatch, capsys, tmp_path):
    findings = [Finding("cores", "OK", "2"), Finding("clock", "WARN", "late", "set it")]
    monkeypatch.setattr(checks, "run_checks", lambda data: iter(findings))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == f"{'OK':<6}{'cores':<18}2\n{'WARN':<6}{'clock':<18}late: set it\n"
    findings.append(Finding("DALI", "FAIL", "broken", "reinstall it"))
    assert main(["doctor", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["findings"][1] == {"name": "clock", "status": "WARN", "text": "late", "advice": "set it"}
    assert main(["doctor", "--data", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.endswith("none: no such folder; use a folder of images\n")


@pytest.mark.slow
def test_this_machine(capsys, demo):
    assert main(["doctor", "--json", "--data", str(demo)]) == 0
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert {"python", "torch", "CUDA", "Triton", "torch.compile", "gloo", "data", "extras"} <= set(found)
    assert all(f["advice"] for f in found.values() if f["status"] != "OK")


# Checks


def test_cores_and_a_containers_limit(tmp_path, monkeypatch):
    assert status(machine.cores(8, None)) == ("OK", False)
    finding = machine.cores(8, 2.5)
    assert status(finding) == ("WARN", True)
    assert "taskset -c 0-1" in finding.advice
    assert machine.quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert machine.quota(tmp_path) == 2.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine.quota(tmp_path) == 4


def test_few_open_files_and_little_room(monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 2048))
    (finding,) = machine.open_files()
    assert finding.advice == "run ulimit -n 2048 first"
    monkeypatch.setattr(machine, "MIN_SHARED", 10**18)
    monkeypatch.setattr(machine, "MIN_FREE", 10**18)
    assert [status(f) for f in machine.shared_memory(tmp_path)] == [("WARN", True)]
    assert [status(f) for f in machine.free_space("disk", tmp_path)] == [("WARN", True)]
    assert list(machine.shared_memory(tmp_path / "none")) == []


def test_a_clock_that_jumps(monkeypatch):
    assert machine.clock(0.01).status == "OK"
    times = iter((100.0, 103.0))
    monkeypatch.setattr(machine.time, "time", lambda: next(times))
    assert "jumped by 2.9" in machine.clock(0.01).text


def test_extras_are_listed(monkeypatch):
    wanted = ["tqdm", 'numpy>=1; extra == "arrays"', 'nonesuch; extra == "other"', 'x; extra == "dev"']
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: wanted)
    (finding,) = machine.extras()
    assert finding.text.startswith("numpy ")
    assert finding.text.endswith("; not installed: other")


@pytest.mark.parametrize(
    ("runtime", "driver", "sees", "expected"),
    [
        (None, None, False, "OK"),
        ("13.0", None, False, "OK"),
        (None, "580.1", False, "FAIL"),
        ("13.0", "550.54", False, "FAIL"),
        ("12.8", "550.54", False, "FAIL"),
        ("12.8", "550.54", True, "OK"),
    ],
)
def test_cuda_against_the_driver(monkeypatch, runtime, driver, sees, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: sees)
    finding = accelerator.cuda(runtime, driver)
    assert status(finding) == (expected, expected != "OK")


@pytest.mark.parametrize(
    ("cuda", "driver", "expected"),
    [
        ([12], None, "OK"),
        ([12], "530.1", "OK"),
        ([12], "470.1", "FAIL"),
        ([13], "550.1", "FAIL"),
        ([12, 13], "580.1", "FAIL"),
    ],
)
def test_dali_against_the_driver(cuda, driver, expected):
    finding = dali.against_driver("2.4.0", cuda, driver)
    assert status(finding) == (expected, expected != "OK")


def test_dali_decodes(monkeypatch):
    pytest.importorskip("nvidia.dali")
    assert dali.pipeline().status == "OK"


def test_a_missing_compiler_and_triton(monkeypatch):
    monkeypatch.setattr("fastcnn.runtime.machine.has_compiler", lambda: False)
    assert [status(f) for f in compilers.check_compile(None)] == [("WARN", True)]
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    assert [f.status for f in compilers.check_triton(None)] == ["OK"]


def test_triton_compiles_without_a_gpu():
    pytest.importorskip("triton")
    (finding,) = compilers.check_triton(None)
    assert finding.status == "OK"
    assert "compiles a kernel" in finding.text


def test_ranks_that_fail_are_a_finding(monkeypatch):
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    finding = processes.together("gloo")
    assert status(finding) == ("FAIL", True)


def test_the_speed_of_a_folder(demo, tmp_path, monkeypatch):
    finding = disk.speed(demo)
    assert "files/s" in finding.text
    assert status(disk.speed(tmp_path)) == ("FAIL", True)
    monkeypatch.setattr(disk, "SLOW", 1e18)
    ticks = iter(range(1000))
    monkeypatch.setattr(disk.time, "perf_counter", lambda: float(next(ticks)))
    assert status(disk.speed(demo)) == ("WARN", True)
