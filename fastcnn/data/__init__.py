"""Data: sources say which images there are, loaders turn them into batches on the device.

    python -m fastcnn.train --data photos --data-backend dali

Every loader keeps the contract of `fastcnn.data.batch`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from fastcnn.data.batch import Batch, Loader, Share, Transform
from fastcnn.data.sources import Source, open_source
from fastcnn.distributed import Ranks
from fastcnn.errors import UserError

__all__ = ["Batch", "Loader", "Source", "Transform", "build_loaders", "has_dali", "open_source"]

Backend = Literal["dali", "torch", "synthetic"]


def has_dali() -> bool:
    return (
        importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    )


def build_loaders(
    source: Source,
    backend: Backend,
    transform: Transform,
    batch_size: int,
    workers: int,
    ranks: Ranks,
    device: torch.device,
    seed: int,
) -> tuple[Loader, Loader]:
    """The training and the validation loader of this rank.

    Raises:
        UserError: fewer training images than one batch, fewer validation images than processes, or a
            backend that is not there.
    """
    if source.name == "synthetic" and backend != "synthetic":
        raise UserError(f"--data-backend {backend}: synthetic data has no images; leave the flag out")
    make: Callable[..., Loader]
    if backend == "synthetic":
        from fastcnn.data.synthetic import SyntheticLoader

        make = partial(SyntheticLoader, transform=transform, device=device)
    elif backend == "dali":
        if not has_dali():
            raise UserError(
                '--data-backend dali: DALI is not installed; pip install "fastcnn[dali]" (Linux), '
                "or write --data-backend torch"
            )
        if workers == 0:
            raise UserError("--workers 0: DALI needs a thread; write 1 or more")
        from fastcnn.data.dali import DaliLoader

        make = partial(DaliLoader, transform=transform, device=device, workers=workers)
    else:
        from fastcnn.data.torch_loader import TorchLoader

        make = partial(TorchLoader, transform=transform, device=device, workers=workers)
    loaders = []
    for split, train in ((source.train, True), (source.val, False)):
        share = Share(len(split), batch_size, ranks.rank, ranks.world_size, train, seed)
        share.check()
        loaders.append(make(split, share=share))
    return loaders[0], loaders[1]
