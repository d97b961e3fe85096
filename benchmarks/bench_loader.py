"""fastcnn's training loaders against torchvision's, on the same files and cores, in turn in one process.

    python benchmarks/bench_loader.py --data /path/to/photos
    python benchmarks/bench_loader.py --data /path/to/cifar/train --img-size 32 --batch-size 128 --crop pad

Sides, each with as many workers and with crops and flips of the same distribution:
  torchvision PIL            ImageFolder and v2 transforms on PIL images, uint8, in a DataLoader's processes
  torchvision float recipe   the same with the float conversion and normalization of torchvision's references
  torchvision decode_image   ImageFolder with torchvision's own decoder and v2 transforms on uint8 tensors
  fastcnn dali, torch, cached    fastcnn's loaders; cached decodes all images before, which is timed apart

A turn is an epoch or more, from a loader that stays alive and whose epochs follow each other without a gap.
Its first 3 batches for each worker are not timed, because up to 2 for each were made ready before; and a turn
begins when the loader before has stopped to load ahead. `auto` is asked once what it would choose, as at the
start of a training. Files are in the system's cache. The memory allocator is the default one on all sides.
Linux. Writes JSON to benchmarks/results/MACHINE/.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from fastcnn import bench, machine
from fastcnn.data import BadFiles, Batch, Source, Transform
from fastcnn.data.backends import MAKERS, why_not
from fastcnn.data.batch import Share
from fastcnn.data.choose import choose_backend
from fastcnn.data.loader import ImageLoader
from fastcnn.data.manifest import scan
from fastcnn.data.sources import IMAGENET_MEAN, IMAGENET_STD, Split
from fastcnn.distributed import Ranks, choose_device

BASELINE = "torchvision PIL"
AHEAD = 3  # batches for each worker that are not timed; DataLoader prefetches 2 for each, fastcnn 2 in all


@dataclass(frozen=True)
class Settings:
    data: str
    """A folder of class folders, or one whose train/ holds them."""
    img_size: int = 224
    batch_size: int = 32
    crop: Literal["random-resized", "pad"] = "random-resized"
    """pad: for images that have the size already."""
    workers: int | None = None
    """Processes or threads of each side; by default as many as cores."""
    rounds: int = 7
    """Timed turns of each side."""
    turn_images: int = 2000
    """Images of a turn at least; it is an epoch where that is more."""
    images: int | None = None
    """Take so many of the images, chosen at random, where an epoch of all would be too long for a turn."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where the batches go."""
    output: str | None = None
    """JSON file; by default under benchmarks/results/."""


def read(folder: ImageFolder, count: int | None) -> Source:
    """The images that every side can read, or `count` of them. They are read once, for the system's cache."""
    files = scan(str(folder.root), [path for path, _ in folder.samples])
    good = np.array([i for i in range(len(files)) if i not in files.problems])
    chosen = np.sort(np.random.default_rng(0).permutation(good)[:count])
    files = files.take(chosen)
    for i in range(len(files)):
        files.read(i)
    train = Split(np.asarray(folder.targets, dtype=np.int64)[chosen], files)
    val = train.take(np.arange(0, len(train), 10))
    root = Path(folder.root)
    return Source(root.parent.name if root.name == "train" else root.name, train, val, tuple(folder.classes))


def torchvision_batches(
    folder: ImageFolder,
    source: Source,
    load: Callable[[str], Any],
    last: list[Any],
    settings: Settings,
    workers: int,
    device: torch.device,
) -> Iterator[object]:
    """Batches without end: a DataLoader would let its workers idle around the border of two epochs.

    Args:
        load: a path to an image.
        last: transforms after crop and flip.
    """
    size = settings.img_size
    crop: Any = v2.RandomResizedCrop(size, antialias=True)
    if settings.crop == "pad":
        crop = v2.RandomCrop(size, padding=size // 8)
    images = ImageFolder(folder.root, v2.Compose([crop, v2.RandomHorizontalFlip(), *last]), loader=load)
    assert source.train.files is not None
    images.samples = list(zip(source.train.files.paths, source.train.labels.tolist()))
    batches = iter(
        DataLoader(
            images,
            settings.batch_size,
            sampler=RandomSampler(images, num_samples=1 << 40),  # one permutation after the other
            num_workers=workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
    )
    return ([tensor.to(device, non_blocking=True) for tensor in batch] for batch in batches)


def fastcnn_batches(loader: ImageLoader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader


def time_turn(batches: Iterator[object], ahead: int, count: int, device: torch.device) -> float:
    """Seconds of `count` batches after the first `ahead`. Returns when nothing is loaded ahead any more."""

    def take(number: int) -> None:
        for _ in range(number):
            next(batches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    take(ahead)
    start = time.perf_counter()
    take(count)
    seconds = time.perf_counter() - start
    wait_for_quiet()
    return seconds


def wait_for_quiet() -> None:
    """Until this process and its workers compute nothing."""
    before = processor_seconds()
    while True:
        time.sleep(0.1)
        now = processor_seconds()
        if now - before < 0.015:  # the system counts in hundredths
            return
        before = now


def processor_seconds() -> float:
    """Of all threads of this process and of its workers."""
    total = 0
    for pid in (os.getpid(), *(process.pid for process in multiprocessing.active_children())):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])  # utime and stime of proc(5), which counts from 1
    return total / os.sysconf("SC_CLK_TCK")


def main(settings: Settings) -> None:
    if settings.rounds < 3:
        raise SystemExit(f"--rounds {settings.rounds}: quartiles need 3 or more")
    device = choose_device(settings.device, Ranks())
    workers = settings.workers or machine.cores_per_process(Ranks())
    torch.set_num_threads(workers)  # as in training; a worker of any side computes with one
    torch.manual_seed(0)
    root = Path(settings.data).expanduser().resolve()
    folder = ImageFolder(root / "train" if (root / "train").is_dir() else root)
    source = read(folder, settings.images)
    size, batch_size, split = settings.img_size, settings.batch_size, source.train
    if settings.crop == "pad" and split.common_size != (size, size):
        raise SystemExit(f"--crop pad: not all images are {size} x {size}; write --crop random-resized")
    share = Share(len(split), batch_size, rank=0, world_size=1, train=True)
    share.check()

    # Processes are forked before there are threads.
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    fast_decode = partial(decode_image, mode=ImageReadMode.RGB)
    sides: dict[str, Iterator[object]] = {
        name: torchvision_batches(folder, source, load, last, settings, workers, device)
        for name, load, last in (
            (BASELINE, default_loader, [v2.PILToTensor()]),
            ("torchvision float recipe", default_loader, [v2.PILToTensor(), *to_float]),
            ("torchvision decode_image", fast_decode, []),
        )
    }
    wait_for_quiet()
    transform = Transform(size, train_crop=settings.crop)
    start = time.perf_counter()
    choice, why = choose_backend(source, transform, batch_size, workers, device, Ranks())
    choosing = time.perf_counter() - start
    loaders, left_out = [], {}
    decoding = None
    for backend, make in MAKERS.items():
        reason = why_not(backend, source, 3, workers, 1)
        if reason:
            left_out[backend] = reason
            continue
        start = time.perf_counter()
        loaders.append(make(split, transform, share, device, workers, BadFiles(split, "training", 1)))
        if backend == "cached":
            decoding = time.perf_counter() - start
        sides[f"fastcnn {backend}"] = fastcnn_batches(loaders[-1])

    # As many batches for each worker, so that all are at the same point of their work when the clock stops.
    count = math.ceil(max(len(split), settings.turn_images) / batch_size / workers) * workers
    names, seconds = list(sides), {name: [0.0] * settings.rounds for name in sides}
    for name in names:  # to warm up
        time_turn(sides[name], AHEAD * workers, workers, device)
    gc.collect()
    for number in range(settings.rounds):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            seconds[name][number] = time_turn(sides[name], AHEAD * workers, count, device)
    for loader in loaders:
        loader.close()

    # Neighbouring turns see the same machine, so the ratio is taken round by round.
    ratios = {name: [a / b for a, b in zip(seconds[BASELINE], seconds[name])] for name in names}
    speeds = {name: [count * batch_size / s for s in seconds[name]] for name in names}
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    share_of_best = medians[f"fastcnn {choice}"] / max(medians.values())
    print(
        f"{len(split):,} images of {source.name}, {size} px, {settings.crop}, batch {batch_size}, "
        f"{workers} workers, {settings.rounds} turns of {count * batch_size:,} images each"
    )
    print(f"{'':<26}{'img/s':>9}  times {BASELINE} (quartiles)")
    for name in names:
        print(f"{name:<26}{medians[name]:>9,.0f}  {bench.spread(bench.summary(ratios[name]))}")
    for backend, reason in left_out.items():
        print(f"fastcnn {backend}: left out, {reason}")
    if decoding is not None:
        print(f"fastcnn cached decoded all images before, in {decoding:.1f} s")
    print(f"auto chose {choice} in {choosing:.1f} s ({why}): {share_of_best:.0%} of the fastest here")
    name = f"loader-{source.name}-{size}px-batch{batch_size}"
    path = bench.results_file(Path(__file__).parent, name, settings.output, device)
    bench.write_json(
        path,
        {
            "what": "training loaders",
            "environment": {**bench.environment(device), **versions("nvidia.dali", "PIL")},
            "settings": {**vars(settings), "data": source.name, "workers": workers},
            "images": {
                "count": len(split),
                "median_height_and_width": np.median(split.sizes, axis=0).tolist(),
                "images_of_a_turn": count * batch_size,
            },
            "images_per_second": {name: bench.summary(values) for name, values in speeds.items()},
            "speedup": {name: bench.summary(values) for name, values in ratios.items()},
            "left_out": left_out,
            "decoding_seconds_of_cached": decoding,
            "auto": {"choice": choice, "why": why, "seconds": choosing, "share_of_fastest": share_of_best},
        },
    )
    print(path)


def versions(*modules: str) -> dict[str, str]:
    found = {}
    for name in modules:
        with contextlib.suppress(ImportError):
            found[name] = importlib.import_module(name).__version__
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
