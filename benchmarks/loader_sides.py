"""Sides of bench_loader.py: endless iterators of training batches.

A DataLoader lets its workers idle between two epochs, so the sides run across epochs without a gap.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from fastcnn.data.batch import Batch, ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import ImageLoader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS
from fastcnn.data.sources.dataset import IMAGENET_MEAN, IMAGENET_STD, Source, Split, native_size
from fastcnn.data.sources.headers import scan
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from sizes import Load

PROCESSES = ("torchvision PIL", "torchvision float recipe", "torchvision decode_image", "timm")
"""Sides that load in worker processes."""
DALI_ALONE = "DALI alone"
"""A pipeline as in DALI's own examples."""
FULL_DECODING = "fastcnn torch, full decoding"
"""The loader in threads without decoding at a reduced scale."""
TUNED: dict[str, dict[str, Any]] = {
    "dali hw 0": {"hw_decoder_load": 0.0},
    "dali hw 0.5": {"hw_decoder_load": 0.5},
    "dali hw 0.65": {"hw_decoder_load": 0.65},
    "dali hw 0.9": {"hw_decoder_load": 0.9},
    "dali prefetch 2": {"prefetch": 2},
    "dali prefetch 4": {"prefetch": 4},
    "dali preallocated": {"preallocate": True},
}
"""Variants of `fastcnn.data.loaders.dali.Tuning` for a GPU. Two repeat its defaults under other names: their
distance from "fastcnn dali" is the noise that a difference must exceed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Images and settings, the same for all sides."""

    folder: ImageFolder
    source: Source
    """The readable images of `folder`, or some of them."""
    load: Load
    workers: int
    device: torch.device

    @property
    def size(self) -> int:
        """Height and width of a batch's images in pixels."""
        size = self.load.img_size or self.source.native_size
        assert size is not None
        return size

    @property
    def split(self) -> Split:
        return self.source.train

    @property
    def samples(self) -> list[tuple[str, int]]:
        """Paths and labels."""
        assert self.split.files is not None
        return list(zip(self.split.files.paths, self.split.labels.tolist()))

    @property
    def transform(self) -> Transform:
        return Transform(size=self.size, train_crop=self.load.crop)


def open_folder(root: Path) -> ImageFolder:
    """Open the class folders in `root`, or in its train/.

    Raises:
        UserError: no class folders.
    """
    try:
        return ImageFolder(root / "train" if (root / "train").is_dir() else root)
    except FileNotFoundError as error:
        message = f"--data {root}: no class folders with images; use the folder that holds CLASS/*.jpg"
        raise UserError(message) from error


def read(folder: ImageFolder, count: int | None = None) -> Source:
    """Source of the images that every side can read, or of `count` of them.

    The files are read once, so that they are in the system's cache.
    """
    files = scan(str(folder.root), [path for path, _ in folder.samples])
    good = np.array([i for i in range(len(files)) if i not in files.problems])
    chosen = np.sort(np.random.default_rng(0).permutation(good)[:count])
    files = files.take(chosen)
    for i in range(len(files)):
        files.read(i)
    train = Split(np.asarray(folder.targets, dtype=np.int64)[chosen], files)
    val = train.take(np.arange(0, len(train), 10))
    root = Path(folder.root)
    name = root.parent.name if root.name == "train" else root.name
    return Source(
        name=name, train=train, val=val, class_names=tuple(folder.classes), native_size=native_size(train)
    )


def choose_load(split: Split, loads: tuple[Load, Load]) -> Load:
    """Choose the entry of `sizes.LOAD` for these images."""
    photos, small = loads
    return photos if native_size(split) is None else small


def process_batches(name: str, job: Job) -> Iterator[object]:
    """Batches of a side in `PROCESSES`."""
    fast_decode = partial(decode_image, mode=ImageReadMode.RGB)
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    if name == "torchvision PIL":
        return torchvision_batches(job, default_loader, [v2.PILToTensor()])
    if name == "torchvision float recipe":
        return torchvision_batches(job, default_loader, [v2.PILToTensor(), *to_float])
    if name == "torchvision decode_image":
        return torchvision_batches(job, fast_decode, [])
    return timm_batches(job)


def torchvision_batches(job: Job, load: Callable[[str], Any], last: list[Any]) -> Iterator[object]:
    """Batches of `ImageFolder`, v2 transforms and a DataLoader.

    Args:
        load: reads an image from its path.
        last: transforms after crop and flip.
    """
    crop: Any = v2.RandomResizedCrop(job.size, antialias=True)
    if job.load.crop == "pad":
        crop = v2.RandomCrop(job.size, padding=job.transform.padding)
    images = ImageFolder(job.folder.root, v2.Compose([crop, v2.RandomHorizontalFlip(), *last]), loader=load)
    images.samples = job.samples
    batches = iter(
        DataLoader(
            images,
            job.load.batch_size,
            sampler=RandomSampler(images, num_samples=1 << 40),  # one permutation after the other
            num_workers=job.workers,
            persistent_workers=True,
            pin_memory=job.device.type == "cuda",
            drop_last=True,
        )
    )
    return _on_device(batches, job.device)


def timm_batches(job: Job) -> Iterator[object]:
    """Batches of timm's loader, with its prefetcher on a GPU and no augmentation but crop and flip."""
    from timm.data import create_dataset, create_loader

    on_gpu = job.device.type == "cuda"
    images = create_dataset("", root=str(job.folder.root), split="train", search_split=False)
    images.reader.samples = job.samples
    loader = create_loader(
        images,
        (3, job.size, job.size),
        job.load.batch_size,
        is_training=True,
        color_jitter=None,
        num_workers=job.workers,
        pin_memory=on_gpu,
        device=job.device,
        use_prefetcher=on_gpu,
        use_multi_epochs_loader=True,
    )
    if job.load.crop == "pad":  # which timm does not have
        crop = v1.RandomCrop(job.size, padding=job.transform.padding)
        images.transform = v1.Compose([crop, *images.transform.transforms[1:]])
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return batches if on_gpu else _on_device(batches, job.device)


def _on_device(batches: Iterator[Any], device: torch.device) -> Iterator[object]:
    return ([tensor.to(device, non_blocking=True) for tensor in batch] for batch in batches)


def dali_batches(job: Job) -> Iterator[object]:
    """Batches of DALI's reader, random crop in decoding, resize and flip."""
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    on_gpu = job.device.type == "cuda"

    @pipeline_def(
        batch_size=job.load.batch_size,
        num_threads=job.workers,
        device_id=torch.cuda.current_device() if on_gpu else None,
    )
    def pipeline() -> tuple[Any, Any]:
        paths, labels = zip(*job.samples)
        data, label = fn.readers.file(files=paths, labels=labels, random_shuffle=True)
        images = fn.decoders.image_random_crop(
            data,
            device="mixed" if on_gpu else "cpu",
            random_area=list(job.transform.scale),
            random_aspect_ratio=list(job.transform.ratio),
        )
        images = fn.resize(images, size=[job.size, job.size], antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), label

    batches = DALIGenericIterator(pipeline(), ["images", "labels"], size=-1)
    return ((batch["images"], batch["labels"]) for (batch,) in batches)


def own_loader(name: str, job: Job) -> ImageLoader:
    """Loader of the side "fastcnn BACKEND" , `FULL_DECODING`, or of a side in `TUNED`."""
    split = job.split
    sampler = ShardedSampler(
        count=len(split), batch_size=job.load.batch_size, rank=0, world_size=1, train=True
    )
    args = LoaderArgs(
        split=split,
        transform=dataclasses.replace(job.transform, dct_scaling=name != FULL_DECODING),
        sampler=sampler,
        device=job.device,
        workers=job.workers,
        bad=BadFiles(split, "training", 1),
    )
    if name not in TUNED:
        name = name.partition(",")[0]
        return {f"fastcnn {backend}": make for backend, make in MAKERS.items()}[name](args)
    from fastcnn.data.loaders.dali import DaliLoader, Tuning

    return DaliLoader(args, Tuning(**TUNED[name]))


def own_batches(loader: ImageLoader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader
