"""Accuracy of a small training on photos of 12 megapixels, decoded at a reduced scale and in full.

    python benchmarks/bench_dct_scaling.py --data /data/cifar10    # class folders in train/ and val/ or test/
    python benchmarks/bench_dct_scaling.py                         # the demo set

Some images of each class are enlarged, with grain, and written as JPEGs. Both sides train on the same files
with the same seeds, crops and order; they differ in the pixels alone.
"""

from __future__ import annotations

import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import big_photos
from comparison import results_file
from fastcnn.bench import timing
from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.open import open_source
from fastcnn.runtime import environment
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.runtime.machine import cores_per_process

GRAIN = 4.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    data: str = "demo"
    """Small images in class folders."""
    train_photos: int = 200
    val_photos: int = 200
    width: int = big_photos.WIDTH
    height: int = big_photos.HEIGHT
    """Size of the photos in pixels."""
    arch: str = "resnet18"
    img_size: int = 64
    batch_size: int = 20
    epochs: int = 20
    seeds: int = 3
    """Trainings of each side."""
    output: str | None = None
    """JSON file; by default benchmarks/results/MACHINE/dct-scaling.json."""


def write_photos(
    split: Split, class_names: tuple[str, ...], root: Path, count: int, settings: Settings
) -> None:
    """Write `count` images of a split, as many of each class, as large photos into class folders."""
    assert split.files is not None
    paths = split.files.paths
    order = np.random.default_rng(0).permutation(len(split))
    place = np.empty(len(split), dtype=np.int64)  # number of each image within its shuffled class
    for label in np.unique(split.labels):
        of_class = order[split.labels[order] == label]
        place[of_class] = np.arange(len(of_class))
    chosen = np.lexsort((split.labels, place))[:count].tolist()

    def write(i: int) -> None:
        folder = root / class_names[split.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        image = big_photos.enlarge(paths[i], (settings.width, settings.height))
        photo = big_photos.with_grain(image, GRAIN, np.random.default_rng(i))
        photo.save(folder / f"{i:06}.jpg", quality=big_photos.QUALITY, subsampling="4:2:0")

    with ThreadPoolExecutor(cores_per_process(Ranks())) as pool:
        list(pool.map(write, chosen))


def train(settings: Settings, photos: Path, folder: Path, seed: int, *, scaled: bool) -> dict[str, Any]:
    import fastcnn

    result = fastcnn.fit(
        arch=settings.arch,
        data=str(photos),
        data_backend="torch",
        img_size=settings.img_size,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        val_interval=settings.epochs,
        seed=seed,
        dct_scaling=scaled,
        output_dir=str(folder / f"run-{scaled}-{seed}"),
    )
    return {"acc1": result.val["acc1"], "seconds": result.seconds}


def main() -> int:
    settings = tyro.cli(Settings)
    device = choose_device("auto", Ranks())
    path = results_file("dct-scaling", settings.output, device)
    source = open_source(DataSettings(data=settings.data), seed=0)
    runs: dict[str, list[dict[str, Any]]] = {"scaled": [], "full": []}
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name) / "photos"
        for phase, split, count in (
            ("train", source.train, settings.train_photos),
            ("val", source.val, settings.val_photos),
        ):
            write_photos(split, source.class_names, photos / phase, count, settings)
        for seed in range(settings.seeds):
            for side in runs:
                runs[side].append(train(settings, photos, Path(name), seed, scaled=side == "scaled"))
            content = {
                "what": "dct-scaling",
                "environment": environment.environment(device),
                "settings": vars(settings),
                "runs": runs,
            }
            timing.write_json(path, content)
    for side, found in runs.items():
        accuracies = [run["acc1"] for run in found]
        print(
            f"{side}: {statistics.mean(accuracies):.2f}% ({', '.join(f'{a:.2f}' for a in accuracies)}), "
            f"deviation {statistics.pstdev(accuracies):.2f}, "
            f"{statistics.mean(run['seconds'] for run in found):.0f} s a training"
        )
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
