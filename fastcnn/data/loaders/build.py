"""Build the training and the validation loader of a rank."""

from __future__ import annotations

import dataclasses

import torch

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import Loader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS, why_not
from fastcnn.data.sources.dataset import Source, Split
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
        settings: resolved settings, none of them "auto".
        val_size: side of the validation images in pixels; None: as in training.

    Raises:
        UserError: fewer training images than one batch, fewer validation images than processes, a backend
            that cannot load them, or more bad images than `settings.max_bad_fraction` of a phase.
    """
    backend = settings.data_backend
    assert backend != "auto"
    val_transform = dataclasses.replace(transform, size=val_size or transform.size, progressive=False)
    train, val = (
        _phase_args(split, of_phase, settings, ranks=ranks, device=device, seed=seed, train=is_train)
        for split, of_phase, is_train in ((source.train, transform, True), (source.val, val_transform, False))
    )
    if backend == "synthetic":
        from fastcnn.data.loaders.synthetic import SyntheticLoader

        return (
            SyntheticLoader(train.split, train.transform, train.sampler, device),
            SyntheticLoader(val.split, val.transform, val.sampler, device),
        )
    if source.name == "synthetic":
        raise UserError(f"--data-backend {backend}: synthetic data has no images; omit the flag")
    reason = why_not(
        backend,
        source,
        channels=transform.channels,
        workers=train.workers,
        local_world_size=ranks.local_world_size,
    )
    if reason:
        raise UserError(f"--data-backend {backend}: {reason}")
    # Check both phases before the first loader starts.
    train.bad.check_all()
    val.bad.check_all()
    make = MAKERS[backend]
    return make(train), make(val)


def _phase_args(
    split: Split,
    transform: Transform,
    settings: LoaderSettings,
    *,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    train: bool,
) -> LoaderArgs:
    """Return the arguments of the loader of a phase; UserError if a rank would get no batch."""
    sampler = ShardedSampler(
        count=len(split),
        batch_size=int(settings.batch_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        train=train,
        seed=seed,
        repeats=settings.aug_repeats if train else 1,
    )
    sampler.check()
    return LoaderArgs(
        split=split,
        transform=transform,
        sampler=sampler,
        device=device,
        workers=int(settings.workers),
        bad=BadFiles(
            split,
            "training" if train else "validation",
            settings.max_bad_fraction,
            alone=ranks.world_size == 1,
        ),
    )
