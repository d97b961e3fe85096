"""Loading by torchvision v2, for where DALI has no build: macOS, Windows, no DALI installed.

A sample's augmentation depends on the seed, the epoch and the sample alone, not on the worker.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from fastcnn.data.batch import Batch, Share, Transform
from fastcnn.data.sources import Split
from fastcnn.errors import BadImageError

Key = tuple[int, int]  # epoch and index of a sample


class TorchLoader:
    """One phase of one rank, by torchvision. Arguments as `fastcnn.data.dali.DaliLoader`'s, where
    `workers` are processes (0: load in this one)."""

    def __init__(
        self, split: Split, transform: Transform, share: Share, device: torch.device, workers: int
    ) -> None:
        self.share = share
        self.device = device
        self.num_samples = share.num_samples
        self.sampler = _Batches(share)
        self.loader: DataLoader[Any] = DataLoader(
            _Samples(split, transform, share.train, share.seed),
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # so that starting workers draws nothing from the global one
        )

    def __len__(self) -> int:
        return self.share.steps

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.sampler.epoch:
            self.sampler.epoch, self.sampler.position = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        try:
            for images, targets in self.loader:
                mask = self.share.mask(self.sampler.position, self.device)
                self.sampler.position += 1
                # Samples are stacked as [N, H, W, C], which permuted is channels-last.
                pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
                yield Batch(pixels, targets.to(self.device, non_blocking=True), mask)
        except BadImageError as error:  # a worker's comes with its traceback before the message
            raise BadImageError(str(error).strip().rpartition("BadImageError: ")[2]) from None
        if not self.share.train:
            self.sampler.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.sampler.epoch, "position": self.sampler.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.epoch, self.sampler.position = state["epoch"], state["position"]

    def close(self) -> None:
        iterator = self.loader._iterator
        if iterator is not None:  # PyTorch has no public way to end persistent workers
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self.loader._iterator = None


class _Batches(Sampler[list[Key]]):
    """The rest of an epoch from `position` on, in lists of (epoch, index).

    Workers fetch ahead, so a pass remembers where it began and leaves `position` to the loader.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return self.share.steps - self.position

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = self.epoch, self.share.order(self.epoch)
        for step in range(self.position, self.share.steps):
            yield [(epoch, index) for index in self.share.indices(order, step).tolist()]


class _Samples(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: Split, transform: Transform, train: bool, seed: int) -> None:
        self.split = split
        self.seed = seed
        self.mode = "L" if transform.channels == 1 else "RGB"
        self.train = train
        self.transform = _train_transform(transform) if train else _eval_transform(transform)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        image = self._load(index)
        if self.train:
            seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]
            with torch.random.fork_rng(devices=[]):  # the CPU's generator alone is forked, and seeded
                torch.default_generator.manual_seed(int(seed))
                pixels = self.transform(image)
        else:
            pixels = self.transform(image)
        return pixels.permute(1, 2, 0).contiguous(), int(self.split.labels[index])

    def _load(self, index: int) -> Image.Image:
        if self.split.images is not None:
            array = self.split.images[index]
            return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert(self.mode)
        assert self.split.files is not None
        path = self.split.files[index]
        try:
            with Image.open(path) as image:
                return image.convert(self.mode)
        except (OSError, Image.DecompressionBombError) as error:
            raise BadImageError(f"--data: {path} cannot be decoded; mend or remove it") from error


def _start_worker(worker: int) -> None:
    """A Ctrl-C reaches workers too; it is the training process that answers, and ends them when done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _train_transform(t: Transform) -> v2.Transform:
    if t.train_crop == "random-resized":
        crop: list[v2.Transform] = [
            v2.RandomResizedCrop(t.size, scale=t.scale, ratio=t.ratio, antialias=True)
        ]
    else:
        crop = [v2.Resize(t.size), v2.CenterCrop(t.size), v2.RandomCrop(t.size, padding=t.padding)]
    return v2.Compose([*crop, v2.RandomHorizontalFlip(t.hflip), v2.PILToTensor()])


def _eval_transform(t: Transform) -> v2.Transform:
    return v2.Compose([v2.Resize(t.resize, antialias=True), v2.CenterCrop(t.size), v2.PILToTensor()])


def _collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*samples)
    return torch.stack(images), torch.tensor(targets)
