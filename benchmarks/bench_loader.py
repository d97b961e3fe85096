"""fastcnn's training loaders against torchvision's and timm's, on the same files and cores, in turn.

    python -m pytest benchmarks/bench_loader.py                           # the demo set, as JPEG files
    python -m pytest benchmarks/bench_loader.py --data /path/to/photos    # class folders, or train/ with them
    python -m pytest benchmarks/bench_loader.py --data /path/to/photos --quick
    python -m pytest benchmarks/bench_loader.py --data /path/to/photos -k big_photos

Photos are cropped by random-resized-crop, small images of one size by pad-crop (benchmarks/sizes.py). All
sides have a worker per core, and crops and flips of the same distribution:
  torchvision PIL            ImageFolder and v2 transforms on PIL images, uint8, in a DataLoader's processes
  torchvision float recipe   the same with the float conversion and normalization of torchvision's references
  torchvision decode_image   ImageFolder with torchvision's own decoder and v2 transforms on uint8 tensors
  timm                       timm's create_dataset and create_loader: normalized floats
  fastcnn dali, torch, cached    fastcnn's loaders; cached decodes all images in advance, timed separately
  dali ...                   on a GPU, DALI with other settings of its decoder and queue

test_big_photos measures 200 photos of 12 megapixels, enlarged from those of --data, smooth and with grain. It
has two more sides:
  DALI alone                 reader, random crop in decoding, resize and flip of DALI, without fastcnn
  fastcnn torch, full decoding    with --no-dct-scaling

The loaders stay alive between turns, and their epochs follow each other without a gap. The first batches of
a turn are not timed, since some were prefetched; a turn starts when the previous loader has finished
prefetching. The choice of `--data-backend auto` is recorded once, as at the start of a training. Files are
in the system's cache. All sides have the default memory allocator. Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import big_photos
from comparison import Comparison
from fastcnn.bench import timing
from fastcnn.config.settings import LoaderSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.autoselect import choose_backend
from fastcnn.data.loaders.base import ImageLoader
from fastcnn.data.loaders.registry import MAKERS, why_not
from fastcnn.data.sources import demo
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.walk import image_files
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, choose_device
from loader_sides import (
    DALI_ALONE,
    FULL_DECODING,
    PROCESSES,
    TUNED,
    Job,
    choose_load,
    dali_batches,
    open_folder,
    own_batches,
    own_loader,
    process_batches,
    read,
)
from sizes import BIG_LOAD, LOAD, Load

BASELINE = PROCESSES[0]
OWN = tuple(f"fastcnn {backend}" for backend in MAKERS)
SIDES = (*PROCESSES, *OWN, *TUNED)
BIG_SIDES = (
    *("torchvision PIL", "torchvision decode_image", DALI_ALONE),
    *("fastcnn dali", "fastcnn torch", FULL_DECODING),
)
BIG_COUNT = 200
BIG_PHOTOS = {"big-photos": 0.0, "big-photos-grain": 4.0}
"""Grain of each row, in levels of 255: enlarged photos are smoother than those of a phone."""
AHEAD = 3
"""Untimed first batches per worker: DataLoader prefetches 2 for each."""
OWN_AHEAD = 6
"""Untimed first batches of fastcnn's loaders, which prefetch 2 or 4 in all."""
QUIET_SECONDS = 20
"""Longest wait for idle processes: a GPU's driver may poll forever."""
DEVICE = choose_device("auto", Ranks())


def time_turn(batches: Iterator[object], ahead: int, count: int, device: torch.device) -> float:
    """Seconds of `count` batches after the first `ahead`; returns when prefetching has finished."""

    def take(number: int) -> None:
        for _ in range(number):
            next(batches)
        timing.wait_for(device)

    take(ahead)
    start = time.perf_counter()
    take(count)
    seconds = time.perf_counter() - start
    wait_for_quiet()
    return seconds


def wait_for_quiet() -> None:
    """Wait until this process and its workers are idle."""
    before, end = processor_seconds(), time.perf_counter() + QUIET_SECONDS
    while time.perf_counter() < end:
        time.sleep(0.1)
        now = processor_seconds()
        if now - before < 0.015:  # the system counts in hundredths
            return
        before = now


def processor_seconds() -> float:
    """CPU seconds of this process and its workers, over all threads."""
    total = 0
    for pid in (os.getpid(), *(process.pid for process in multiprocessing.active_children())):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])  # utime and stime of proc(5), which counts from 1
    return total / os.sysconf("SC_CLK_TCK")


def left_out(source: Source, workers: int, device: torch.device) -> dict[str, str]:
    """Sides that cannot be measured here, and why."""
    reasons = {
        f"fastcnn {backend}": why_not(backend, source, channels=3, workers=workers, local_world_size=1)
        for backend in MAKERS
    }
    reasons[DALI_ALONE] = reasons["fastcnn dali"]
    for name in TUNED:
        reasons[name] = reasons["fastcnn dali"] if device.type == "cuda" else "needs a CUDA GPU"
    if importlib.util.find_spec("timm") is None:
        reasons["timm"] = 'timm is not installed; pip install "fastcnn[timm]"'
    return {name: reason for name, reason in reasons.items() if reason}


def measure(
    root: Path,
    loads: tuple[Load, Load],
    device: torch.device,
    *,
    rounds: int,
    images: int | None,
    share: float,
    names: Sequence[str] = SIDES,
) -> Comparison:
    """Time all sides in turn on the images of a folder.

    Args:
        loads: entries of `sizes.LOAD`.
        rounds: timed turns of each side.
        images: use this many images, chosen at random.
        share: share of a turn's images, for a quick look.
        names: the sides.
    """
    workers = machine.cores_per_process(Ranks())
    torch.set_num_threads(workers)  # as in training; a worker of any side has one thread
    torch.manual_seed(0)
    job = prepare(root, loads, device, images)
    source, load = job.source, job.load
    absent = {name: why for name, why in left_out(source, workers, device).items() if name in names}
    present = [name for name in names if name not in absent]

    # Processes are forked before there are threads.
    sides = {name: process_batches(name, job) for name in present if name in PROCESSES}
    wait_for_quiet()
    auto = choose_auto(job)
    if DALI_ALONE in present:
        sides[DALI_ALONE] = dali_batches(job)
    own = [name for name in present if name not in sides]
    loaders, build_seconds = build_own_loaders(job, own)
    sides |= {name: own_batches(loader) for name, loader in loaders.items()}

    # Each worker makes the same number of batches, so all are at the same point when the clock stops.
    count = math.ceil(share * load.turn_images / load.batch_size / workers) * workers
    gives, seconds = time_sides(sides, job, rounds, count)
    for loader in loaders.values():
        loader.close()
    sides.clear()  # which ends their processes
    gc.collect()

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if f"fastcnn {auto['choice']}" in medians:
        auto["share_of_fastest"] = min(medians.values()) / medians[f"fastcnn {auto['choice']}"]
    settings = {
        "data": source.name,
        "images": len(source.train),
        "median_height_and_width": np.median(source.train.sizes, axis=0).tolist(),
        "mean_bytes": statistics.mean(os.path.getsize(path) for path, _ in job.samples),
        **load._asdict(),
        "img_size": job.size,
        "workers": workers,
        "turn_images": count * load.batch_size,
        "auto": auto,
        "versions": versions("nvidia.dali", "PIL", "timm"),
    }
    return Comparison(
        what=f"loader-{source.name}-{job.size}px-batch{load.batch_size}",
        baseline=BASELINE,
        seconds=seconds,
        device=device,
        work=count * load.batch_size,
        settings=settings,
        sides=facts_of(gives, build_seconds),
        left_out=absent,
    )


def prepare(root: Path, loads: tuple[Load, Load], device: torch.device, images: int | None) -> Job:
    folder = open_folder(root)
    source = read(folder, images)
    load = choose_load(source.train, loads)
    ShardedSampler(
        count=len(source.train), batch_size=load.batch_size, rank=0, world_size=1, train=True
    ).check()
    workers = machine.cores_per_process(Ranks())
    return Job(folder=folder, source=source, load=load, workers=workers, device=device)


def choose_auto(job: Job) -> dict[str, Any]:
    """Choice of `--data-backend auto` as at the start of a training, with its reason and seconds."""
    start = time.perf_counter()
    settings = LoaderSettings(batch_size=job.load.batch_size, workers=job.workers)
    choice, why = choose_backend(job.source, job.transform, settings, device=job.device, ranks=Ranks())
    return {"choice": choice, "why": why, "seconds": time.perf_counter() - start}


def build_own_loaders(job: Job, names: Sequence[str]) -> tuple[dict[str, ImageLoader], dict[str, float]]:
    """fastcnn's loaders, and the seconds to build each."""
    loaders, seconds = {}, {}
    for name in names:
        start = time.perf_counter()
        loaders[name] = own_loader(name, job)
        seconds[name] = time.perf_counter() - start
    return loaders, seconds


def time_sides(
    sides: Mapping[str, Iterator[object]], job: Job, rounds: int, count: int
) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Dtype of each side's images, and the seconds of its turns of `count` batches."""
    names, seconds = list(sides), {name: [0.0] * rounds for name in sides}
    ahead = {name: AHEAD * job.workers if name in PROCESSES else OWN_AHEAD for name in names}
    gives = {}
    for name in names:  # to warm up
        first: Any = next(sides[name])
        gives[name] = str(first[0].dtype).removeprefix("torch.")
        time_turn(sides[name], ahead[name], job.workers, job.device)
    gc.collect()
    for number in range(rounds):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            seconds[name][number] = time_turn(sides[name], ahead[name], count, job.device)
    return gives, seconds


def facts_of(gives: dict[str, str], build_seconds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Facts of each side: dtype of its images, settings of DALI, seconds of decoding in advance."""
    facts: dict[str, dict[str, Any]] = {
        name: {"gives": dtype, **TUNED.get(name, {})} for name, dtype in gives.items()
    }
    if "fastcnn cached" in build_seconds:
        facts["fastcnn cached"]["decoding_seconds"] = build_seconds["fastcnn cached"]
    return facts


def versions(*modules: str) -> dict[str, str]:
    found = {}
    for name in modules:
        with contextlib.suppress(ImportError):
            found[name] = importlib.import_module(name).__version__
    return found


@pytest.fixture(scope="module")
def comparison(request, tmp_path_factory, quick, save) -> Comparison:
    data = request.config.getoption("--data")
    root = Path(data).expanduser().resolve() if data else tmp_path_factory.mktemp("data") / "demo"
    if not data:
        demo.write(root)
    rounds, images, share = (3, 1_000, 0.2) if quick else (5, None, 1.0)
    loads = LOAD["cuda" if DEVICE.type == "cuda" else "cpu"]
    found = measure(root, loads, DEVICE, rounds=rounds, images=images, share=share)
    save(found)
    return found


@pytest.fixture(scope="module")
def row(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def big_comparison(request, row, tmp_path_factory, quick, save) -> Comparison:
    data = request.config.getoption("--data")
    photos = image_files(Path(data).expanduser()) if data else ()
    root = tmp_path_factory.mktemp("data") / row
    big_photos.write(root, 24 if quick else BIG_COUNT, photos, grain=BIG_PHOTOS[row])
    load = BIG_LOAD["cuda" if DEVICE.type == "cuda" else "cpu"]
    rounds, share = (3, 0.2) if quick else (5, 1.0)
    found = measure(root, (load, load), DEVICE, rounds=rounds, images=None, share=share, names=BIG_SIDES)
    save(found)
    return found


@pytest.mark.parametrize("side", BIG_SIDES)
@pytest.mark.parametrize("row", BIG_PHOTOS, indirect=True)
def test_big_photos(row, side, big_comparison, play):
    play(big_comparison, side)


@pytest.mark.parametrize("side", SIDES)
def test_loader(side, comparison, play):
    play(comparison, side)
