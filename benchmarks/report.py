"""Generate benchmarks/README.md, RECIPES.md and the tables of both READMEs from the JSON under results/.

    python benchmarks/report.py            # write the pages and the pictures
    python benchmarks/report.py --check    # exit with 1 if a page differs from the files

A number without a file is reported as "not measured"; nothing is estimated.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kernel_tables as tables
from fastcnn.bench import ablation_report, timing
from fastcnn.config.recipes import RECIPES, as_flags
from fastcnn.engine.logger import clock
from sizes import TRAIN

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- figures: {} (python benchmarks/report.py) -->", "<!-- end of figures -->"
NOT_MEASURED = "not measured"
NEEDS_GPU = "needs a CUDA GPU"
"""Reason for a skipped side. A column with no other content is named below its table."""
GPU_COMMAND = "python benchmarks/gpu.py --minutes 20"
KERNELS_COMMAND = "python benchmarks/bench_kernels.py"

Content = dict[str, Any]
Files = dict[Path, Content]


def read() -> dict[str, Files]:
    """JSON files by machine folder."""
    machines: dict[str, Files] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        machines.setdefault(path.parent.name, {})[path] = json.loads(path.read_text())
    return machines


def comparisons(files: Files, kind: str) -> Files:
    """Files of `comparison.Comparison` with the prefix `kind`."""
    return {p: c for p, c in files.items() if c["what"].startswith(f"{kind}-") and "baseline" in c}


def is_gpu(files: Files) -> bool:
    return any("gpu" in content.get("environment", {}) for content in files.values())


def describe(content: Content) -> str:
    """Machine and software, on one line."""
    e = content["environment"]
    where = f"{e['gpu']}, driver {e['driver']}" if "gpu" in e else f"{e['processor']}, {e['threads']} threads"
    return f"{where}, torch {e['torch']}, commit {e['commit']}, {e['date']}"


def sources(files: Files) -> str:
    """Machines, versions and dates of a table."""
    return "; ".join(sorted({describe(content) for content in files.values()}))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def side_cell(content: Content, side: str) -> str:
    """Speedup of a side over the baseline; for the baseline itself, its throughput."""
    if side not in content["sides"]:
        return content["left_out"].get(side, NOT_MEASURED)
    found = content["sides"][side]
    if side == content["baseline"]:
        return f"{found['per_second']:,.0f} {content['unit']}/s"
    return timing.spread(found["speedup"])


def short_cell(content: Content, side: str) -> str:
    """As `side_cell`, without quartiles and reasons."""
    if side not in content["sides"]:
        return "-"
    if side == content["baseline"]:
        return side_cell(content, side)
    return f"{content['sides'][side]['speedup']['median']:.2f}x"


def comparison_table(files: Files, kind: str, extra: str | None = None) -> str:
    """One row per file, one column per side; `extra` adds the last side's entry of that name."""
    contents = list(files.values())
    sides = all_sides(contents, left_out=True)
    absent = [name for name in sides if all(c["left_out"].get(name) == NEEDS_GPU for c in contents)]
    sides = [name for name in sides if name not in absent]
    rows = []
    for content in contents:
        row = [content["what"].removeprefix(f"{kind}-"), *(side_cell(content, side) for side in sides)]
        if extra is not None:
            row.append(str(content["sides"].get(sides[-1], {}).get(extra, "")))
        rows.append(row)
    text = table(["", *sides, *([extra] if extra is not None else [])], rows)
    if absent:
        text += f"\n\nOn a CUDA GPU also: {', '.join(absent)}."
    return text


def short_table(files: Files, kind: str) -> str:
    """One row per file: throughput of the baseline, median speedups of the other sides."""
    contents = list(files.values())
    sides = all_sides(contents)
    rows = [
        [content["what"].removeprefix(f"{kind}-"), *(short_cell(content, side) for side in sides)]
        for content in contents
    ]
    return table(["", *sides], rows)


def costs_table(files: Files) -> str:
    """Peak memory and first step of each side, one row per file."""
    contents = list(files.values())
    sides = [name for name in all_sides(contents) if any(_costs(c, name) for c in contents)]
    rows = [
        [content["what"].removeprefix("train-"), *(_costs(content, side) for side in sides)]
        for content in contents
    ]
    return table(["", *sides], rows) if sides else ""


def _costs(content: Content, side: str) -> str:
    found = content["sides"].get(side, {})
    if found.get("peak_bytes") is None:
        return ""
    return f"{found['peak_bytes'] / 2**30:.1f} GiB, {found['first_seconds'][0]:.1f} s"


def startup_table(files: Files) -> str:
    """One row per side: seconds in total and per stage."""
    rows = []
    for content in files.values():
        for name, found in content["sides"].items():
            goes = (f"{stage} {seconds:.1f}" for stage, seconds in found.get("stages", {}).items())
            rows.append([name, timing.spread(found["seconds"]), ", ".join(goes)])
    return table(["", "seconds", "stages of one run"], rows)


def ablation_table(content: Content) -> str:
    """One row per variant of `fastcnn bench`; kept variants are bold."""
    rows = []
    for variant in content["rungs"]:
        if "left_out" in variant:
            rows.append([variant["name"], variant["left_out"], *[""] * 6])
            continue
        memory, payoff = variant["peak_bytes"], variant["payoff_steps"]
        rows.append(
            [
                f"**+ {variant['name']}**" if variant["kept"] else variant["name"],
                f"{variant['images_per_second']:,.0f}",
                timing.spread(variant["speedup"]),
                f"{variant['share_of_roofline']:.0%}",
                "" if memory is None else f"{memory / 2**20:,.0f} MiB",
                f"{variant['start_seconds']:.1f} s",
                "never" if payoff is None else f"{payoff:,.0f} steps" if payoff else "",
                f"{variant['loss_difference']:.0e}",
            ]
        )
    head = [
        "variant",
        "img/s",
        "speedup (quartiles)",
        "of roofline",
        "memory",
        "startup",
        "break-even",
        "loss deviation",
    ]
    return table(head, rows)


def draw_comparisons(files: Files, kind: str, path: Path) -> None:
    """Bar chart of the speedups over the baseline, with quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    contents = list(files.values())[::-1]  # the first one on top
    sides = all_sides(contents)
    others = iter(["#9aa5b1", "#c7b299", "#7fa6c9", "#8fb08c", "#b58db6", "#d19a66", "#a9a9a9", "#e0c36b"])
    ours = iter(["#1f4e79", "#3f7cac", "#7a5195", "#2a9d8f"])
    height = 0.85 / len(sides)
    size = (9, 1.2 + len(contents) * (0.25 + 0.16 * len(sides)))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    for number, side in enumerate(sides):
        found = [(i, c["sides"][side]["speedup"]) for i, c in enumerate(contents) if side in c["sides"]]
        places = [i - (number - len(sides) / 2 + 0.5) * height for i, _ in found]
        lengths = [values["median"] for _, values in found]
        below = [values["median"] - values["quartile_1"] for _, values in found]
        above = [values["quartile_3"] - values["median"] for _, values in found]
        color = next(ours if side.startswith("fastcnn") else others)
        error = {"elinewidth": 1, "ecolor": "#444"}
        axes.barh(places, lengths, height, xerr=[below, above], label=side, color=color, error_kw=error)
    axes.axvline(1, color="#444", linewidth=0.8)
    names = [c["what"].removeprefix(f"{kind}-").replace("-", "\n", 1) for c in contents]
    axes.set_yticks(range(len(contents)), names, fontsize=8)
    axes.set_ylim(-0.6, len(contents) - 0.4)
    axes.set_xlabel(f"times {contents[0]['baseline']} (bars: median, lines: quartiles)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, ncols=4, loc="outside upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def all_sides(contents: list[Content], *, left_out: bool = False) -> list[str]:
    """Names of the sides of all files, the baseline first and fastcnn's last."""
    names = [name for c in contents for name in (*c["sides"], *(c["left_out"] if left_out else ()))]
    baseline = contents[0]["baseline"]
    return sorted(dict.fromkeys(names), key=lambda name: (name != baseline, name.startswith("fastcnn")))


KINDS: dict[str, tuple[str, str, str]] = {
    "train": (
        "Training steps",
        "python -m pytest benchmarks/bench_train.py",
        "Speedup over eager fp32 NCHW: median (quartiles). Sides take turns, each in its own process.",
    ),
    "accelerate": (
        "Training steps before and after `accelerate`",
        "python -m pytest benchmarks/bench_accelerate.py",
        "Speedup over eager bf16 channels-last: median (quartiles). Sides take turns, each in its own "
        "process.",
    ),
    "loader": (
        "Loaders",
        "python -m pytest benchmarks/bench_loader.py --data FOLDER",
        "Speedup over torchvision's loader on PIL images: median (quartiles). Sides take turns in one "
        "process.",
    ),
    "layer": (
        "Layers",
        "python -m pytest benchmarks/bench_layers.py",
        "Forward and backward, speedup over eager fp32 NCHW: median (quartiles). Sides take turns in one "
        "process.",
    ),
    "end-to-end": (
        "End-to-end training and its two halves",
        "python -m pytest benchmarks/bench_end_to_end.py",
        "Speedup over loader and step one after the other: median (quartiles). Sides take turns in one "
        "process.",
    ),
    "startup": (
        "Startup",
        "python -m pytest benchmarks/bench_startup.py",
        "Seconds until a command ends or prints its first step: median (quartiles). Each run is a new "
        "process.",
    ),
}
"""Comparisons: title, command, meaning of the cells."""
PICTURES = tuple(kind for kind in KINDS if kind != "startup")  # sides of a startup do different work


def page(machines: dict[str, Files]) -> str:
    """Text of benchmarks/README.md."""
    parts = [
        "# Benchmark results\n",
        "Generated by `python benchmarks/report.py` from the files under [results](results). Each table",
        "comes from one command, which runs on any machine. [docs/benchmarks.md](../docs/benchmarks.md)",
        "explains how to run and read them. [LOG.md](LOG.md) lists all experiments, also those that did not",
        "help.\n",
    ]
    if missing := missing_on_gpu(machines):
        parts.append(
            f"Not measured on a GPU yet: {'; '.join(missing)}. `{GPU_COMMAND}` measures the most important "
            "ones first.\n"
        )
    for machine, files in machines.items():
        parts.append(f"## {machine}\n")
        for kind, (title, command, cells) in KINDS.items():
            found = comparisons(files, kind)
            if not found:
                continue
            extra = "arithmetic" if kind == "train" else None
            cells_of = startup_table(found) if kind == "startup" else comparison_table(found, kind, extra)
            parts += [f"### {title}\n", f"`{command}`\n", cells_of, "", f"{cells}\n{sources(found)}.\n"]
            if kind == "train" and (costs := costs_table(found)):
                parts += [costs, "\nPeak memory, and seconds of the first step including compilation.\n"]
            if kind in PICTURES:
                parts.append(f"![{title}](results/{machine}/{kind}.png)\n")
        for path, content in files.items():
            if content["what"] == "ladder":
                parts += ablation_section(path, content)
            if content["what"] == "kernels":
                parts += ["### Kernels\n", f"`{KERNELS_COMMAND}`\n", kernel_summary(content)]
                parts += ["\nSingle layers: [kernels/README.md](../kernels/README.md).\n"]
            if content["what"] == "million-files":
                parts += million_files_section(content)
            if content["what"] == "exported networks":
                parts += exported_networks_section(content)
        shown = ("ladder", "kernels", "million-files", "exported networks")
        others = [p for p, c in files.items() if c["what"] not in shown and "baseline" not in c]
        if others:
            listed = ", ".join(f"[{path.stem}](results/{machine}/{path.name})" for path in others)
            parts.append(f"Other files: {listed}.\n")
    return "\n".join(parts).rstrip() + "\n"


def ablation_section(path: Path, content: Content) -> list[str]:
    """Table and picture of `fastcnn bench` for one network."""
    workload = content["problem"]
    arch, size, batch = (workload[name] for name in ("arch", "img_size", "batch_size"))
    quick = " --quick" if content["settings"].get("quick") else ""
    parts = [
        f"### Ablation: {arch}, {size} px, batch {batch}\n",
        f"`fastcnn bench --arch {arch} --img-size {size} --batch-size {batch}{quick}`\n",
        ablation_table(content),
        "",
        f"{describe(content)}.\n",
        f"![Ablation: {arch}]({path.with_suffix('.png').relative_to(HERE)})\n",
    ]
    if "costs" in content:
        parts += ["```", *ablation_report.cost_lines(content), "```\n"]
    return parts


def million_files_section(content: Content) -> list[str]:
    """Table of `million_files.py`: one row per side."""
    rows = [
        [
            side,
            f"{found['cpu_seconds']:.1f} s",
            f"{found['reading_seconds']:.1f} s",
            f"{found['peak_bytes'] / 2**20:,.0f} MiB",
        ]
        for side, found in content["sides"].items()
    ]
    return [
        f"### Start of {content['settings']['images']:,} files\n",
        "`python benchmarks/million_files.py measure FOLDER`\n",
        table(["", "processor time", "of this, reading", "peak memory"], rows),
        f"\nWhole processes, with imports; of two ranks the sum of the times. {describe(content)}.\n",
    ]


def exported_networks_section(content: Content) -> list[str]:
    """Table of `export_networks.py`: one row per network and format."""
    batches = content["settings"]["batches"]
    rows = []
    for name, found in content["networks"].items():
        for side, seconds in found["seconds"].items():
            equal = ["", ""]
            if side in found["difference"]:
                equal = [f"{found['difference'][side]:.1e}", f"{100 * found['agreement'][side]:.3f}%"]
            times = [f"{1000 * seconds[str(n)]['median']:.1f}" for n in batches]
            rows.append([f"{name}, {found['size']} px", side, *times, *equal])
    heads = ["", "", *(f"ms, batch {n}" for n in batches), "largest difference", "equal predictions"]
    return [
        "### Exported networks\n",
        "`python benchmarks/export_networks.py --photos FOLDER`\n",
        table(heads, rows),
        f"\nRandom weights, {content['settings']['photos']} photos; differences are relative to the largest "
        f"output of eager PyTorch. {describe(content)}.\n",
    ]


def missing_steps(machines: dict[str, Files]) -> list[str]:
    """Training steps of `sizes.TRAIN` without a measurement on any GPU."""
    on_gpus = [comparisons(files, "train") for files in machines.values() if is_gpu(files)]
    measured = {content["what"] for files in on_gpus for content in files.values()}
    return [str(row) for row in TRAIN["cuda"] if f"train-{row}" not in measured]


def missing_on_gpu(machines: dict[str, Files]) -> list[str]:
    """Everything without a measurement on any GPU."""
    steps = missing_steps(machines)
    missing = [f"training steps of {', '.join(steps)}"] if steps else []
    on_gpus = [files for files in machines.values() if is_gpu(files)]
    for kind, (title, _, _) in KINDS.items():
        if kind != "train" and not any(comparisons(files, kind) for files in on_gpus):
            missing.append(title[0].lower() + title[1:])
    for what, name in (("ladder", "ablations"), ("kernels", "kernels")):
        if not any(content["what"] == what for files in on_gpus for content in files.values()):
            missing.append(name)
    return missing


def recipes_page(machines: dict[str, Files]) -> str:
    """Text of RECIPES.md."""
    parts = [
        "# Recipes\n",
        "Named settings for `--recipe NAME`, with source, published accuracy and accuracy of fastcnn.",
        "[docs/recipes.md](docs/recipes.md) explains their use. Generated by `python benchmarks/report.py`",
        "from `fastcnn/config/recipes.py` and the files of `python benchmarks/bench_recipes.py NAME`. Flags",
        "and a `--config` file override a recipe. Published CIFAR-10 accuracies are of the original arrays;",
        "JPEG files reach less.\n",
    ]
    for name, recipe in RECIPES.items():
        parts += [f"## {name}\n", f"```\n{recipe.command(name)}\n```\n", f"`{as_flags(recipe)}`\n"]
        parts.append(
            f"- Source: {recipe.source}: {recipe.published}.{' ' + recipe.differs if recipe.differs else ''}"
        )
        reached = [line for files in machines.values() for line in result_lines(name, files)]
        parts += [*(reached or ["- fastcnn: not run."]), ""]
    return "\n".join(parts).rstrip() + "\n"


def result_lines(name: str, files: Files) -> list[str]:
    """Measured accuracies of a recipe on one machine."""
    lines = []
    for path, content in files.items():
        if content.get("recipe") != name:
            continue
        images = "JPEG files" if content["images"]["jpeg"] else "original arrays"
        by_backend: dict[str, list[Content]] = {}
        for run in content["runs"]:
            by_backend.setdefault(run["backend"], []).append(run)
        for backend, runs in by_backend.items():
            accuracies = ", ".join(f"{run['val']['acc1']:.2f}%" for run in runs)
            seconds = statistics.mean(run["seconds"] for run in runs)
            loader = "" if backend == "auto" else f", loader {backend}"
            seeds = f", seeds {', '.join(str(run['seed']) for run in runs)}" if len(runs) > 1 else ""
            taken = f" in {clock(seconds)}" if content["timed"] else ""
            lines.append(f"- fastcnn: **{accuracies}**{taken}{seeds}{loader}; {images}.")
        lines.append(f"  `{content['command']}`, {describe(content)}.")
        if "difference" in content:
            apart = content["difference"]
            errors = apart["in_standard_errors"]
            lines.append(f"  The means are {apart['apart']:.2f} points apart, {errors:.2f} standard errors.")
        picture = path.with_suffix(".png")
        if picture.exists():
            lines.append(f"  [Curves]({picture.relative_to(HERE.parent)}).")
    return lines


def headline(machines: dict[str, Files]) -> str:
    """README, first screen: one measured number per machine, each with its command."""
    lines = []
    for files in machines.values():
        found = comparisons(files, "train")
        sides = [content["sides"] for content in found.values() if "fastcnn" in content["sides"]]
        speedups = [side["fastcnn"]["speedup"]["median"] for side in sides]
        if speedups:
            sizes = sorted({content["settings"]["img_size"] for content in found.values()})
            lines.append(
                f"- {'GPU' if is_gpu(found) else 'CPU'}: training steps run {min(speedups):.1f}x to "
                f"{max(speedups):.1f}x as fast as eager fp32 PyTorch, over {len(speedups)} networks at "
                f"{' and '.join(map(str, sizes))} px ({measured_on(found)}).\n"
                f"  Reproduce: `{KINDS['train'][1]}`."
            )
    for content in kernel_reports(machines):
        batch = content["settings"]["batch_size"][0]
        rows = [
            row
            for row in content["rows"]
            if row["kind"] == "depthwise" and row["batch"] == batch and "share_of_copy" in row
        ]
        speedup = statistics.geometric_mean(row["ratios"]["eager"]["median"] for row in rows)
        layers = {tables.layer_name(row["layer"]) for row in rows}
        lines.append(
            f"- GPU kernels: depthwise convolution runs {speedup:.1f}x as fast as eager PyTorch, geometric "
            f"mean over forward and gradients of {len(layers)} layers ({measured_on({HERE: content})}).\n"
            f"  Reproduce: `{KERNELS_COMMAND}`."
        )
    return "\n".join(lines) or f"Speed: {NOT_MEASURED}."


def measured_on(files: Files) -> str:
    """Machine and date, shorter than `sources`."""
    found = sorted({(describe(c).split(", torch")[0], c["environment"]["date"]) for c in files.values()})
    return "; ".join(f"{where}, {date}" for where, date in found)


def train_figures(machines: dict[str, Files]) -> str:
    """README: fastcnn's training step on each machine, and a sentence on missing GPU measurements."""
    parts = []
    for files in machines.values():
        found = comparisons(files, "train")
        if found:
            parts.append(f"{short_table(found, 'train')}\n\n{sources(found)}.")
    if missing := missing_steps(machines):
        all_of = len(TRAIN["cuda"])
        what = "training steps" if len(missing) == all_of else f"{len(missing)} of {all_of} training steps"
        parts.append(f"On a GPU, {what} are {NOT_MEASURED} yet; `{GPU_COMMAND}` measures them.")
    return "\n\n".join(parts)


def loader_figures(machines: dict[str, Files]) -> str:
    """README: fastcnn's loaders on each machine."""
    found = [comparisons(files, "loader") for files in machines.values()]
    parts = [f"{short_table(files, 'loader')}\n\n{sources(files)}." for files in found if files]
    return "\n\n".join(parts) or f"Loaders: {NOT_MEASURED}."


def kernel_reports(machines: dict[str, Files]) -> list[Content]:
    return [c for files in machines.values() for c in files.values() if c["what"] == "kernels"]


def kernel_figures(machines: dict[str, Files]) -> str:
    """kernels/README.md: each layer on each GPU."""
    reports = kernel_reports(machines)
    return "\n\n".join(measured_columns(tables.markdown(c)) for c in reports) or f"On a GPU: {NOT_MEASURED}."


def measured_columns(markdown: str) -> str:
    """Replace table columns that were never measured by one sentence at the end."""
    blocks, dropped = [], []
    for block in markdown.split("\n\n"):
        if not block.startswith("| "):
            blocks.append(block)
            continue
        head, rule, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines())
        kept = [i for i in range(len(head)) if any(row[i] != NOT_MEASURED for row in rows)]
        dropped += [name for i, name in enumerate(head) if i not in kept]
        head, *rest = ([cells[i] for i in kept] for cells in (head, rule, *rows))
        blocks.append(table(head, rest[1:]))
    if dropped:
        blocks.append(f"Not measured: {'; '.join(dict.fromkeys(dropped))}.")
    return "\n\n".join(blocks)


def kernel_summary(content: Content) -> str:
    """One row per kernel: geometric means over its layers."""
    settings = content["settings"]
    where = f"{settings['dtype']}, batch {settings['batch_size'][0]}"
    cells = f"Speedup over eager PyTorch and share of a copy's bandwidth, {where}"
    return f"{tables.short_markdown(content)}\n\n{cells}; {describe(content)}."


def kernel_means(machines: dict[str, Files]) -> str:
    """README: each kernel on each GPU."""
    return "\n\n".join(map(kernel_summary, kernel_reports(machines))) or f"On a GPU: {NOT_MEASURED}."


README = {
    "headline": headline,
    "train": train_figures,
    "kernels": kernel_means,
    "loader": loader_figures,
}
KERNELS_README = {"layers": kernel_figures}
"""Generated blocks by name."""

Blocks = Mapping[str, Callable[[dict[str, Files]], str]]


def fill(path: Path, blocks: Blocks, machines: dict[str, Files]) -> str:
    """Text of a README with its blocks regenerated."""
    text = path.read_text()
    for name, make in blocks.items():
        begin = BEGIN.format(name)
        block = f"{begin}\n{make(machines)}\n{END}"
        pattern = re.compile(re.escape(begin) + r".*?" + re.escape(END), re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{path}: there is no block {begin}")
        text = pattern.sub(lambda _, block=block: block, text)  # type: ignore[misc]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    check = parser.parse_args().check
    machines = read()
    readmes: dict[Path, Blocks] = {
        HERE.parent / "README.md": README,
        HERE.parent / "kernels" / "README.md": KERNELS_README,
    }
    texts = {
        HERE / "README.md": page(machines),
        HERE.parent / "RECIPES.md": recipes_page(machines),
        **{path: fill(path, blocks, machines) for path, blocks in readmes.items()},
    }
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check:
        print(
            *(f"{path}: differs from the files; run python benchmarks/report.py" for path in stale), sep="\n"
        )
        return 1 if stale else 0
    for path, text in texts.items():
        path.write_text(text)
    for machine, files in machines.items():
        for kind in PICTURES:
            if found := comparisons(files, kind):
                draw_comparisons(found, kind, RESULTS / machine / f"{kind}.png")
        for path, content in files.items():
            if content["what"] == "ladder":
                ablation_report.draw(content, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
