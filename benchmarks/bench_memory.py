"""Whether loading, or a whole training, takes more and more memory.

    python benchmarks/bench_memory.py --data /path/to/photos --epochs 50
    python benchmarks/bench_memory.py --data demo --minutes 60 --arch lenet5 --backends torch dali

The first loads the epochs of a small folder (training and evaluation, no network) with each backend, in a
process of its own that is prepared as for training, and reads the resident set after every epoch. The second
trains with each backend for some minutes, and samples resident memory, descriptors and threads every second.
Linux. Writes JSON and a graph to benchmarks/results/MACHINE/.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

import training_memory
from comparison import results_file
from fastcnn.bench import timing
from fastcnn.config.settings import DataSettings, LoaderSettings
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import Backend
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.open import open_source
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime import environment, machine
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.viz.curves import MUTED

COLORS: dict[str, str] = {"dali": "#c4452d", "torch": "#2d6fc4", "cached": "#3f9142"}
SETTLED = 10
"""Epochs after which memory should no longer grow."""

KEPT_SAMPLES = 360
"""Most samples of a training that the JSON file keeps."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    data: str
    """An image folder."""
    epochs: int = 50
    minutes: float | None = None
    """Length of a whole training with each backend, in place of epochs of loading."""
    arch: str = "lenet5"
    """Network of a whole training."""
    backends: tuple[Backend, ...] = ("dali", "torch", "cached")
    img_size: int = 224
    batch_size: int = 32
    crop: Literal["random-resized", "pad"] = "random-resized"
    workers: int | None = None
    """By default as many as cores."""
    val_split: float | None = None
    """Share of the images to evaluate; by default 0.2 of a folder without train/."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    output: str | None = None
    """JSON file, the graph beside it; by default under benchmarks/results/."""


def read(settings: Settings) -> Source:
    path = Path(settings.data).expanduser()
    default = None if (path / "train").is_dir() else 0.2
    return open_source(
        DataSettings(data=str(path), data_root=".", val_split=settings.val_split or default), seed=0
    )


def resident(settings: Settings, backend: Backend) -> list[float]:
    """Resident MiB of the calling process after every epoch."""
    device, cores = choose_device(settings.device, Ranks()), machine.cores_per_process(Ranks())
    machine.prepare(device, cores, deterministic=False)
    transform = Transform(size=settings.img_size, train_crop=settings.crop)
    source, workers = read(settings), settings.workers or cores
    loading = LoaderSettings(data_backend=backend, batch_size=settings.batch_size, workers=workers)
    train, val = build_loaders(source, transform, loading, ranks=Ranks(), device=device, seed=0)
    sizes = []
    for epoch in range(settings.epochs):
        train.set_epoch(epoch)
        for loader in (train, val):
            for _ in loader:
                pass
        timing.wait_for(device)
        sizes.append(resident_mib())
    train.close()
    val.close()
    return sizes


def resident_mib() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024


def growth(sizes: list[float]) -> dict[str, float]:
    """Growth from the epoch `SETTLED`, or the middle of a short run, to the last epoch."""
    first = min(SETTLED, len(sizes) // 2)
    mib, epochs = sizes[-1] - sizes[first - 1], len(sizes) - first
    return {"from_epoch": first, "to_epoch": len(sizes), "mib": mib, "mib_per_epoch": mib / epochs}


def draw(resident: dict[Backend, list[float]], title: str, png: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for backend, sizes in resident.items():
        x = range(1, len(sizes) + 1)
        label = f"{backend}: {sizes[0]:,.0f} MiB after epoch 1, {sizes[-1]:,.0f} at the end"
        axes.plot(x, [s - sizes[0] for s in sizes], color=COLORS[backend], linewidth=1.8, label=label)
    axes.axhline(0, color="#7a8794", linewidth=0.8, zorder=0)
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch")
    axes.set_ylabel("resident memory above epoch 1 (MiB)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(1, max(2, *(len(sizes) for sizes in resident.values())))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -10), max(high, 10))  # keep noise of a MiB small in the graph
    axes.grid(color=MUTED, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", frameon=False)
    figure.savefig(png, dpi=120)


def train(settings: Settings, minutes: float) -> None:
    """Measure whole trainings."""
    samples: dict[str, list[dict[str, float]]] = {}
    print(f"{settings.arch} on {settings.data}, {minutes:g} minutes a backend")
    print(f"{'':<8}{'MiB at half':>12}{'at the end':>12}{'rise':>7}{'descriptors':>13}{'threads':>9}")
    for backend in settings.backends:
        flags = ["--arch", settings.arch, "--data", settings.data, "--data-backend", backend]
        flags += ["--device", settings.device, "--compile", "off", "--lr", "0.01"]
        flags += ["--workers", str(settings.workers)] if settings.workers else []
        samples[backend] = training_memory.sample(flags, minutes)
        counts = training_memory.rise(samples[backend])
        mib, others = counts["mib"], [counts[name] for name in ("descriptors", "threads")]
        print(
            f"{backend:<8}{mib['at_half']:>12.1f}{mib['at_end']:>12.1f}{mib['rise']:>+7.1f}"
            + "".join(f"{c['at_end']:>8.0f} {c['rise']:+.0f}" for c in others),
            flush=True,
        )
    device = choose_device(settings.device, Ranks())
    name = f"{settings.arch}-{Path(settings.data).name}"
    path = results_file(f"training-memory-{name}", settings.output, device)
    timing.write_json(
        path,
        {
            "what": "resident memory, descriptors and threads of whole trainings",
            "environment": environment.environment(device),
            "settings": {**vars(settings), "data": Path(settings.data).name},
            "last_half": {backend: training_memory.rise(points) for backend, points in samples.items()},
            "samples": {
                backend: [
                    {name: round(value, 2) for name, value in point.items()}
                    for point in points[:: -(-len(points) // KEPT_SAMPLES)]
                ]
                for backend, points in samples.items()
            },
        },
    )
    png = path.with_suffix(".png")
    training_memory.draw(samples, f"{settings.arch} on {Path(settings.data).name}", COLORS, png)
    print(path, png, sep="\n")


def main(settings: Settings) -> None:
    if settings.minutes is not None:
        train(settings, settings.minutes)
        return
    if settings.epochs < 2:
        raise SystemExit(f"--epochs {settings.epochs}: growth needs two")
    source = read(settings)
    sizes: dict[Backend, list[float]] = {}
    for backend in settings.backends:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            sizes[backend] = pool.submit(resident, settings, backend).result()

    count = len(source.train) + len(source.val)
    print(f"{count:,} images of {source.name}, {settings.epochs} epochs, resident memory in MiB")
    print(f"{'':<8}{'epoch 1':>9}{'last':>9}  growth")
    for backend, values in sizes.items():
        g = growth(values)
        print(
            f"{backend:<8}{values[0]:>9,.0f}{values[-1]:>9,.0f}  {g['mib']:+.1f} MiB between epochs "
            f"{g['from_epoch']} and {g['to_epoch']}, {g['mib_per_epoch']:+.2f} MiB an epoch"
        )
    device = choose_device(settings.device, Ranks())
    name = source.name if source.name != "train" else Path(settings.data).resolve().parent.name
    path = results_file(f"memory-{name}", settings.output, device)
    timing.write_json(
        path,
        {
            "what": "resident memory of loading, after every epoch",
            "environment": environment.environment(device),
            "settings": {**vars(settings), "data": name},
            "images": {"train": len(source.train), "val": len(source.val)},
            "mib": sizes,
            "growth": {backend: growth(values) for backend, values in sizes.items()},
        },
    )
    png = path.with_suffix(".png")
    draw(sizes, f"Memory of loading {count:,} images again and again, {settings.img_size} px", png)
    print(path)
    print(png)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
