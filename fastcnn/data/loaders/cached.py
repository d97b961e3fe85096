"""Loader for data sets that fit into memory: images are decoded once.

Small images of one size stay on the training device, where a batch is one gather. Others are cropped and
resized from memory by `fastcnn.data.loaders.torch_loader`. Images that are resized in the same way in every
epoch, as those of the validation, are kept in that size.
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
from fastcnn.data.loaders.torch_loader import TorchLoader, resize
from fastcnn.data.mask_files import MaskArrays
from fastcnn.data.sources.dataset import Split, native_size
from fastcnn.data.targets import Masks
from fastcnn.data.transforms.augment import operations
from fastcnn.data.transforms.torch_ops import BATCHED, apply_to_batch
from fastcnn.runtime.to_device import to_device

WITH_PADDING = 2.6
"""Memory of small images with their padded copy, relative to the images alone."""


def decoded_bytes(split: Split, channels: int) -> int:
    """Return the size of a split's decoded images in bytes."""
    return int(split.sizes.astype(np.int64).prod(axis=1).sum()) * channels


def cached_bytes(split: Split, channels: int) -> int:
    """Return the bytes needed to cache a split; 0 if it is in memory already."""
    if split.images is not None:
        return 0
    return int(decoded_bytes(split, channels) * (WITH_PADDING if native_size(split) else 1))


def free_memory() -> int:
    """Return the bytes that programs can still allocate in this machine or container."""
    free = 8 << 30  # fallback without any information
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    # Limit of the container, by cgroup v2.
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        stat = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
        files = int(stat.get("inactive_file", 0)) + int(
            stat.get("active_file", 0)
        )  # page cache, which is reclaimable
        free = min(free, int(limit.read_text()) - int(used.read_text()) + files)
    return free


def decode_all(
    split: Split,
    channels: int,
    workers: int,
    bad: BadFiles,
    *,
    shapes: np.ndarray | None = None,
    dct_scaling: bool = True,
) -> Split:
    """Return a split with its images in memory; undecodable ones are added to `bad` and stay black.

    Args:
        shapes: height and width to which larger images are shrunk, [N, 2]; None: all keep their size.
        dct_scaling: large JPEGs may be decoded at a reduced scale.

    Raises:
        UserError: more undecodable images than allowed.
    """
    if split.images is not None:
        return split
    files = split.files
    assert files is not None
    sizes = split.sizes
    if shapes is None:
        shapes = sizes
    else:
        shapes = np.where((shapes <= sizes).all(axis=1, keepdims=True), shapes, sizes)
    size = split.common_size if (shapes == sizes).all() else None
    images = (
        np.zeros((len(split), *size, channels), dtype=np.uint8)
        if size is not None
        else [np.zeros((1, 1, channels), dtype=np.uint8)] * len(split)
    )

    def load(part: Sequence[int]) -> dict[int, str]:
        problems = {}
        for i in part:
            try:
                shape = tuple(shapes[i].tolist())
                pixels = files.decode(i, channels, shape=shape if dct_scaling else None)
                images[i] = resize(pixels, *shape)
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
        annotations = Masks(np.arange(256, dtype=np.uint8), MaskArrays(arrays))
    return dataclasses.replace(split, images=images, annotations=annotations)


def cached_loader(args: LoaderArgs) -> ImageLoader:
    """Return the loader for a split returned by `decode_all`.

    `CachedLoader` if the images have the samples' size, fit the device and need batched operations only; else
    `TorchLoader`, in threads from memory."""
    split, transform, sampler, device = args.split, args.transform, args.sampler, args.device
    batched = operations(transform.augment) <= BATCHED or not sampler.train
    same_size = split.common_size == (transform.size, transform.size) and transform.resize == transform.size
    pads_only = transform.train_crop == "pad" or not sampler.train
    if same_size and batched and pads_only and not transform.progressive:
        room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else float("inf")
        if WITH_PADDING * decoded_bytes(split, transform.channels) < room:
            return CachedLoader(args)
    return TorchLoader(args)


class CachedLoader(ImageLoader):
    """Pad-crops, or whole images, of images [N, size, size, C] on the device."""

    _windows: Tensor | None = None

    def _start(self, position: LoaderPosition) -> None:
        self._source: Iterator[BatchRequest] = self._requests(position)
        if self._windows is None:
            self._windows = self._all_windows()

    def _next(self) -> tuple[BatchRequest, Tensor]:
        assert self._windows is not None
        request = next(self._source)
        # One upload per batch: image, row, column and flip of each sample.
        where = np.stack([request.images, *(request.geometry.shift + self._padding).T, request.geometry.flip])
        image, down, right, flip = to_device(where, self.device)
        images = self._windows[image, down, right]
        if request.geometry.flip.any():
            images = torch.where(flip.bool()[:, None, None, None], images.flip(2), images)
        images = apply_to_batch(images, request.steps, self.transform.fill)
        return request, images.permute(0, 3, 1, 2)

    @property
    def _padding(self) -> int:
        return self.transform.padding if self.sampler.train else 0

    def _all_windows(self) -> Tensor:
        """Return all crops as a view of the padded images, [N, shifts, shifts, size, size, C]."""
        p, size = self._padding, self.transform.size
        images = torch.from_numpy(np.asarray(self.split.images)).to(self.device)
        if self.transform.pad_mode == "reflect":
            # Mirrored at the border, which itself is not repeated.
            index = torch.arange(-p, size + p, device=self.device).abs()
            index = size - 1 - (size - 1 - index).abs()
            padded = images[:, index][:, :, index]
        else:
            padded = F.pad(images, (0, 0, p, p, p, p))
        n, row, column, channel = padded.stride()
        shape = (len(images), 2 * p + 1, 2 * p + 1, size, size, images.shape[-1])
        return padded.as_strided(shape, (n, row, column, row, column, channel))

    def _stop(self) -> None:
        self._windows = None
