"""One random batch on the device, repeated: for the speed of the model alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fastcnn.data.batch import Batch, ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.sources.dataset import Split
from fastcnn.data.transforms.geometry import Geometry
from fastcnn.data.transforms.transform import Transform


class SyntheticLoader:
    """Random images of one phase on one rank, with the targets of the split's first images.

    Arguments as in `fastcnn.data.loaders.base.LoaderArgs`."""

    def __init__(
        self, split: Split, transform: Transform, sampler: ShardedSampler, device: torch.device
    ) -> None:
        self.split = split
        self.transform = transform
        self.sampler = sampler
        self.device = device
        self.steps = sampler.steps
        self.step_samples = sampler.batch_size * sampler.world_size
        self.num_samples = sampler.steps * self.step_samples  # no padding
        self.bad = BadFiles(split, "training" if sampler.train else "validation", max_fraction=1)
        self.batch = self._make()
        self.skipped = 0
        self.epoch = 0
        self.position = 0

    def _make(self) -> Batch:
        n, size = self.sampler.batch_size, self.transform.size
        generator = torch.Generator().manual_seed(self.sampler.seed * 65_537 + self.sampler.rank)
        shape = (n, size, size, self.transform.channels)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        split = self.split
        first = self.bad.replacements(np.arange(n) % len(split))
        targets = torch.from_numpy(split.targets.load(first, _whole(split.sizes[first], size), size))
        real = torch.ones(n, dtype=torch.bool, device=self.device)
        return Batch(images.to(self.device), targets.to(self.device), real)

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        if not self.sampler.train:
            self.position = 0
        while self.position < self.steps:
            self.position += 1
            yield self.batch

    def resize(self, size: int) -> None:
        if size != self.transform.size:
            self.transform = dataclasses.replace(self.transform, size=size)
            self.batch = self._make()

    @property
    def steps_left(self) -> int:
        return self.steps - self.position

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "consumed": self.position * self.step_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["consumed"] // self.step_samples

    def close(self) -> None:
        """Do nothing: there are no threads."""


def _whole(sizes: np.ndarray, size: int) -> Geometry:
    """Return the geometry of whole images of sizes [N, 2], stretched to a square of side `size`."""
    zero = np.zeros(sizes.shape, dtype=np.int32)
    return Geometry(
        start=zero,
        shape=sizes,
        roi_start=zero.astype(np.float32),
        roi_end=sizes.astype(np.float32),
        resized=np.full_like(zero, size),
        shift=zero,
        flip=np.zeros(len(sizes), dtype=bool),
    )
