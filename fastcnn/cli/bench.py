"""`fastcnn bench`: run an ablation, print each variant, write JSON and a plot, compare with a baseline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from fastcnn.bench import ablation, ablation_report, timing
from fastcnn.runtime import environment


def show(settings: ablation.Settings, output: str | None, baseline: str | None, max_regression: float) -> int:
    """Run, print and save an ablation.

    Returns:
        The exit status: 1 if a variant lost more than the fraction `max_regression` against `baseline`.

    Raises:
        UserError: an error of `fastcnn.bench.ablation.run_ablation`, or a baseline of another workload or
            machine.
    """
    before = ablation_report.read(baseline) if baseline is not None else None
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silence the profiler
    content = None
    path = Path()
    for content in ablation.run_ablation(settings):
        variants = content["rungs"]
        if len(variants) == 1:
            print(ablation_report.head(content), ablation_report.HEADER, sep="\n")
            name = f"{ablation.results_name(content['problem'])}.json"
            device = torch.device(content["problem"]["device"])
            path = Path(output or Path("benchmarks/results") / environment.machine_name(device) / name)
        if "costs" not in content:
            print(ablation_report.line(variants[-1]), flush=True)
        timing.write_json(path, content)
    assert content is not None
    print(ablation_report.LEGEND, *ablation_report.cost_lines(content), sep="\n")
    print("".join(f"{line}\n" for line in ablation_report.contention_lines(content)), end="")
    picture = path.with_suffix(".png")
    ablation_report.draw(content, picture)
    print(path, picture, sep="\n")
    if before is None:
        return 0
    slower, compared = ablation_report.regressions(content, before, max_regression)
    for line in slower:
        print(f"fastcnn bench: slower: {line}", file=sys.stderr)
    if not slower:
        print(f"none of {compared} variants lost more than {max_regression:.0%} against {baseline}")
    return 1 if slower else 0
