"""Registry of the loaders, and the conditions under which each is unavailable."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Literal

from fastcnn.data.loaders.base import ImageLoader, LoaderArgs
from fastcnn.data.sources.dataset import Source

Backend = Literal["dali", "torch", "cached"]
Maker = Callable[[LoaderArgs], ImageLoader]


def has_dali() -> bool:
    """Return whether DALI is installed."""
    return (
        importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    )


def _dali(args: LoaderArgs) -> ImageLoader:
    from fastcnn.data.loaders.dali import DaliLoader

    return DaliLoader(args)


def _torch(args: LoaderArgs) -> ImageLoader:
    from fastcnn.data.loaders.torch_loader import TorchLoader

    return TorchLoader(args)


def _cached(args: LoaderArgs) -> ImageLoader:
    from fastcnn.data.loaders.cached import cached_loader, decode_all
    from fastcnn.data.loaders.torch_loader import shapes_of_whole

    t = args.transform
    split = decode_all(
        args.split,
        t.channels,
        args.workers,
        args.bad,
        shapes=shapes_of_whole(t, args.split.sizes, train=args.sampler.train),
        dct_scaling=t.dct_scaling,
    )
    return cached_loader(dataclasses.replace(args, split=split))


MAKERS: dict[Backend, Maker] = {"dali": _dali, "torch": _torch, "cached": _cached}


def why_not(
    backend: Backend,
    source: Source,
    *,
    channels: int,
    workers: int,
    local_world_size: int,
    memory_share: float = 0.5,
) -> str:
    """Return why a loader is unavailable, as the end of a message that names it; "" if it is available.

    Args:
        memory_share: fraction of the free memory for the decoded images of a node's processes.
    """
    if backend == "dali":
        if not has_dali():
            return 'DALI is not installed; pip install "fastcnn[dali]" (Linux), or use --data-backend torch'
        if workers == 0:
            return "DALI needs a thread; use --workers 1 or more"
        if channels not in (1, 3):
            return f"DALI decodes 1 or 3 channels, and the images have {channels}; use --data-backend auto"
    if backend == "cached":
        from fastcnn.data.loaders.cached import cached_bytes, free_memory

        splits = filter(None, (source.train, source.val, source.test))
        needed = local_world_size * sum(cached_bytes(split, channels) for split in splits)
        room = int(memory_share * free_memory())
        if needed > room:
            return (
                f"the decoded images take {needed / 2**30:.1f} GiB and {room / 2**30:.1f} GiB may be used; "
                "use --data-backend auto"
            )
    return ""
