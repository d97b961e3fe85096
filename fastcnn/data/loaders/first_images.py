"""Training images for data-dependent initialization of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import LoaderArgs
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
    """Return images evenly spread over the split, since folders are ordered by class.

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
    sampler = ShardedSampler(
        count=len(some), batch_size=min(BATCH, len(some)), rank=0, world_size=1, train=False
    )
    bad = BadFiles(some, "training", max_fraction=1, quiet=True)  # the run's own loader reports them
    loader = MAKERS["torch"](
        LoaderArgs(
            split=some,
            transform=transform,
            sampler=sampler,
            device=torch.device("cpu"),
            workers=workers,
            bad=bad,
        )
    )
    try:
        images = torch.cat([batch.images[batch.mask] for batch in loader])
    finally:
        loader.close()
    shape = 1, -1, 1, 1
    return (images / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
