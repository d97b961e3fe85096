"""Data: sources say which images there are, loaders turn them into batches on the device.

    python -m fastcnn.train --data photos --data-backend dali

Every loader keeps the contract of `fastcnn.data.batch`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from fastcnn.data.backends import MAKERS, Backend, has_dali, why_not
from fastcnn.data.bad_files import BadFiles
from fastcnn.data.batch import Batch, Loader, Share, Transform
from fastcnn.data.sources import Source, open_source
from fastcnn.data.targets import IGNORE
from fastcnn.distributed import Ranks
from fastcnn.errors import UserError

__all__ = [
    "Backend",
    "BadFiles",
    "Batch",
    "Loader",
    "Source",
    "Transform",
    "build_loaders",
    "has_dali",
    "open_data",
    "open_source",
]


def open_data(
    task: str,
    data: str,
    data_root: str,
    val_split: float | None,
    seed: int,
    ignore_index: int = IGNORE,
    bad_labels: Literal["stop", "skip"] = "stop",
) -> Source:
    """`--data` to a source with the targets of a task.

    Args:
        task: "classification", "segmentation" or "detection".
        data, data_root, val_split, seed: as of `open_source`.
        ignore_index, bad_labels: as of `fastcnn.data.mask_sources.mask_source`.

    Raises:
        UserError: no such data, or data that is not laid out for the task.
    """
    told = data, data_root, val_split, seed
    if task == "segmentation":
        from fastcnn.data.mask_sources import mask_source

        return mask_source(*told, ignore_index, bad_labels)
    if task == "detection":
        from fastcnn.data.box_sources import box_source

        return box_source(*told, bad_labels)
    return open_source(*told)


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
        repeats: of `Share`.
        val_size: pixels a side of the validation images, where they are others.

    Raises:
        UserError: fewer training images than one batch, fewer validation images than processes, a backend
            that cannot load them, or more bad images than `max_bad_fraction` of a phase.
    """
    shares = [
        Share(len(split), batch_size, ranks.rank, ranks.world_size, train, seed, repeats if train else 1)
        for split, train in ((source.train, True), (source.val, False))
    ]
    for share in shares:
        share.check()
    val_transform = dataclasses.replace(transform, size=val_size or transform.size, progressive=False)
    if backend == "synthetic":
        from fastcnn.data.synthetic import SyntheticLoader

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
