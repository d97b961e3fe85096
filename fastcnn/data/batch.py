"""`Batch` and `ShardedSampler`: the contract between all loaders and the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastcnn.data.transforms.random_numbers import uniforms
from fastcnn.errors import UserError

_BALANCED = 1_000
"""Stream of the random numbers of `balanced_order`."""


class Batch(NamedTuple):
    """One batch of a loader. Shapes are the same for all batches of a phase."""

    images: Tensor
    """uint8 [N, C, H, W] in channels-last memory, on the training device."""
    targets: Tensor
    """Targets of the task, see `fastcnn.data.targets`.

    Classification: class numbers, int64 [N]; with several labels an image, 1 for its classes and 0 for the
    others, uint8 [N, num_classes]. Segmentation: the class number of each pixel or `IGNORE`, uint8
    [N, H, W]. Detection: one box per row, float32 [N, M, 6]: class (-1 for padding rows), left, top, right,
    bottom in pixels of `images`, and 1 for a crowd or a difficult object that is not counted, else 0."""
    mask: Tensor
    """bool [N]: True for real samples, False for padding."""
    mix: Tensor | None = None
    """Mixing parameters; see `fastcnn.data.transforms.mixing`."""


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return a permutation of `count` samples that depends only on the seed and the epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """Return the draws of an epoch in which all classes are equally frequent, a function of its arguments.

    An epoch has as many draws as samples. Each class has an endless sequence of shuffled passes over its
    samples, and every epoch takes the next part of it. So over all epochs classes are drawn equally often,
    and samples within a class too, both to within one draw.

    Args:
        labels: class numbers, int64 [N].

    Returns:
        Draw ids, int64 [N]: sample + k * N for the k-th use of a sample in the epoch.
    """
    count = len(labels)
    by_class = np.argsort(labels, kind="stable")
    members = np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1)
    draws = []
    for i, samples in enumerate(members):
        start, end = ((e * count + i) // len(members) for e in (epoch, epoch + 1))
        first, last = start // len(samples), -(-end // len(samples))
        passes = np.arange(first, last)
        # One sort key for each pass and sample.
        keys = uniforms(seed, i, np.arange(first * len(samples), last * len(samples)), 1, stream=(_BALANCED,))
        order = samples[keys.reshape(len(passes), len(samples)).argsort(axis=1, kind="stable")]
        ids = order + (passes - first)[:, None] * count
        draws.append(ids.ravel()[start - first * len(samples) :][: end - start])
    return np.concatenate(draws)[epoch_order(seed, epoch, count)]


@dataclass(frozen=True, kw_only=True)
class ShardedSampler:
    """Samples and batches of one rank in one phase."""

    count: int
    """Samples over all ranks."""
    batch_size: int
    rank: int
    world_size: int
    train: bool
    """Shuffle and drop the last partial batch; otherwise keep the order and pad the last batch."""
    seed: int = 0
    repeats: int = 1
    """Uses of each training sample per epoch, consecutive in the order and so on different ranks. The epoch
    keeps its length (Hoffer et al. 2020)."""
    labels: np.ndarray | None = None
    """Class number of each training sample, int64 [count], to draw all classes equally often
    (`balanced_order`); None: each sample once."""

    @property
    def steps(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self.steps_after(0)

    def steps_after(self, consumed: int) -> int:
        """Return the remaining batches of an epoch after all ranks together consumed `consumed` samples."""
        if self.train:
            return (self.count - consumed) // self.world_size // self.batch_size
        return math.ceil(math.ceil(self.count / self.world_size) / self.batch_size)

    @property
    def num_samples(self) -> int:
        """Samples used per epoch over all ranks."""
        return self.steps * self.batch_size * self.world_size if self.train else self.count

    @property
    def bounds(self) -> tuple[int, int]:
        """Half-open range of this rank's samples in evaluation; lengths differ by at most one."""
        return self.count * self.rank // self.world_size, self.count * (self.rank + 1) // self.world_size

    def order(self, epoch: int, consumed: int = 0) -> np.ndarray:
        """Return this rank's samples in the rest of an epoch, possibly more than it uses.

        All ranks together always consume a prefix of the epoch's order, so a run can resume with another
        number of ranks. The k-th use of a sample has the number sample + k * count."""
        if self.train:
            return self._epoch_order(epoch)[consumed:][self.rank :: self.world_size]
        return np.arange(*self.bounds)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self.labels is not None:
            return balanced_order(self.seed, epoch, self.labels)
        order = epoch_order(self.seed, epoch, self.count)
        if self.repeats > 1:
            copies = np.arange(self.repeats) * self.count
            order = (order[: -(-self.count // self.repeats), None] + copies).ravel()[: self.count]
        return order

    def indices(self, order: np.ndarray, step: int) -> np.ndarray:
        """Return the samples of a batch; padding of an evaluation batch repeats the last sample."""
        chosen = order[step * self.batch_size :][: self.batch_size]
        return np.concatenate([chosen, np.repeat(order[-1:], self.batch_size - len(chosen))])

    def is_real(self, step: int) -> np.ndarray:
        """Return the mask of the real samples of an evaluation batch, bool [batch_size]."""
        assert not self.train
        first, last = self.bounds
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size) < last - first

    def check(self) -> None:
        """Raise UserError if a rank would get no batch."""
        ranks = f" x {self.world_size} processes" if self.world_size > 1 else ""
        if self.train and self.steps == 0:
            raise UserError(
                f"--batch-size {self.batch_size}{ranks}: more than the {self.count} training images; "
                f"use at most {self.count // self.world_size}"
            )
        if self.count < self.world_size:
            raise UserError(
                f"--data: {self.count} images for {self.world_size} processes; add images, or start fewer"
            )
