"""Data sets that fit into memory: decoded once, then only cropped and flipped.

Small images of one size stay on the training device, where a batch is one gather; others are cropped and
resized by `fastcnn.data.loaders.torch_loader` from memory.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.data.decode import DecodeError
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import BatchRequest, ImageLoader, LoaderArgs, LoaderPosition
from fastcnn.data.loaders.threads import chunks, pool_for
from fastcnn.data.loaders.torch_loader import TorchLoader
from fastcnn.data.sources.dataset import Split, native_size
from fastcnn.data.targets import Masks
from fastcnn.data.transforms.augment import operations
from fastcnn.data.transforms.torch_ops import BATCHED, apply_to_batch
from fastcnn.runtime.to_device import to_device

WITH_PADDING = 2.6
"""Memory of small images and their padded copy, over that of the images alone."""


def decoded_bytes(split: Split, channels: int) -> int:
    """What the images of a split take when decoded."""
    return int(split.sizes.astype(np.int64).prod(axis=1).sum()) * channels


def cached_bytes(split: Split, channels: int) -> int:
    """What it takes to cache a split that is not in memory already."""
    if split.images is not None:
        return 0
    return int(decoded_bytes(split, channels) * (WITH_PADDING if native_size(split) else 1))


def free_memory() -> int:
    """Bytes that programs can still take on this machine, or in this container."""
    free = 8 << 30  # where nobody tells
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        stat = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
        files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))  # which give way
        free = min(free, int(limit.read_text()) - int(used.read_text()) + files)
    return free


def decode_all(split: Split, channels: int, workers: int, bad: BadFiles) -> Split:
    """The same images in memory; those that cannot be decoded are told to `bad` and stay black.

    Raises:
        UserError: more of them than allowed.
    """
    if split.images is not None:
        return split
    files = split.files
    assert files is not None
    size = split.common_size
    images = (
        np.zeros((len(split), *size, channels), dtype=np.uint8)
        if size is not None
        else [np.zeros((1, 1, channels), dtype=np.uint8)] * len(split)
    )

    def load(part: Sequence[int]) -> dict[int, str]:
        problems = {}
        for i in part:
            try:
                images[i] = files.decode(i, channels)
            except DecodeError as error:
                problems[i] = str(error)
        return problems

    good = [i for i in range(len(split)) if i not in bad]
    with pool_for(split, workers) as pool:
        for problems in pool.map(load, chunks(good, len(good) // 64)):
            bad.merge(problems)
    bad.check_all()
    annotations = split.annotations
    if isinstance(annotations, Masks):
        with pool_for(split, workers) as pool:
            arrays = list(pool.map(annotations.read, range(len(split))))
        annotations = Masks(np.arange(256, dtype=np.uint8), arrays=arrays)
    return dataclasses.replace(split, images=images, annotations=annotations)


def cached_loader(args: LoaderArgs) -> ImageLoader:
    """The loader for a split that `decode_all` returned: on the device where the images are small ones of the
    samples' size and what is done to them is done to whole batches, else in threads from memory."""
    split, transform, sampler, device = args.split, args.transform, args.sampler, args.device
    batched = operations(transform.augment) <= BATCHED or not sampler.train
    whole = split.common_size == (transform.size, transform.size) and transform.resize == transform.size
    whole = whole and batched and not transform.progressive
    if whole and (transform.train_crop == "pad" or not sampler.train):
        room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else float("inf")
        if WITH_PADDING * decoded_bytes(split, transform.channels) < room:
            return CachedLoader(args)
    return TorchLoader(args)


class CachedLoader(ImageLoader):
    """One phase of one rank, from images [N, size, size, C] on the device, by pad-crop or as they are."""

    _windows: Tensor | None = None

    def _start(self, place: LoaderPosition) -> None:
        self._source: Iterator[BatchRequest] = self._works(place)
        if self._windows is None:
            self._windows = self._all_windows()

    def _next(self) -> tuple[BatchRequest, Tensor]:
        assert self._windows is not None
        work = next(self._source)
        where = np.stack([work.images, *(work.geometry.shift + self._padding).T, work.geometry.flip])
        image, down, right, flip = to_device(where, self.device)
        images = self._windows[image, down, right]
        if work.geometry.flip.any():
            images = torch.where(flip.bool()[:, None, None, None], images.flip(2), images)
        images = apply_to_batch(images, work.steps, self.transform.fill)
        return work, images.permute(0, 3, 1, 2)

    @property
    def _padding(self) -> int:
        return self.transform.padding if self.sampler.train else 0

    def _all_windows(self) -> Tensor:
        """A view [N, shifts, shifts, size, size, C] of the padded images: every crop there is."""
        p, size = self._padding, self.transform.size
        images = torch.from_numpy(np.asarray(self.split.images)).to(self.device)
        if self.transform.pad_mode == "reflect":
            place = torch.arange(-p, size + p, device=self.device).abs()
            place = size - 1 - (size - 1 - place).abs()  # beyond the border, which itself is not repeated
            padded = images[:, place][:, :, place]
        else:
            padded = F.pad(images, (0, 0, p, p, p, p))
        n, row, column, channel = padded.stride()
        shape = (len(images), 2 * p + 1, 2 * p + 1, size, size, images.shape[-1])
        return padded.as_strided(shape, (n, row, column, row, column, channel))

    def _stop(self) -> None:
        self._windows = None
