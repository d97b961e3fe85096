"""Printed lines, picture and regression check of an ablation, from the content of its JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastcnn import files
from fastcnn.bench import timing
from fastcnn.errors import UserError
from fastcnn.profiling.bottleneck import WORTH_SAYING
from fastcnn.runtime import machine

Content = dict[str, Any]

MACHINE = ("gpu", "processor", "cpu_capability", "threads")
"""Parts of the environment that a speed-up depends on."""

HEADER = (
    f"{'':<22}{'ms a step':>10}{'img/s':>9}{'speed-up (quartiles)':>23}{'of roofline':>13}"
    f"{'memory':>9}{'start':>8}{'pays off':>13}{'loss':>9}"
)
LEGEND = """\
speed-up: times the first row, step by step in turn; + stays on in the rows below. of roofline: share of the
speed that the machine's products and copies would allow. start: seconds of building and the first call, and
after how many steps what is longer than before is won back. loss: largest difference from the first row's
in the first steps (ten, or as few as three of slow ones)."""


def head(content: Content) -> str:
    workload, environment, roofline = content["problem"], content["environment"], content["roofline"]
    where = environment.get("gpu") or f"{environment['processor']}, {environment['threads']} threads"
    rates = roofline["product_flops_per_second"]
    speeds = [
        f"{rates[dtype] / 1e12:,.2f} TFLOP/s in {name}"
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        if dtype in rates
    ]
    missing = "" if "bfloat16" in rates else f"; {machine.NO_BF16}"
    return (
        f"{workload['arch']}, {workload['img_size']} px, batch {workload['batch_size']}, on {where}, "
        f"torch {environment['torch']}\n"
        f"{roofline['flops'] / workload['batch_size'] / 1e9:.3g} GFLOP an image forward and backward; "
        f"this machine copies {roofline['copy_bytes_per_second'] / 1e9:,.0f} GB/s and multiplies matrices at "
        f"{', '.join(speeds)}{missing}"
    )


def line(variant: Content) -> str:
    if "left_out" in variant:
        return f"  {variant['name']:<20}  {variant['left_out']}"
    seconds, speedup, payoff = variant["seconds"], variant["speedup"], variant["payoff_steps"]
    memory = variant["peak_bytes"]
    speed = timing.spread(speedup)
    return (
        f"{'+' if variant['kept'] else ' '} {variant['name']:<20}{1000 * seconds['median']:>10.1f}"
        f"{variant['images_per_second']:>9,.0f}{speed:>23}{variant['share_of_roofline']:>13.0%}"
        f"{'' if memory is None else f'{memory / 2**20:,.0f} MB':>9}{variant['start_seconds']:>6.1f} s"
        f"{_payoff(payoff):>13}{variant['loss_difference']:>9.0e}"
    )


def cost_lines(content: Content, most: int = 10) -> list[str]:
    """Lines of the largest costs of the best step."""
    costs = content["costs"]
    if "left_out" in costs:
        return [f"a trace of the best step {costs['left_out']}"]
    lines = [f"{'ms':>8}{'of all':>8}{'floor':>8}{'calls':>7}  of the step {costs['of']!r}, traced"]
    for cost in costs["largest"][:most]:
        floor = cost["floor_seconds"]
        lines.append(
            f"{1000 * cost['seconds']:>8.2f}{cost['seconds'] / costs['seconds']:>8.0%}"
            f"{'' if floor is None else f'{1000 * floor:.2f}':>8}{cost['calls']:>7g}  "
            f"{cost['name']} {cost['shapes']}".rstrip()
        )
    return lines


def contention_lines(content: Content) -> list[str]:
    """A warning if other processes competed for the cores."""
    share = content.get("crowded", 0.0)
    if share < WORTH_SAYING:
        return []
    return [
        f"warning: CPU contention: {share:.0%} of its time the first row waited for a core; do "
        "not trust these figures, and measure while nothing else runs"
    ]


def _payoff(steps: float | None) -> str:
    return "never" if steps is None else f"{steps:,.0f} steps" if steps else ""


def draw(content: Content, path: Path) -> None:
    """Draw a bar for each variant, with the spread of its speed, and the roofline."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    workload = content["problem"]
    variants = [variant for variant in content["rungs"] if "left_out" not in variant]
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.42 * len(variants)), layout="constrained")
    rates = [variant["images_per_second"] for variant in variants]
    low, high = (
        [workload["batch_size"] / variant["seconds"][q] for variant in variants]
        for q in ("quartile_3", "quartile_1")
    )
    spread = [[max(0, r - lo) for r, lo in zip(rates, low)], [max(0, hi - r) for r, hi in zip(rates, high)]]
    colors = ["#3b6ea5" if variant["kept"] or variant is variants[-1] else "#c9cfd6" for variant in variants]
    places = range(len(variants))
    axes.barh(places, rates, color=colors, xerr=spread, error_kw={"ecolor": "#555", "elinewidth": 1})
    longest = max(high)
    for place, variant, end in zip(places, variants, high):
        text = f"{variant['images_per_second']:,.0f} img/s, {variant['speedup']['median']:.2f}x"
        axes.text(end + 0.01 * longest, place, text, va="center", fontsize=9)
    least = content["roofline"]["least_seconds"]
    axes.set_yticks(places, [("+ " if r["kept"] and i else "") + r["name"] for i, r in enumerate(variants)])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * longest)
    axes.set_xlabel(
        "training images a second (bars: median, lines: quartiles); roofline: "
        + ", ".join(f"{workload['batch_size'] / seconds:,.0f} in {dtype}" for dtype, seconds in least.items())
    )
    where = content["environment"].get("gpu") or content["environment"]["processor"]
    axes.set_title(
        f"{workload['arch']}, {workload['img_size']} px, batch {workload['batch_size']}, {where}; "
        "grey: did not stay on",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    files.save_picture(figure, path, "the picture")
    plt.close(figure)


def read(file: str) -> Content:
    """Read the JSON file of an ablation.

    Raises:
        UserError: no such file, or not of an ablation.
    """
    try:
        content = json.loads(files.expand_user(file, "--baseline").read_text())
    except OSError as error:
        raise UserError(
            f"--baseline {file}: {error.strerror}; use a file that fastcnn bench wrote"
        ) from error
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("what") != "ladder":
        raise UserError(f"--baseline {file}: use a JSON file of fastcnn bench, which this is not")
    return content


def regressions(now: Content, before: Content, most: float) -> tuple[list[str], int]:
    """Return a line for each variant that lost more than the share `most` of its speed-up over eager PyTorch
    or that no longer runs, and the number of variants compared.

    Speed-ups are compared, not seconds, since both sides of a speed-up were timed in turn. A variant is
    compared if its optimizations are the same in both.

    Raises:
        UserError: the baseline has another workload or machine, or no variant in common.
    """
    for part, names in (("problem", tuple(before["problem"])), ("environment", MACHINE)):
        theirs, ours = ({name: c[part].get(name) for name in names} for c in (before, now))
        if part == "environment" and (ours["gpu"] or theirs["cpu_capability"] is None):
            theirs["cpu_capability"] = ours["cpu_capability"]  # irrelevant on a GPU, or an older file
        if theirs != ours:
            of = ", ".join(f"{name} {value}" for name, value in theirs.items() if value != ours[name])
            raise UserError(f"--baseline: it is of {of}; measure the same")
    # The first variant is the baseline, with a speed-up of 1 in both.
    known = {variant["name"]: variant for variant in before["rungs"][1:] if "left_out" not in variant}
    lines, compared = [], 0
    for variant in now["rungs"]:
        old = known.get(variant["name"])
        if old is None:
            continue
        if variant.get("left_out", "").startswith("failed"):
            compared += 1
            lines.append(f"{variant['name']}: {variant['left_out']}")
        elif "left_out" not in variant and variant["switches"] == old["switches"]:
            compared += 1
            then, today = old["speedup"]["median"], variant["speedup"]["median"]
            if today < (1 - most) * then:
                lines.append(f"{variant['name']}: {today:.2f} times eager PyTorch, {then:.2f} before")
    if not compared:
        raise UserError("--baseline: it has no variant in common with this run; measure it again")
    return lines, compared
