"""Tables of a report of `bench_kernels.py`: lines, geometric means, Markdown, the table for `dispatch`.

A report is the content of its JSON file; nothing here measures.
"""

from __future__ import annotations

import statistics
from typing import Any

from fastcnn.bench import timing
from fastcnn_kernels import dispatch
from fastcnn_kernels.layers import NETWORKS, Depthwise
from kernel_sides import PASSES

NOT_MEASURED = "not measured"
TROUBLE = ("wrong", "failed")
"""Keys of a row without times."""
HEADER = (
    f"{'layer':<19}{'batch':>5} {'pass':<15}{'ours us':>9}{'eager us':>10}{'compiled':>10}"
    f"{'eager / ours (quartiles)':>26}{'of a copy':>11}"
)


def kind_name(layer: dict[str, int]) -> str:
    return f"LRN {layer['window']}" if "window" in layer else f"{layer['kernel']}x{layer['kernel']}"


def layer_name(layer: dict[str, int]) -> str:
    """Name of a layer by kernel, stride, channels and size."""
    stride = f" s{layer['stride']}" if "stride" in layer else ""
    return f"{kind_name(layer)}{stride} {layer['channels']}x{layer['size']}x{layer['size']}"


def line(row: dict[str, Any]) -> str:
    """Printed line of a row."""
    start = f"{layer_name(row['layer']):<19}{row['batch']:>5} {row['pass']:<15}"
    if trouble := [f"{word}: {row[word]}" for word in TROUBLE if word in row]:
        return (start + trouble[0])[:110]
    times = row["microseconds"]
    ours, eager, compiled = (
        f"{times[name]['median']:.1f}" if name in times else "" for name in ("ours", "eager", "compiled")
    )
    ratio, share = row["ratios"]["eager"], row.get("share_of_copy")
    note = f"{share['ours']:.0%}" if share else "-" if "bytes" in row else "host's"
    return f"{start}{ours:>9}{eager:>10}{compiled:>10}{timing.spread(ratio):>26}{note:>11}"


def ceiling(name: str, ceilings: dict[str, Any]) -> str:
    if "per_second" not in ceilings.get(name, {}):
        return f"{name} {'failed' if name in ceilings else NOT_MEASURED}"
    unit = "TB/s" if name == "copy" else "TFLOP/s"
    return f"{name} {ceilings[name]['per_second'] / 1e12:.3g} {unit}"


def geometric_means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means of the layers' ratios, by kernel size and over all, for each pass and batch size."""
    groups: dict[tuple[str, str, int, str], list[float]] = {}
    for row in rows:
        for side, ratio in row.get("ratios", {}).items():
            for group in (kind_name(row["layer"]), f"all {row['kind']}"):
                key = group, row["pass"], row["batch"], side
                groups.setdefault(key, []).append(ratio["median"])
    return [
        {
            "group": group,
            "pass": step,
            "batch": batch,
            "against": side,
            "layers": len(ratios),
            "ratio": statistics.geometric_mean(ratios),
        }
        for (group, step, batch, side), ratios in sorted(groups.items())
        if group != "all lrn"
    ]


def means_lines(means: list[dict[str, Any]]) -> list[str]:
    head = f"{'geometric means':<19}{'batch':>5} {'pass':<15}{'against':<10}{'times':>8}{'layers':>8}"
    return [head] + [
        f"{m['group']:<19}{m['batch']:>5} {m['pass']:<15}{m['against']:<10}{m['ratio']:>8.2f}{m['layers']:>8}"
        for m in means
    ]


def markdown(report: dict[str, Any]) -> str:
    """Tables for the README: speed relative to eager, our microseconds, share of a copy's bandwidth."""
    machine, settings = report["environment"], report["settings"]
    facts = (machine.get("gpu", "no GPU"), "torch " + machine["torch"], "Triton " + machine["triton"])
    peaks = (ceiling(name, report["ceilings"]) for name in ("copy", "bf16 product", "fp32 product"))
    parts = [f"{', '.join(facts)}, commit {machine['commit']}; {settings['dtype']}; {', '.join(peaks)}."]
    found = {(layer_name(row["layer"]), row["pass"], row["batch"]): row for row in report["rows"]}
    for batch in settings["batch_size"]:
        for cls, steps in PASSES.items():
            layers: dict[str, list[str]] = {}
            for network in settings["networks"]:
                for layer in NETWORKS[network]:
                    if isinstance(layer, cls):
                        layers.setdefault(layer_name(vars(layer)), []).append(network)
            whole = [f"layer training, {side}" for side in ("eager", "compiled")]
            lines = [["networks", f"layer, batch {batch}", *steps, *whole]]
            for name, networks in layers.items():
                cells = [_cell(found.get((name, step, batch), {}), "eager") for step in steps]
                training = found.get((name, "layer training", batch), {})
                cells += [_cell(training, side) for side in ("eager", "compiled")]
                lines.append([", ".join(networks), name, *cells])
            parts += [_table(lines)] if layers else []
    keys = ("group", "pass", "batch", "against", "layers")
    means = [[*(str(m[key]) for key in keys), f"{m['ratio']:.2f}x"] for m in report["geometric_means"]]
    return "\n\n".join([*parts, _table([[*keys, "geometric mean"], *means])])


def short_markdown(report: dict[str, Any]) -> str:
    """Table with a row per kernel: geometric means over the layers at the first batch size."""
    batch = report["settings"]["batch_size"][0]
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in report["rows"]:
        if row["batch"] == batch and "share_of_copy" in row:
            rows.setdefault(kind_name(row["layer"]), {}).setdefault(row["pass"], []).append(row)
    kinds = {
        kind_name(vars(layer)): PASSES[type(layer)]
        for network in report["settings"]["networks"]
        for layer in NETWORKS[network]
    }
    lines = [["", "forward", "gradients: of the input, of the weight", "layers"]]
    for kind, (first, *gradients) in sorted(kinds.items()):
        found = rows.get(kind, {})
        cells = ["; ".join(_mean(found.get(step, [])) for step in steps) for steps in ([first], gradients)]
        name = kind if kind.startswith("LRN") else f"depthwise {kind}"
        lines.append([name, *cells, str(len(found.get(first, [])))])
    return _table(lines)


def _mean(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return NOT_MEASURED
    times = statistics.geometric_mean(row["ratios"]["eager"]["median"] for row in rows)
    share = statistics.geometric_mean(row["share_of_copy"]["ours"] for row in rows)
    return f"{times:.2f}x, {share:.0%}"


def _cell(row: dict[str, Any], against: str) -> str:
    if against not in row.get("ratios", {}):
        return next((word for word in TROUBLE if word in row), NOT_MEASURED)
    parts = [f"{row['ratios'][against]['median']:.2f}x", f"{row['microseconds']['ours']['median']:.1f} us"]
    return ", ".join([*parts, f"{row['share_of_copy']['ours']:.0%}"] if "share_of_copy" in row else parts)


def _table(lines: list[list[str]]) -> str:
    head, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rest))


def dispatch_times(report: dict[str, Any], dtype: str) -> dispatch.Times:
    """Times of a report's depthwise passes, by layer and batch size.

    Args:
        dtype: torch's name of the dtype.
    """
    times: dispatch.Times = {}
    for row in report["rows"]:
        if row["pass"] in PASSES[Depthwise] and "kernel" in row["layer"] and "ratios" in row:
            fields, size = row["layer"], row["layer"]["size"]
            kernel, stride, padding = fields["kernel"], fields["stride"], fields["kernel"] // 2
            layer = dispatch.Layer(
                row["pass"], dtype, kernel, stride, fields["channels"], size, size, padding, padding
            )
            ours, eager = (round(row["microseconds"][side]["median"], 2) for side in ("ours", "eager"))
            times.setdefault(layer, {})[row["batch"]] = (ours, eager)
    return times
