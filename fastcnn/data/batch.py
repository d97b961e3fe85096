"""The one contract between every loader and the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from fastcnn.errors import UserError

if TYPE_CHECKING:
    pass


class Batch(NamedTuple):
    """What a loader yields. Shapes are the same for every batch of a phase."""

    images: Tensor
    """uint8 [N, C, H, W] in channels-last memory, on the training device."""
    targets: Tensor
    """What the task asks for, as `fastcnn.data.targets` has it. Classification: int64 [N], class numbers.
    Segmentation: uint8 [N, H, W], a class number for each pixel or `IGNORE`. Detection: float32 [N, M, 6], a
    box a row: its class (-1 where the image has fewer than M), left, top, right, bottom in pixels of the
    image as it is here, and 1 where it marks a crowd or what is too difficult to count, else 0."""
    mask: Tensor
    """bool [N]: True for real samples, False for padding."""
    mix: Tensor | None = None
    """Mixing parameters; see `fastcnn.data.transforms.mixing`."""


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count` samples that depends on the seed and the epoch alone."""
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(frozen=True, kw_only=True)
class ShardedSampler:
    """One rank's part of a phase: how many batches, of which samples."""

    count: int
    """Samples of all ranks."""
    batch_size: int
    rank: int
    world_size: int
    train: bool
    """Shuffle and drop the last partial batch; else keep the order and pad it."""
    seed: int = 0
    repeats: int = 1
    """Times that a sample comes in an epoch of training, one right after the other, so that they go to
    different ranks; the epoch ends after as many samples as without (Hoffer et al. 2020)."""

    @property
    def steps(self) -> int:
        """Batches an epoch, the same on every rank."""
        return self.steps_after(0)

    def steps_after(self, consumed: int) -> int:
        """Batches of the rest of an epoch of which all ranks together have had `consumed` samples."""
        if self.train:
            return (self.count - consumed) // self.world_size // self.batch_size
        return math.ceil(math.ceil(self.count / self.world_size) / self.batch_size)

    @property
    def num_samples(self) -> int:
        """Samples that an epoch uses, of all ranks."""
        return self.steps * self.batch_size * self.world_size if self.train else self.count

    @property
    def bounds(self) -> tuple[int, int]:
        """In evaluation: this rank's first sample and one past its last; sizes differ by one at most."""
        return self.count * self.rank // self.world_size, self.count * (self.rank + 1) // self.world_size

    def order(self, epoch: int, consumed: int = 0) -> np.ndarray:
        """This rank's samples in the rest of an epoch, maybe more than it uses. What all ranks consume is
        always a beginning of the epoch's order, so that other ranks can take over the rest. The k-th
        repetition of a sample has its number plus k times the count."""
        if self.train:
            order = epoch_order(self.seed, epoch, self.count)
            if self.repeats > 1:
                copies = np.arange(self.repeats) * self.count
                order = (order[: -(-self.count // self.repeats), None] + copies).ravel()[: self.count]
            return order[consumed:][self.rank :: self.world_size]
        return np.arange(*self.bounds)

    def indices(self, order: np.ndarray, step: int) -> np.ndarray:
        """The samples of a batch, the last one repeated where an evaluation batch is padded."""
        chosen = order[step * self.batch_size :][: self.batch_size]
        return np.concatenate([chosen, np.repeat(order[-1:], self.batch_size - len(chosen))])

    def is_real(self, step: int) -> np.ndarray:
        """Which samples of an evaluation batch are not padding, bool [batch_size]."""
        assert not self.train
        first, last = self.bounds
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size) < last - first

    def check(self) -> None:
        """UserError if there is no batch for every rank."""
        ranks = f" x {self.world_size} processes" if self.world_size > 1 else ""
        if self.train and self.steps == 0:
            raise UserError(
                f"--batch-size {self.batch_size}{ranks}: more than the {self.count} training images; "
                f"write {self.count // self.world_size} or less"
            )
        if self.count < self.world_size:
            raise UserError(
                f"--data: {self.count} images for {self.world_size} processes; add images, or start fewer"
            )
