"""What all loaders of real images sampler: order, position, targets, masks and stand-ins for bad files.

A batch is a pure function of (seed, epoch, samples). So a position is all there is to save, and a backend
only turns one `BatchRequest` after the other into pixels.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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

if TYPE_CHECKING:
    from fastcnn.data.loaders.bad_files import BadFiles


class Loader(Protocol):
    """Batches of one phase for one rank.

    Training yields full batches only; evaluation yields every image once over all ranks, the last
    batches padded and masked.
    """

    num_samples: int
    """Samples over all ranks in an epoch, bad ones included."""
    skipped: int
    """Bad ones among them that this rank has masked in the last pass of evaluation."""

    bad: BadFiles
    """Which of them cannot be decoded, as far as this rank knows."""

    def __len__(self) -> int:
        """Batches an epoch, the same on every rank."""

    @property
    def steps_left(self) -> int:
        """Batches of the rest of the current epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0, that comes next; the current one changes nothing."""

    def resize(self, size: int) -> None:
        """From the next iteration on images have so many pixels a side."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was yielded, the same on every rank."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, whatever the backend, the batch size and the ranks were."""

    def close(self) -> None:
        """Ends threads and processes."""


class LoaderPosition(NamedTuple):
    """Where a loader is."""

    epoch: int
    consumed: int
    """Samples of the epoch that all ranks had together before this process took over."""
    step: int
    """Batches since."""


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """One batch to load."""

    place: LoaderPosition
    samples: np.ndarray
    """[N] numbers in the split."""
    images: np.ndarray
    """[N] the images that are decoded for them: themselves, or another where they are bad."""
    geometry: Geometry
    targets: PendingTargets
    draw_ids: np.ndarray
    """[N] numbers by which random numbers are drawn: of samples that are used several times an epoch, each
    time another."""
    steps: tuple[Step, ...] = ()
    """What becomes of the pixels after crop and flip."""


@dataclass(frozen=True)
class PendingTargets:
    """Targets that are loaded beside the training, or not begun."""

    images: np.ndarray
    """Whose."""
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
        self.place = LoaderPosition(0, 0, 0)
        self._prefetched: LoaderPosition | None = (
            None  # what the backend will deliver next, if it was started
        )

    @abstractmethod
    def _start(self, place: LoaderPosition) -> None:
        """Begins to load `self._works(place)`, dropping what was begun before."""

    @abstractmethod
    def _next(self) -> tuple[BatchRequest, Tensor]:
        """The next work's images, uint8 [N, C, H, W] channels-last, on the device. What cannot be decoded is
        told to `self.bad` and loaded by its stand-in."""

    @abstractmethod
    def _stop(self) -> None:
        """Drops what was begun, and ends the backend's threads."""

    def close(self) -> None:
        """Ends threads; a later iteration starts them again."""
        self._stop()
        if self._target_pool is not None:
            self._target_pool.shutdown(cancel_futures=True)
        self._target_pool = self._prefetched = None

    def __len__(self) -> int:
        return self.sampler.steps

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.place.epoch:
            self.place = LoaderPosition(epoch, 0, 0)

    def resize(self, size: int) -> None:
        if size != self.transform.size:
            assert self.transform.progressive
            self.close()  # drops what was loaded ahead
            self.transform = dataclasses.replace(self.transform, size=size)

    def __iter__(self) -> Iterator[Batch]:
        if not self.sampler.train:
            self.place, self.skipped = LoaderPosition(0, 0, 0), 0
        while self.place.step < self.sampler.steps_after(self.place.consumed):
            if self._prefetched != self.place:
                self._start(self.place)
            work, images = self._next()
            assert work.place == self.place
            self._prefetched = self._after(self.place)
            self.place = self.place._replace(step=self.place.step + 1)
            yield Batch(images, to_device(self._targets_of(work), self.device), self._mask(work))

    @property
    def steps_left(self) -> int:
        return self.sampler.steps_after(self.place.consumed) - self.place.step

    def state_dict(self) -> dict[str, Any]:
        place, sampler = self.place, self.sampler
        consumed = place.consumed + place.step * sampler.batch_size * sampler.world_size
        return {"epoch": place.epoch, "consumed": consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = LoaderPosition(state["epoch"], state["consumed"], 0)

    def _works(self, place: LoaderPosition) -> Iterator[BatchRequest]:
        """All that comes from `place` on, epoch after epoch: backends load ahead across their borders."""
        sampler, t = self.sampler, self.transform
        while True:
            epoch, consumed, first = place
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
                    place=LoaderPosition(epoch, consumed, step),
                    samples=samples,
                    images=images,
                    geometry=geometry,
                    targets=targets,
                    draw_ids=draw_ids,
                    steps=steps,
                )
            place = LoaderPosition(epoch + 1 if sampler.train else epoch, 0, 0)

    def _begin_targets(self, images: np.ndarray, geometry: Geometry) -> PendingTargets:
        """Starts to load what takes long."""
        images = images.copy()  # a backend may put others in their places
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
        except DecodeError as error:  # it was good when the data was read
            raise BadImageError(f"--data: {error}; start again") from error

    def _targets_of(self, work: BatchRequest) -> np.ndarray:
        """A batch's targets: of the images that were decoded in the end."""
        begun = work.targets
        if not begun.parts:
            return self._load_targets(work.images, work.geometry, range(len(work.images)))
        targets = np.concatenate([part.result() for part in begun.parts])
        others = np.flatnonzero(begun.images != work.images)
        if len(others):
            targets[others] = self._load_targets(work.images, work.geometry, others.tolist())
        return targets

    def _geometry(self, epoch: int, draw_ids: np.ndarray, images: np.ndarray) -> Geometry:
        sizes = self.split.sizes[images]
        if self.sampler.train:
            return train_geometry(self.transform, sizes, self.sampler.seed, epoch, draw_ids)
        return eval_geometry(self.transform, sizes)

    def _after(self, place: LoaderPosition) -> LoaderPosition:
        """What `_works` yields after `place`."""
        if place.step + 1 < self.sampler.steps_after(place.consumed):
            return place._replace(step=place.step + 1)
        return LoaderPosition(place.epoch + 1 if self.sampler.train else place.epoch, 0, 0)

    def _mask(self, work: BatchRequest) -> Tensor:
        if self.sampler.train:
            return _all_real(self.sampler.batch_size, self.device)
        real = self.sampler.is_real(work.place.step)
        bad = np.fromiter((s in self.bad for s in work.samples.tolist()), bool, len(real))
        self.skipped += int((real & bad).sum())
        return to_device(real & ~bad, self.device)


@cache
def _all_real(batch_size: int, device: torch.device) -> Tensor:
    """One mask for all training batches: nothing is allocated in a step for it."""
    return torch.ones(batch_size, dtype=torch.bool, device=device)
