"""Results file of `bench_kernels.py`: written row by row, continued by the same command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

import kernel_tables as tables
from comparison import same_code
from fastcnn.bench import timing
from fastcnn.runtime import environment, machine
from fastcnn_kernels import dispatch
from fastcnn_kernels.layers import Depthwise, Norm
from kernel_times import Item

CODE = (
    "kernels/fastcnn_kernels/*.py",
    "benchmarks/*kernel*.py",
    "benchmarks/comparison.py",
    "fastcnn/bench/timing.py",
)
"""Git pathspecs of the code that the rows depend on."""


def fields_of(layer: Depthwise | Norm) -> dict[str, int]:
    return {name: value for name, value in vars(layer).items() if name != "count"}


def begin(path: Path, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the report to continue: the file's, without failed rows, if code, machine and settings agree.

    Otherwise the report is empty, and the file is renamed.
    """
    import triton

    report: dict[str, Any] = {
        "what": "kernels",
        "environment": {**environment.environment(device), "triton": triton.__version__},
        "settings": json.loads(json.dumps(settings)),  # as a file has them
        "ceilings": {},
        "rows": [],
        "host": [],
        "geometric_means": [],
    }
    if not path.exists():
        return report
    old = json.loads(path.read_text())
    if why := another(old, report):
        kept = path.with_suffix(".old.json")
        os.replace(path, kept)
        print(f"{path.name} was of {why}: begun anew, and the old one is {kept.name}")
        return report
    for part in ("rows", "host"):
        report[part] = [row for row in old[part] if not any(word in row for word in tables.TROUBLE)]
    if not any("failed" in found for found in old["ceilings"].values()):
        report["ceilings"] = old["ceilings"]
    report["geometric_means"] = tables.geometric_means(report["rows"])
    print(f"{path}: {len(report['rows']) + len(report['host'])} rows are there")
    return report


def another(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Describe the first difference of an old report that rules out continuing it; None if there is none."""
    commit, before = new["environment"]["commit"], old["environment"].get("commit", "")
    if not commit or commit.endswith("+"):
        return "code that no commit has"
    if not same_code(before, commit, *CODE):
        return f"another commit, {before or 'unknown'}, whose kernels differ"
    for part, beside in (
        ("environment", {"date", "commit"}),
        ("settings", {"minutes", "output", "write_dispatch"}),
    ):
        for name in (old[part].keys() | new[part].keys()) - beside:
            if old[part].get(name) != new[part].get(name):
                return f"another {name}"
    return None


def is_done(item: Item, report: dict[str, Any]) -> bool:
    if item.layer is None:
        return bool(report["ceilings"])
    wanted = fields_of(item.layer), item.step, item.batch
    rows = report["host" if item.what == "host" else "rows"]
    return any((row["layer"], row["pass"], row["batch"]) == wanted for row in rows)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write atomically, so that a killed run leaves the previous content."""
    part = path.with_name(path.name + ".part")
    timing.write_json(part, content)
    os.replace(part, path)


def write_dispatch(report: dict[str, Any]) -> Path:
    """Add the depthwise passes to the package's table of the GPU; return its file."""
    gpu, dtype = report["environment"]["gpu"], machine.DTYPES[report["settings"]["dtype"]]
    path = dispatch.SHIPPED / dispatch.file_name(gpu)
    known = dispatch.read(path)
    for layer, batches in tables.dispatch_times(report, str(dtype).removeprefix("torch.")).items():
        known[layer] = {**known.get(layer, {}), **batches}
    write(path, dispatch.table(gpu, known))
    return path
