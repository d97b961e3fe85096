"""One random batch on the device, again and again: the speed of the model alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fastcnn.data.bad_files import BadFiles
from fastcnn.data.batch import Batch, Share, Transform
from fastcnn.data.geometry import Geometry
from fastcnn.data.sources import Split


class SyntheticLoader:
    """One phase of one rank. Arguments as `fastcnn.data.dali.DaliLoader`'s; the targets are those of the
    split's first images, so that they fit the network."""

    def __init__(self, split: Split, transform: Transform, share: Share, device: torch.device) -> None:
        n, size = share.batch_size, transform.size
        self.train = share.train
        self.steps = share.steps
        self.num_samples = share.steps * n * share.world_size  # nothing is padded
        generator = torch.Generator().manual_seed(share.seed * 65_537 + share.rank)
        shape = (n, size, size, transform.channels)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        self.bad = BadFiles(split, "training" if share.train else "validation", max_fraction=1)
        first = self.bad.stand_ins(np.arange(n) % len(split))
        targets = torch.from_numpy(split.targets.load(first, _whole(split.sizes[first], size), size))
        real = torch.ones(n, dtype=torch.bool, device=device)
        self.batch = Batch(images.to(device), targets.to(device), real)
        self.skipped = 0
        self.epoch = 0
        self.position = 0
        self.step_samples = n * share.world_size

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        while self.position < self.steps:
            self.position += 1
            yield self.batch
        if not self.train:
            self.position = 0

    @property
    def steps_left(self) -> int:
        return self.steps - self.position

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "consumed": self.position * self.step_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["consumed"] // self.step_samples

    def close(self) -> None:
        """Nothing to end."""


def _whole(sizes: np.ndarray, size: int) -> Geometry:
    """All of images of sizes [N, 2], stretched to a square of that size."""
    zero = np.zeros(sizes.shape, dtype=np.int32)
    roi = zero.astype(np.float32), sizes.astype(np.float32)
    return Geometry(zero, sizes, *roi, np.full_like(zero, size), zero, np.zeros(len(sizes), dtype=bool))
