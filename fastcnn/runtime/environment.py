"""The machine and software of a measurement, as written into its results."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Return the machine, the software versions, the commit and the date of a measurement."""
    import torchvision

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": commit_of_code(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["driver"] = _driver()
    return facts


def machine_name(device: torch.device) -> str:
    """Return a folder name for results: the GPU, or the processor with vector instructions and threads."""
    if device.type == "cuda":
        return as_name(torch.cuda.get_device_name(device))
    capability = torch.backends.cpu.get_cpu_capability()
    return as_name(f"{_processor()} {capability} {torch.get_num_threads()} threads")


def as_name(text: str) -> str:
    """Keep lowercase letters, digits and dashes; drop marks such as "(R)": they break Markdown links."""
    return re.sub(r"(\(.*?\)|[^a-z0-9])+", "-", text.lower()).strip("-")


def _driver() -> str:
    loaded = Path("/sys/module/nvidia/version")
    if loaded.exists():  # in no time
        return loaded.read_text().strip()
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit_of_code() -> str:
    """Return the measured commit, with "+" if files other than results differ from it.

    A copy without its repository uses $FASTCNN_COMMIT.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps within the repository of another project
        return os.environ.get("FASTCNN_COMMIT", "")
    git = "git", "-C", str(root)
    commit = _output(*git, "rev-parse", "--short", "HEAD")
    elsewhere = ":/", ":(exclude,top)benchmarks/results"
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no", "--", *elsewhere)
    return commit + ("+" if changed else "") if commit else os.environ.get("FASTCNN_COMMIT", "")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
