"""Build the training and the validation loader of a rank."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import Loader
from fastcnn.data.loaders.registry import MAKERS, Backend, why_not
from fastcnn.data.sources.dataset import Source
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks


def build_loaders(
    source: Source,
    backend: Backend | Literal["synthetic"],
    transform: Transform,
    batch_size: int,
    workers: int,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    max_bad_fraction: float = 0.01,
    repeats: int = 1,
    val_size: int | None = None,
) -> tuple[Loader, Loader]:
    """The training and the validation loader of this rank.

    Args:
        repeats: of `ShardedSampler`.
        val_size: pixels a side of the validation images, where they are others.

    Raises:
        UserError: fewer training images than one batch, fewer validation images than processes, a backend
            that cannot load them, or more bad images than `max_bad_fraction` of a phase.
    """
    shares = [
        ShardedSampler(
            len(split), batch_size, ranks.rank, ranks.world_size, train, seed, repeats if train else 1
        )
        for split, train in ((source.train, True), (source.val, False))
    ]
    for share in shares:
        share.check()
    val_transform = dataclasses.replace(transform, size=val_size or transform.size, progressive=False)
    if backend == "synthetic":
        from fastcnn.data.loaders.synthetic import SyntheticLoader

        return (
            SyntheticLoader(source.train, transform, shares[0], device),
            SyntheticLoader(source.val, val_transform, shares[1], device),
        )
    if source.name == "synthetic":
        raise UserError(f"--data-backend {backend}: synthetic data has no images; leave the flag out")
    reason = why_not(backend, source, transform.channels, workers, ranks.local_world_size)
    if reason:
        raise UserError(f"--data-backend {backend}: {reason}")
    bad = [
        BadFiles(source.train, "training", max_bad_fraction, ranks.world_size == 1),
        BadFiles(source.val, "validation", max_bad_fraction, ranks.world_size == 1),
    ]
    for files in bad:
        files.check_all()
    make = MAKERS[backend]
    return (
        make(source.train, transform, shares[0], device, workers, bad[0]),
        make(source.val, val_transform, shares[1], device, workers, bad[1]),
    )
