"""Memory, descriptors and threads of a whole training, sampled from outside. Linux."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COUNTS = ("mib", "descriptors", "threads")


def sample(flags: Sequence[str], minutes: float, every: float = 1.0) -> list[dict[str, float]]:
    """Run `fastcnn train` for some minutes in an empty folder, and sample its process.

    Args:
        flags: of the training, without its length and folder.
        every: seconds between samples.

    Returns:
        Samples: seconds since the first log line, resident MiB, open descriptors and threads.
    """
    samples: list[dict[str, float]] = []
    command = [sys.executable, "-m", "fastcnn.train", *flags, "--epochs", "1000000", "--output-dir", "run"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "run", "metrics.jsonl")
        with open(Path(folder, "out.txt"), "w+") as out:
            process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
            try:
                _wait_for(log, process, Path(out.name))
                begin = time.monotonic()
                while time.monotonic() - begin < 60 * minutes:
                    samples.append({"seconds": time.monotonic() - begin, **state_of(process.pid)})
                    time.sleep(every)
                    if process.poll() is not None:
                        raise SystemExit(f"{' '.join(command)}:\n{Path(out.name).read_text()}")
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            finally:
                process.kill()
                process.wait()
    return samples


def state_of(pid: int) -> dict[str, float]:
    """Return resident MiB, open descriptors and threads of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "mib": int(lines["VmRSS"].split()[0]) / 1024,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(lines["Threads"]),
    }


def rise(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Return how much each count rose over the last half: medians of a tenth of the samples at both ends."""
    half = samples[len(samples) // 2 :]
    tenth = max(1, len(samples) // 10)
    found: dict[str, Any] = {}
    for name in COUNTS:
        first, last = (statistics.median(s[name] for s in part) for part in (half[:tenth], half[-tenth:]))
        found[name] = {"at_half": first, "at_end": last, "rise": last - first}
    return found


def draw(samples: dict[str, list[dict[str, float]]], title: str, colors: dict[str, str], png: Path) -> None:
    """Draw the three counts over time, one below the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    labels = ("resident memory (MiB)", "open descriptors", "threads")
    for axes, name, label in zip(figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1)), COUNTS, labels):
        for backend, points in samples.items():
            x = [point["seconds"] / 60 for point in points]
            axes.plot(
                x, [point[name] for point in points], color=colors[backend], linewidth=1.4, label=backend
            )
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes.set_ylabel(label)
        axes.grid(color="#d9dde1", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_title(title, loc="left")
    figure.axes[0].legend(frameon=False)
    figure.axes[-1].set_xlabel("minutes of training")
    figure.savefig(png, dpi=120)


def _wait_for(log: Path, process: subprocess.Popen[bytes], out: Path) -> None:
    while not log.exists():
        if process.poll() is not None:
            raise SystemExit(out.read_text())
        time.sleep(0.1)
