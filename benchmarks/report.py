"""benchmarks/README.md, RECIPES.md, and the figures of both READMEs, from the JSON files under results/.

    python benchmarks/report.py            # writes them, and the pictures
    python benchmarks/report.py --check    # exits with 1 if what is there differs

A figure without a file is printed as "not measured"; nothing is estimated.
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
from sizes import TRAIN

from fastcnn.bench import ablation_report, timing
from fastcnn.config.recipes import RECIPES, as_flags
from fastcnn.engine.logger import clock

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- figures: {} (python benchmarks/report.py) -->", "<!-- end of figures -->"
NOT_MEASURED = "not measured"
NEEDS_GPU = "needs a CUDA GPU"
"""Reason for a left-out side; a column with no other content is named below the table instead."""

Content = dict[str, Any]
Files = dict[Path, Content]


def read() -> dict[str, Files]:
    """The JSON files of each machine, by their folder."""
    machines: dict[str, Files] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        machines.setdefault(path.parent.name, {})[path] = json.loads(path.read_text())
    return machines


def comparisons(files: Files, kind: str) -> Files:
    """Files of `comparison.Comparison` whose names begin with `kind`."""
    return {p: c for p, c in files.items() if c["what"].startswith(f"{kind}-") and "baseline" in c}


def is_gpu(files: Files) -> bool:
    return any("gpu" in content.get("environment", {}) for content in files.values())


def describe(content: Content) -> str:
    """The machine and the software, in a line."""
    e = content["environment"]
    where = f"{e['gpu']}, driver {e['driver']}" if "gpu" in e else f"{e['processor']}, {e['threads']} threads"
    return f"{where}, torch {e['torch']}, commit {e['commit']}, {e['date']}"


def sources(files: Files) -> str:
    """Machines and software of the figures, in a line."""
    return "; ".join(sorted({describe(content) for content in files.values()}))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def side_cell(content: Content, side: str) -> str:
    """Speed of a side relative to the baseline; the baseline's own speed in units per second."""
    if side not in content["sides"]:
        return content["left_out"].get(side, NOT_MEASURED)
    found = content["sides"][side]
    if side == content["baseline"]:
        return f"{found['per_second']:,.0f} {content['unit']}/s"
    return timing.spread(found["speedup"])


def comparison_table(files: Files, kind: str, extra: str | None = None) -> str:
    """Table with a row per file and a column per side; `extra` adds the last side's entry of that name."""
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


def costs_table(files: Files) -> str:
    """Table of training steps with a row per file: each side's peak memory and first step."""
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
    """Table with a row per side: its seconds and stages."""
    rows = []
    for content in files.values():
        for name, found in content["sides"].items():
            goes = (f"{stage} {seconds:.1f}" for stage, seconds in found.get("stages", {}).items())
            rows.append([name, timing.spread(found["seconds"]), ", ".join(goes)])
    return table(["", "seconds", "of which, once"], rows)


def ablation_table(content: Content) -> str:
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
        "",
        "img/s",
        "times eager (quartiles)",
        "of roofline",
        "memory",
        "start",
        "pays off after",
        "loss",
    ]
    return table(head, rows)


def draw_comparisons(files: Files, kind: str, path: Path) -> None:
    """Draw bars of each side's speed relative to the baseline, with quartiles, for each file."""
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
    """Names of all sides, the baseline first and fastcnn's last."""
    names = [name for c in contents for name in (*c["sides"], *(c["left_out"] if left_out else ()))]
    baseline = contents[0]["baseline"]
    return sorted(dict.fromkeys(names), key=lambda name: (name != baseline, name.startswith("fastcnn")))


KINDS: dict[str, tuple[str, str, str]] = {
    "train": (
        "Training steps",
        "python -m pytest benchmarks/bench_train.py",
        "Times eager fp32 NCHW (quartiles), in turn; each side in a process of its own.",
    ),
    "accelerate": (
        "Training steps before and after `accelerate`",
        "python -m pytest benchmarks/bench_accelerate.py",
        "Times eager bf16 channels-last (quartiles), in turn; each side in a process of its own.",
    ),
    "loader": (
        "Loaders",
        "python -m pytest benchmarks/bench_loader.py --data FOLDER",
        "Times torchvision's loader on PIL images (quartiles), in turn in one process.",
    ),
    "layer": (
        "Layers",
        "python -m pytest benchmarks/bench_layers.py",
        "Forward and backward, times eager fp32 NCHW (quartiles), in turn in one process.",
    ),
    "end-to-end": (
        "A whole training, and its two halves",
        "python -m pytest benchmarks/bench_end_to_end.py",
        "Times loader and step one after the other (quartiles), in turn in one process.",
    ),
    "startup": (
        "Start-up",
        "python -m pytest benchmarks/bench_startup.py",
        "Seconds until a command ends or trains its first step (quartiles), each in a fresh process.",
    ),
}
"""Kinds of comparisons: title, command, and the meaning of the cells."""
PICTURES = tuple(kind for kind in KINDS if kind != "startup")  # whose sides do different work


def page(machines: dict[str, Files]) -> str:
    """Text of benchmarks/README.md."""
    parts = [
        "# Measured\n",
        "Made by `python benchmarks/report.py` from the files under [results](results). Each table comes",
        "from one command, which writes those files on any machine. What was tried, and did not help too:",
        "[LOG.md](LOG.md).\n",
    ]
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
                parts += [costs, "\nPeak memory, and the first step with its compilation.\n"]
            if kind in PICTURES:
                parts.append(f"![{title}](results/{machine}/{kind}.png)\n")
        for path, content in files.items():
            if content["what"] == "ladder":
                workload = content["problem"]
                command = (
                    f"fastcnn bench --arch {workload['arch']} --img-size {workload['img_size']} "
                    f"--batch-size {workload['batch_size']}"
                )
                name = f"{workload['arch']}, {workload['img_size']} px, batch {workload['batch_size']}"
                picture = path.with_suffix(".png").relative_to(HERE)
                parts += [f"### Ladder: {name}\n", f"`{command}`\n", ablation_table(content), ""]
                parts += [f"{describe(content)}.\n", f"![ladder]({picture})\n"]
                if "costs" in content:
                    parts += ["```", *ablation_report.cost_lines(content), "```\n"]
        others = [p for p, c in files.items() if c["what"] != "ladder" and "baseline" not in c]
        if others:
            listed = ", ".join(f"[{path.stem}](results/{machine}/{path.name})" for path in others)
            parts.append(f"Other files: {listed}.\n")
    if not any(map(is_gpu, machines.values())):
        parts += ["## GPUs\n", f"{NOT_MEASURED}: `python benchmarks/gpu.py --minutes 20` does it.\n"]
    return "\n".join(parts).rstrip() + "\n"


def recipes_page(machines: dict[str, Files]) -> str:
    """Text of RECIPES.md."""
    parts = [
        "# Recipes\n",
        "Named settings, `--recipe NAME`: which network reaches which accuracy, by which settings, where",
        "that was published, and what fastcnn reached. Made by `python benchmarks/report.py` from",
        "`fastcnn/config/recipes.py` and the files of `python benchmarks/bench_recipes.py NAME`. Flags and",
        "a `--config` file override what a recipe sets. CIFAR-10's published accuracies are of the original",
        "arrays; images that were compressed as JPEG give less.\n",
    ]
    for name, recipe in RECIPES.items():
        parts += [f"## {name}\n", f"```\n{recipe.command(name)}\n```\n", f"`{as_flags(recipe)}`\n"]
        parts.append(
            f"- Source: {recipe.source}: {recipe.published}.{' ' + recipe.differs if recipe.differs else ''}"
        )
        reached = [line for files in machines.values() for line in _reached(name, files)]
        parts += [*(reached or ["- fastcnn: not run."]), ""]
    return "\n".join(parts).rstrip() + "\n"


def _reached(name: str, files: Files) -> list[str]:
    """Lines of a recipe's results on a machine."""
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


def train_figures(machines: dict[str, Files]) -> str:
    """README block: fastcnn's training step on each machine, and rows not yet measured on a GPU."""
    parts = []
    for machine, files in machines.items():
        found = comparisons(files, "train")
        if found:
            parts += [comparison_table(found, "train", "arithmetic"), "", f"{sources(found)}."]
            parts += [f"[Picture](benchmarks/results/{machine}/train.png)."]
    on_gpus = [comparisons(files, "train") for files in machines.values() if is_gpu(files)]
    measured = {content["what"] for files in on_gpus for content in files.values()}
    rows = [[str(row), *[NOT_MEASURED] * 2] for row in TRAIN["cuda"] if f"train-{row}" not in measured]
    if rows:
        parts += ["", table(["on a GPU", "eager fp32 NCHW", "fastcnn"], rows)]
    return "\n".join(parts)


def loader_figures(machines: dict[str, Files]) -> str:
    parts = []
    for files in machines.values():
        found = comparisons(files, "loader")
        if found:
            parts += [comparison_table(found, "loader"), "", f"{sources(found)}."]
    return "\n".join(parts) or NOT_MEASURED


def kernel_figures(machines: dict[str, Files], show: Callable[[Content], str] = tables.markdown) -> str:
    """Block of kernels/README.md: each layer on each GPU."""
    reports = [c for files in machines.values() for c in files.values() if c["what"] == "kernels"]
    return "\n\n".join(map(show, reports)) or f"On a GPU: {NOT_MEASURED}."


def kernel_means(machines: dict[str, Files]) -> str:
    """README block: each kernel on each GPU."""

    def show(content: Content) -> str:
        batch = content["settings"]["batch_size"][0]
        cells = (
            f"Times eager PyTorch and share of a copy's bandwidth, bf16, batch {batch}; {describe(content)}."
        )
        return f"{tables.short_markdown(content)}\n\n{cells}"

    return kernel_figures(machines, show)


README = {"kernels": kernel_means, "train": train_figures, "loader": loader_figures}
KERNELS_README = {"layers": kernel_figures}
"""Functions of the blocks of each README, by name."""

Blocks = Mapping[str, Callable[[dict[str, Files]], str]]


def fill(path: Path, blocks: Blocks, machines: dict[str, Files]) -> str:
    """Return the text of a README with new blocks of figures."""
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
    parser.add_argument("--check", action="store_true")
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
            *(f"{path}: made from other files; run python benchmarks/report.py" for path in stale), sep="\n"
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
