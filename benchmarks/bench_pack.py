"""fastcnn's training loaders on a folder of photos and on its shards, in turn.

    python -m pytest benchmarks/bench_pack.py --data /path/to/photos    # class folders; else drawn photos
    python -m pytest benchmarks/bench_pack.py --quick

`fastcnn pack` writes the shards with two sizes, at quality 90. Images are random-resized crops of 224 px.
Turns are as in bench_loader.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import big_photos
from bench_loader import DEVICE, time_sides, wait_for_quiet
from comparison import Comparison
from fastcnn.config.settings import DataSettings
from fastcnn.data.loaders.registry import why_not
from fastcnn.data.pack import PackSettings, pack
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.open import open_source
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks
from loader_sides import Job, open_folder, own_batches, own_loader, read
from sizes import LOAD

MAX_SIZES = (500, 400)
QUALITY = 90
KINDS = ("folder", *(f"shards {size} px" for size in MAX_SIZES))
SIDES = tuple(f"{backend}, {kind}" for backend in ("torch", "dali") for kind in KINDS)


def measure(root: Path, shards: Path, device: torch.device, *, rounds: int, share: float) -> Comparison:
    """Time the loaders in turn on a folder and on its shards, which are written first.

    Args:
        shards: folder for the shards.
        rounds: timed turns of each side.
        share: share of a turn's images, for a quick look.
    """
    workers = machine.cores_per_process(Ranks())
    torch.set_num_threads(workers)
    folder = open_folder(root)
    source = read(folder)
    load = LOAD[device.type if device.type == "cuda" else "cpu"][0]
    sources: dict[str, Source] = {"folder": source}
    for size in MAX_SIZES:
        where = shards / str(size)
        pack(source, str(root), where, PackSettings(max_size=size, quality=QUALITY), workers=workers)
        sources[f"shards {size} px"] = open_source(DataSettings(data=str(where)), seed=0)
    loaders, left_out = {}, {}
    for name in SIDES:
        backend, _, kind = name.partition(", ")
        job = Job(folder=folder, source=sources[kind], load=load, workers=workers, device=device)
        why = why_not(backend, source, channels=3, workers=workers, local_world_size=1)  # type: ignore[arg-type]
        if why:
            left_out[name] = why
        else:
            loaders[name] = own_loader(f"fastcnn {backend}", job)
    wait_for_quiet()
    sides = {name: own_batches(loader) for name, loader in loaders.items()}
    count = max(1, round(share * load.turn_images / load.batch_size))
    _, seconds = time_sides(sides, job, rounds, count)
    for loader in loaders.values():
        loader.close()
    return Comparison(
        what=f"pack-{source.name}-{job.size}px-batch{load.batch_size}",
        baseline=SIDES[0],
        seconds=seconds,
        device=device,
        work=count * load.batch_size,
        settings={
            "data": source.name,
            "images": len(source.train),
            "quality": QUALITY,
            **load._asdict(),
            "workers": workers,
            "megabytes": {kind: megabytes(found) for kind, found in sources.items()},
        },
        left_out=left_out,
    )


def megabytes(source: Source) -> float:
    """Size of the encoded training images."""
    files = source.train.files
    assert files is not None
    if files.spans is not None:
        return float(files.spans[:, 1].sum()) / 1e6
    return sum(map(os.path.getsize, files.paths)) / 1e6


@pytest.fixture(scope="module")
def comparison(request, tmp_path_factory, quick, save) -> Comparison:
    data = request.config.getoption("--data")
    root = Path(data).expanduser().resolve() if data else tmp_path_factory.mktemp("data") / "photos"
    if not data:
        big_photos.write(root, 128, grain=4.0, size=(1200, 900))
    rounds, share = (3, 0.2) if quick else (5, 1.0)
    found = measure(root, tmp_path_factory.mktemp("shards"), DEVICE, rounds=rounds, share=share)
    save(found)
    return found


@pytest.mark.parametrize("side", SIDES)
def test_pack(side, comparison, play):
    play(comparison, side)
