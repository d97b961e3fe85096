"""Some images of a split as they are validated, by one process alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import ImageLoader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS
from fastcnn.data.sources.dataset import Split
from fastcnn.data.transforms.transform import Transform

BATCH = 250


def first_images(
    split: Split,
    transform: Transform,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    count: int,
    workers: int,
) -> Tensor:
    """Return images for the initialization of a network, evenly spread over the split.

    Folders are ordered by class.

    Args:
        split: has images.
        transform: the run's; images are resized and cropped as in evaluation, without augmentation.
        mean, std: per channel, for values from 0 to 1.
        count: maximum number of images.
        workers: threads.

    Returns:
        Normalized images, float32 [count, C, size, size]; undecodable ones are missing.
    """
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).astype(np.int64)
    some = dataclasses.replace(split.take(chosen), annotations=None)
    loader = quiet_loader(
        some,
        transform,
        phase="training",
        batch_size=min(BATCH, len(some)),
        device=torch.device("cpu"),
        workers=workers,
    )
    with closing(loader):
        images = torch.cat([batch.images[batch.mask] for batch in loader])
    shape = 1, -1, 1, 1
    return (images / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def quiet_loader(
    split: Split, transform: Transform, *, phase: str, batch_size: int, device: torch.device, workers: int
) -> ImageLoader:
    """Return a loader of all images of a split in their order; undecodable ones are reported elsewhere."""
    sampler = ShardedSampler(count=len(split), batch_size=batch_size, rank=0, world_size=1, train=False)
    bad = BadFiles(split, phase, max_fraction=1, quiet=True)
    return MAKERS["torch"](
        LoaderArgs(split=split, transform=transform, sampler=sampler, device=device, workers=workers, bad=bad)
    )
