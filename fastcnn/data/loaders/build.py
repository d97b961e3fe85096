"""Build the loaders of a rank."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import Loader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS, Backend, why_not
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
    val_transform = _val_transform(transform, val_size)
    train, val = (
        _phase_args(split, of_phase, settings, ranks=ranks, device=device, seed=seed, phase=phase)
        for split, of_phase, phase in (
            (source.train, transform, "training"),
            (source.val, val_transform, "validation"),
        )
    )
    if backend == "synthetic":
        return _make(train, backend), _make(val, backend)
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
    # Check all phases before the first loader starts.
    train.bad.check_all()
    val.bad.check_all()
    if source.test is not None:
        test = _phase_args(
            source.test, val_transform, settings, ranks=ranks, device=device, seed=seed, phase="test"
        )
        test.bad.check_all()
    return _make(train, backend), _make(val, backend)


def build_test_loader(
    split: Split,
    transform: Transform,
    settings: LoaderSettings,
    *,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    val_size: int | None = None,
) -> Loader:
    """Return the loader of this rank for held-out images, after `build_loaders`, with the same arguments."""
    transform = _val_transform(transform, val_size)
    args = _phase_args(split, transform, settings, ranks=ranks, device=device, seed=seed, phase="test")
    assert settings.data_backend != "auto"
    return _make(args, settings.data_backend)


def _val_transform(transform: Transform, val_size: int | None) -> Transform:
    return dataclasses.replace(transform, size=val_size or transform.size, progressive=False)


def _make(args: LoaderArgs, backend: Backend | Literal["synthetic"]) -> Loader:
    if backend == "synthetic":
        from fastcnn.data.loaders.synthetic import SyntheticLoader

        return SyntheticLoader(args.split, args.transform, args.sampler, args.device)
    return MAKERS[backend](args)


def _phase_args(
    split: Split,
    transform: Transform,
    settings: LoaderSettings,
    *,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    phase: str,
) -> LoaderArgs:
    """Return the arguments of the loader of a phase; UserError if a rank would get no batch."""
    sampler = ShardedSampler(
        count=len(split),
        batch_size=int(settings.batch_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        train=phase == "training",
        seed=seed,
        repeats=settings.aug_repeats if phase == "training" else 1,
        labels=split.labels if phase == "training" and settings.sampler == "balanced" else None,
    )
    sampler.check()
    return LoaderArgs(
        split=split,
        transform=transform,
        sampler=sampler,
        device=device,
        workers=int(settings.workers),
        bad=BadFiles(split, phase, settings.max_bad_fraction, alone=ranks.world_size == 1),
    )
