"""Base of all loaders of real images: order, position, targets, masks, replacements of undecodable images.

A batch is a pure function of (seed, epoch, samples). So a loader's state is its position alone, and a backend
only turns one `BatchRequest` after the other into pixels.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastcnn.data.batch import Batch, ShardedSampler
from fastcnn.data.decode import DecodeError
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.threads import chunks, pool_for
from fastcnn.data.sources.dataset import Split
from fastcnn.data.transforms.augment import Step, draw_steps
from fastcnn.data.transforms.geometry import Geometry, eval_geometry, train_geometry
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import BadImageError
from fastcnn.runtime.to_device import to_device


class Loader(Protocol):
    """Batches of one phase for one rank.

    Training yields full batches only. Evaluation yields every image once over all ranks; the last batches
    are padded and masked.
    """

    num_samples: int
    """Samples per epoch over all ranks, including undecodable ones."""
    skipped: int
    """Undecodable samples that this rank masked in the last evaluation pass."""

    bad: BadFiles
    """Undecodable images known to this rank."""

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same on every rank."""

    @property
    def steps_left(self) -> int:
        """Remaining batches of the current epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, counted from 0; the current one has no effect."""

    def resize(self, size: int) -> None:
        """Set the side of the images in pixels, from the next iteration on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last yielded batch, the same on every rank."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a saved position, also with another backend, batch size or number of ranks."""

    def close(self) -> None:
        """Stop threads and processes."""


class LoaderPosition(NamedTuple):
    """Position of a loader."""

    epoch: int
    consumed: int
    """Samples of the epoch consumed by all ranks together before the last resume."""
    step: int
    """Batches of this rank since then."""


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """One batch to load."""

    position: LoaderPosition
    samples: np.ndarray
    """Numbers of the samples in the split, [N]."""
    images: np.ndarray
    """Numbers of the images to decode, [N]: the samples, or replacements of undecodable ones."""
    geometry: Geometry
    targets: PendingTargets
    draw_ids: np.ndarray
    """Keys of the random numbers, [N]; they differ between repeated uses of a sample in an epoch."""
    steps: tuple[Step, ...] = ()
    """Augmentation after crop and flip."""


@dataclass(frozen=True)
class PendingTargets:
    """Targets that are loading in the background, or not started (no `parts`)."""

    images: np.ndarray
    """Numbers of the images, [N]."""
    parts: Sequence[Future[np.ndarray]] = ()


@dataclass(frozen=True, kw_only=True)
class LoaderArgs:
    """Arguments of every backend's loader: one phase of one rank."""

    split: Split
    """Images as files or arrays."""
    transform: Transform
    sampler: ShardedSampler
    """Order and batch size; `sampler.train` enables augmentation."""
    device: torch.device
    """Device of the batches."""
    workers: int
    """Loader threads."""
    bad: BadFiles
    """Undecodable images of the split; a loader adds those that it finds."""


class ImageLoader(ABC):
    """Loader of the real images of one phase on one rank."""

    def __init__(self, args: LoaderArgs) -> None:
        self.split = args.split
        self.transform = args.transform
        self.sampler = args.sampler
        self.device = args.device
        self.workers = args.workers
        self.bad = args.bad
        self.num_samples = args.sampler.num_samples
        self.skipped = 0
        self.targets = args.split.targets
        self._target_pool: ThreadPoolExecutor | None = None
        self.position = LoaderPosition(0, 0, 0)
        # Position of the batch that the backend delivers next; None if it is not started.
        self._prefetched: LoaderPosition | None = None

    @abstractmethod
    def _start(self, position: LoaderPosition) -> None:
        """Start loading `self._requests(position)`; drop prefetched batches."""

    @abstractmethod
    def _next(self) -> tuple[BatchRequest, Tensor]:
        """Return the next request and its images, uint8 [N, C, H, W] channels-last, on the device.

        Undecodable images are reported to `self.bad` and replaced."""

    @abstractmethod
    def _stop(self) -> None:
        """Drop prefetched batches and stop the backend's threads."""

    def close(self) -> None:
        """Stop threads; a later iteration restarts them."""
        self._stop()
        if self._target_pool is not None:
            self._target_pool.shutdown(cancel_futures=True)
        self._target_pool = self._prefetched = None

    def __len__(self) -> int:
        return self.sampler.steps

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.position.epoch:
            self.position = LoaderPosition(epoch, 0, 0)

    def resize(self, size: int) -> None:
        if size != self.transform.size:
            assert self.transform.progressive
            self.close()  # drops prefetched batches
            self.transform = dataclasses.replace(self.transform, size=size)

    def __iter__(self) -> Iterator[Batch]:
        if not self.sampler.train:
            self.position, self.skipped = LoaderPosition(0, 0, 0), 0
        while self.position.step < self.sampler.steps_after(self.position.consumed):
            if self._prefetched != self.position:
                self._start(self.position)
            request, images = self._next()
            assert request.position == self.position
            self._prefetched = self._after(self.position)
            self.position = self.position._replace(step=self.position.step + 1)
            yield Batch(images, to_device(self._targets_of(request), self.device), self._mask(request))

    @property
    def steps_left(self) -> int:
        return self.sampler.steps_after(self.position.consumed) - self.position.step

    def state_dict(self) -> dict[str, Any]:
        position, sampler = self.position, self.sampler
        consumed = position.consumed + position.step * sampler.batch_size * sampler.world_size
        return {"epoch": position.epoch, "consumed": consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = LoaderPosition(state["epoch"], state["consumed"], 0)

    def _requests(self, position: LoaderPosition) -> Iterator[BatchRequest]:
        """Yield requests from `position` on, without end: backends prefetch across epochs."""
        sampler, t = self.sampler, self.transform
        while True:
            epoch, consumed, first = position
            order = sampler.order(epoch, consumed)
            for step in range(first, sampler.steps_after(consumed)):
                draw_ids = sampler.indices(order, step)
                samples = draw_ids % sampler.count
                images = self.bad.replacements(samples)
                geometry = self._geometry(epoch, draw_ids, images)
                targets = self._begin_targets(images, geometry)
                steps: tuple[Step, ...] = ()
                if sampler.train:
                    steps = draw_steps(t.augment, t.size, sampler.seed, epoch, draw_ids)
                yield BatchRequest(
                    position=LoaderPosition(epoch, consumed, step),
                    samples=samples,
                    images=images,
                    geometry=geometry,
                    targets=targets,
                    draw_ids=draw_ids,
                    steps=steps,
                )
            position = LoaderPosition(epoch + 1 if sampler.train else epoch, 0, 0)

    def _begin_targets(self, images: np.ndarray, geometry: Geometry) -> PendingTargets:
        """Start loading slow targets in the background."""
        images = images.copy()  # a backend may replace undecodable images in place
        if not self.targets.threads:
            return PendingTargets(images)
        if self._target_pool is None:
            self._target_pool = pool_for(self.split, self.workers, gives_way=self.device.type == "cpu")
        parts = chunks(range(len(images)), 4 * self.workers)
        return PendingTargets(
            images, [self._target_pool.submit(self._load_targets, images, geometry, part) for part in parts]
        )

    def _load_targets(self, images: np.ndarray, geometry: Geometry, part: Sequence[int]) -> np.ndarray:
        chosen = np.asarray(part)
        try:
            return self.targets.load(images[chosen], geometry.take(chosen), self.transform.size)
        except DecodeError as error:  # it was readable when the data set was opened
            raise BadImageError(f"--data: {error}; start again") from error

    def _targets_of(self, request: BatchRequest) -> np.ndarray:
        """Return the targets of the images that were decoded in the end."""
        pending = request.targets
        if not pending.parts:
            return self._load_targets(request.images, request.geometry, range(len(request.images)))
        targets = np.concatenate([part.result() for part in pending.parts])
        # Reload those of images that were replaced since.
        others = np.flatnonzero(pending.images != request.images)
        if len(others):
            targets[others] = self._load_targets(request.images, request.geometry, others.tolist())
        return targets

    def _geometry(self, epoch: int, draw_ids: np.ndarray, images: np.ndarray) -> Geometry:
        sizes = self.split.sizes[images]
        if self.sampler.train:
            return train_geometry(self.transform, sizes, self.sampler.seed, epoch, draw_ids)
        return eval_geometry(self.transform, sizes)

    def _exchange(self, request: BatchRequest, i: int, reason: str) -> None:
        """Report the i-th image of a request as undecodable, and replace it there."""
        self.bad.find(int(request.images[i]), reason)
        request.images[i] = self.bad.replacement(int(request.samples[i]))
        part = slice(i, i + 1)
        again = self._geometry(request.position.epoch, request.draw_ids[part], request.images[part])
        for old, new in zip(vars(request.geometry).values(), vars(again).values()):
            old[i] = new[0]

    def _after(self, position: LoaderPosition) -> LoaderPosition:
        """Return the position after `position`, as in `_requests`."""
        if position.step + 1 < self.sampler.steps_after(position.consumed):
            return position._replace(step=position.step + 1)
        return LoaderPosition(position.epoch + 1 if self.sampler.train else position.epoch, 0, 0)

    def _mask(self, request: BatchRequest) -> Tensor:
        if self.sampler.train:
            return _all_real(self.sampler.batch_size, self.device)
        real = self.sampler.is_real(request.position.step)
        bad = np.fromiter((s in self.bad for s in request.samples.tolist()), bool, len(real))
        self.skipped += int((real & bad).sum())
        return to_device(real & ~bad, self.device)


@cache
def _all_real(batch_size: int, device: torch.device) -> Tensor:
    """Return one mask for all training batches, so that no step allocates it."""
    return torch.ones(batch_size, dtype=torch.bool, device=device)
