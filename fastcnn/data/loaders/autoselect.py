"""Select the fastest loader by timing each of them briefly on the training images."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.batch import Batch, ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import ImageLoader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS, Backend, why_not
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks

MEMORY_SHARE = 0.25
"""Fraction of the free memory that an automatically selected loader may fill."""
ROUNDS = 3
"""Turns of each candidate. The best one counts, since disturbances only slow a loader down."""
SECONDS = 0.3
"""Length of a turn."""
AHEAD = 2
"""Batches that may be prefetched before a turn; they are not counted."""


def choose_backend(
    source: Source, transform: Transform, settings: LoaderSettings, *, device: torch.device, ranks: Ranks
) -> tuple[Backend, str]:
    """Time the loaders in turn on a sample of the training images.

    Returns:
        The fastest backend, and the measured speeds as the reason.
    """
    candidates = [
        backend
        for backend in MAKERS
        if not why_not(
            backend,
            source,
            channels=transform.channels,
            workers=int(settings.workers),
            local_world_size=ranks.local_world_size,
            memory_share=MEMORY_SHARE,
        )
    ]
    if len(candidates) == 1:
        return candidates[0], "the only one here"
    speeds = time_backends(candidates, source.train, transform, settings, device)
    figures = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    return max(speeds, key=speeds.__getitem__), f"img/s alone: {figures}"


def time_backends(
    candidates: list[Backend],
    split: Split,
    transform: Transform,
    settings: LoaderSettings,
    device: torch.device,
) -> dict[Backend, float]:
    """Return the training images per second of each loader, on up to eight batches that repeat."""
    batch_size = int(settings.batch_size)
    count = min(len(split), 8 * batch_size)
    sample = split.take(np.random.default_rng(0).permutation(len(split))[:count])
    if sample.files is not None:
        for i in range(count):  # into the system's cache, for all candidates alike
            if i not in sample.problems:
                with contextlib.suppress(OSError):
                    sample.files.read(i)
    sampler = ShardedSampler(count=count, batch_size=min(batch_size, count), rank=0, world_size=1, train=True)
    loaders = {
        name: MAKERS[name](
            LoaderArgs(
                split=sample,
                transform=transform,
                sampler=sampler,
                device=device,
                workers=int(settings.workers),
                bad=BadFiles(sample, "training", max_fraction=1, quiet=True),
            )
        )
        for name in candidates
    }
    # Alternate the order between turns, so that no candidate is always first.
    best = dict.fromkeys(candidates, 0.0)
    try:
        batches = {name: _endless(loader) for name, loader in loaders.items()}
        for turn in range(ROUNDS):
            for name in candidates if turn % 2 else reversed(candidates):
                _wait_for_quiet()
                for _ in range(AHEAD):
                    next(batches[name])
                images, start = 0, time.perf_counter()
                while (seconds := time.perf_counter() - start) < SECONDS:
                    images += len(next(batches[name]).images)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                best[name] = max(best[name], images / seconds)
    finally:
        for loader in loaders.values():
            loader.close()
    return best


def _wait_for_quiet() -> None:
    """Wait until the last loader has finished its prefetching, at most a second."""
    for _ in range(50):
        busy = time.process_time()
        time.sleep(0.02)
        if time.process_time() - busy < 0.002:
            return


def _endless(loader: ImageLoader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader
