"""Loading by torchvision in threads: for where DALI has no build, and for images that are in memory.

Pillow's decoding and torch's resizing release Python's lock, so threads do what worker processes otherwise
do, and there is nothing to copy between processes, to fork, or to leave behind.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fastcnn.data.decode import DecodeError
from fastcnn.data.loader import ImageLoader, Place, Work
from fastcnn.data.sources import SMALL_IMAGE, Split

_AHEAD = 2  # batches under way while one is used
_LONGEST = 8
"""Long side over short side; a longer strip is cut to this around its middle before it is resized whole."""


class TorchLoader(ImageLoader):
    """One phase of one rank, by torchvision."""

    _pool: ThreadPoolExecutor | None = None

    def _start(self, place: Place) -> None:
        self._drop()
        if self._pool is None:
            self._pool = pool_for(self.split, self.workers, gives_way=self.device.type == "cpu")
        self._source: Iterator[Work] = self._works(place)
        self._under_way: deque[tuple[Work, Tensor, list[Future[dict[int, str]]]]] = deque()
        for _ in range(_AHEAD):
            self._submit()

    def _submit(self) -> None:
        assert self._pool is not None
        work, t = next(self._source), self.transform
        images = torch.empty(
            (len(work.samples), t.size, t.size, t.channels),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        parts = chunks(range(len(images)), 4 * self.workers)  # enough to even out slow images
        futures = [self._pool.submit(self._load_part, work, part, images.numpy()) for part in parts]
        self._under_way.append((work, images, futures))

    def _next(self) -> tuple[Work, Tensor]:
        work, images, futures = self._under_way.popleft()
        self._submit()
        for future in futures:
            for i, reason in future.result().items():
                self._replace(work, i, reason, images.numpy()[i])
        # [N, H, W, C] permuted is channels-last.
        return work, images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _load_part(self, work: Work, part: Sequence[int], out: np.ndarray) -> dict[int, str]:
        """Some samples of a batch; which of them cannot be decoded, and why."""
        problems = {}
        for i in part:
            try:
                self._load(work, i, out[i])
            except DecodeError as error:
                problems[i] = str(error)
        return problems

    def _replace(self, work: Work, i: int, reason: str, out: np.ndarray) -> None:
        while reason:
            self.bad.find(int(work.images[i]), reason)
            work.images[i] = self.bad.stand_in(int(work.samples[i]))
            again = self._geometry(work.place.epoch, work.samples[i : i + 1], work.images[i : i + 1])
            for old, new in zip(vars(work.geometry).values(), vars(again).values()):
                old[i] = new[0]
            try:
                self._load(work, i, out)
                reason = ""
            except DecodeError as error:
                reason = str(error)

    def _load(self, work: Work, i: int, out: np.ndarray) -> None:
        """One sample of a batch, into [size, size, channels]."""
        image, g, t = int(work.images[i]), work.geometry, self.transform
        if self.share.train and t.train_crop == "random-resized":
            (top, left), (height, width) = g.start[i].tolist(), g.shape[i].tolist()
            pixels = resize(self._pixels(image, (top, left, height, width)), t.size, t.size)
        else:
            pixels = _resize_and_crop(self._pixels(image), t.resize, t.size)
        pixels = _shifted(pixels, *g.shift[i])
        out[:] = pixels[:, ::-1] if g.flip[i] else pixels

    def _pixels(self, image: int, region: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """An image, or a region of it (top, left, height, width)."""
        if self.split.images is not None:
            pixels = self.split.images[image]
            top, left, height, width = region or (0, 0, *pixels.shape[:2])
            return pixels[top : top + height, left : left + width]
        assert self.split.files is not None
        return self.split.files.decode(image, self.transform.channels, region)

    def _drop(self) -> None:
        if self._pool is not None:
            for _, _, futures in self._under_way:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._ahead = None


def chunks(items: Sequence[int], count: int) -> list[Sequence[int]]:
    """`items` in at most `count` parts: handing over a small image costs a thread as much as decoding it."""
    size = -(-len(items) // max(1, count))
    return [items[i : i + size] for i in range(0, len(items), size)]


def needs_one_thread(split: Split) -> bool:
    """Small images hold Python's lock most of the time: a second thread only waits for it."""
    return bool(split.sizes.astype(np.int64).prod(axis=1).mean() < SMALL_IMAGE**2)


def pool_for(split: Split, workers: int, gives_way: bool = False) -> ThreadPoolExecutor:
    """Threads in each of which torch computes alone: OpenMP would start a team for every one of them.

    Args:
        gives_way: for where they share the cores with the training step: a core that is taken from one of
            OpenMP's threads makes all of them wait (benchmarks/LOG.md). So they load while the step leaves a
            core idle, or waits for them. On Linux alone threads have priorities of their own.
    """
    workers = 1 if needs_one_thread(split) else max(1, workers)
    together = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread, and of those that are made later
        if gives_way and sys.platform.startswith("linux"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        together.wait()

    pool = ThreadPoolExecutor(workers, "fastcnn-loader", begin)
    for _ in range(workers):
        pool.submit(int)
    together.wait()
    torch.set_num_threads(torch.get_num_threads())  # later threads have this one's number again
    return pool


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] uint8 to [height, width, C], antialiased."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    return F.resize(image, [height, width], antialias=True).permute(1, 2, 0).numpy()


def _resize_and_crop(pixels: np.ndarray, short: int, size: int) -> np.ndarray:
    """torchvision's Resize(short) and CenterCrop(size)."""
    height, width = pixels.shape[:2]
    most = _LONGEST * min(height, width)
    if max(height, width) > most:
        y, x = max(0, (height - most) // 2), max(0, (width - most) // 2)
        pixels = pixels[y : y + most, x : x + most]
    height, width = (side * short // min(pixels.shape[:2]) for side in pixels.shape[:2])
    pixels = resize(pixels, height, width)
    y, x = round((height - size) / 2), round((width - size) / 2)
    return pixels[y : y + size, x : x + size]


def _shifted(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image moved up by `down` and left by `right` over black."""
    if down == right == 0:
        return pixels
    height, width = pixels.shape[:2]
    moved = np.zeros_like(pixels)
    moved[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)] = pixels[
        max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)
    ]
    return moved
