"""The checks by name, each run in a child process with a time limit: a crash or a hang is a finding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastcnn.doctor.finding import Finding

CHECKS = {
    "machine": ("fastcnn.doctor.machine:check", 30),
    "accelerator": ("fastcnn.doctor.accelerator:check", 60),
    "DALI": ("fastcnn.doctor.dali:check", 60),
    "Triton": ("fastcnn.doctor.compilers:check_triton", 60),
    "torch.compile": ("fastcnn.doctor.compilers:check_compile", 90),
    "processes": ("fastcnn.doctor.processes:check", 90),
    "data": ("fastcnn.doctor.disk:check", 60),
}
"""Function and time limit in seconds; the last check runs alone, since it measures."""
CHILD = (
    "import dataclasses, importlib, json, sys; "
    "module, _, name = sys.argv[1].partition(':'); "
    "function = getattr(importlib.import_module(module), name); "
    "[print(json.dumps(dataclasses.asdict(f)), flush=True) for f in function(sys.argv[2] or None)]"
)
"""Program of the child: prints one finding a line."""


def run_checks(data: str | None, checks: dict[str, tuple[str, int]] = CHECKS) -> Iterator[Finding]:
    """Yield the findings of all checks, in order; some checks run side by side."""
    *together, last = checks
    with ThreadPoolExecutor(max_workers=3) as pool:
        jobs = [pool.submit(run_check, name, *checks[name], data) for name in together]
        for job in jobs:
            yield from job.result()
    yield from run_check(last, *checks[last], data)


def run_check(name: str, function: str, seconds: float, data: str | None) -> list[Finding]:
    """Run a check in a child process; its crash, hang or error is a finding."""
    command = [sys.executable, "-c", CHILD, function, data or ""]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=os.name == "posix",
    )
    try:
        out, err = process.communicate(timeout=seconds)
        ending, advice = _ending(process.returncode, err), "reinstall it in a fresh environment"
    except subprocess.TimeoutExpired:
        _kill(process)
        out, _ = process.communicate()
        ending, advice = f"no answer in {seconds:g} s", "run this again on an idle machine"
    except BaseException:
        _kill(process)
        raise
    findings = [private(Finding(**json.loads(line))) for line in out.splitlines() if line.startswith("{")]
    if ending:
        findings.append(private(Finding(name, "FAIL", ending, advice)))
    return findings


def _ending(status: int, err: str) -> str:
    """Describe how a child failed; "" for success."""
    if status == 0:
        return ""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return (err.strip().splitlines() or [f"status {status}"])[-1]


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a child and its children."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def private(finding: Finding) -> Finding:
    """Replace the home folder by ~."""
    home = str(Path.home())
    hide = (lambda text: text.replace(home, "~")) if len(home) > 1 else (lambda text: text)
    return Finding(finding.name, finding.status, hide(finding.text), hide(finding.advice))
