"""Build the training and the validation loader of a rank."""

from __future__ import annotations

import dataclasses

import torch

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import Loader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS, why_not
from fastcnn.data.sources.dataset import Source
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks


def build_loaders(
    source: Source,
    transform: Transform,
    settings: LoaderSettings,
    *,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    val_size: int | None = None,
) -> tuple[Loader, Loader]:
    """Return the training and the validation loader of this rank.

    Args:
        settings: none of them "auto".
        val_size: side of the validation images in pixels; None: as in training.

    Raises:
        UserError: fewer training images than one batch, fewer validation images than processes, a backend
            that cannot load them, or more bad images than `settings.max_bad_fraction` of a phase.
    """
    backend, workers = settings.data_backend, int(settings.workers)
    assert backend != "auto"

    def sampler_of(count: int, *, train: bool) -> ShardedSampler:
        sampler = ShardedSampler(
            count=count,
            batch_size=int(settings.batch_size),
            rank=ranks.rank,
            world_size=ranks.world_size,
            train=train,
            seed=seed,
            repeats=settings.aug_repeats if train else 1,
        )
        sampler.check()
        return sampler

    val_transform = dataclasses.replace(transform, size=val_size or transform.size, progressive=False)
    train_sampler = sampler_of(len(source.train), train=True)
    val_sampler = sampler_of(len(source.val), train=False)
    if backend == "synthetic":
        from fastcnn.data.loaders.synthetic import SyntheticLoader

        return (
            SyntheticLoader(source.train, transform, train_sampler, device),
            SyntheticLoader(source.val, val_transform, val_sampler, device),
        )
    if source.name == "synthetic":
        raise UserError(f"--data-backend {backend}: synthetic data has no images; leave the flag out")
    reason = why_not(
        backend,
        source,
        channels=transform.channels,
        workers=workers,
        local_world_size=ranks.local_world_size,
    )
    if reason:
        raise UserError(f"--data-backend {backend}: {reason}")
    train_args, val_args = (
        LoaderArgs(
            split=split,
            transform=of_phase,
            sampler=sampler,
            device=device,
            workers=workers,
            bad=BadFiles(split, phase, settings.max_bad_fraction, alone=ranks.world_size == 1),
        )
        for split, of_phase, sampler, phase in (
            (source.train, transform, train_sampler, "training"),
            (source.val, val_transform, val_sampler, "validation"),
        )
    )
    # Both phases are checked before the first loader starts.
    for args in (train_args, val_args):
        args.bad.check_all()
    make = MAKERS[backend]
    return make(train_args), make(val_args)
