"""Images to start a network from: some of the training split, as evaluation shows them."""

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
    """Some images, evenly spread over the split, since folders come class by class.

    Args:
        split: with images.
        transform: of the run; they are resized and cropped as in evaluation, and not augmented.
        mean, std: of each channel, of values from 0 to 1.
        count: how many, if there are so many.
        workers: threads.

    Returns:
        float32 [count, C, size, size], normalized; fewer where some cannot be decoded.
    """
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).astype(np.int64)
    some = dataclasses.replace(split.take(chosen), annotations=None)
    sampler = ShardedSampler(
        count=len(some), batch_size=min(BATCH, len(some)), rank=0, world_size=1, train=False
    )
    bad = BadFiles(some, "training", max_fraction=1, quiet=True)  # the run's own loader will name them
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
