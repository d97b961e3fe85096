"""Loader with torchvision in threads: for platforms without DALI, and for images in memory.

Pillow's decoding and torch's resizing release the GIL, so threads replace worker processes. Nothing is copied
between processes, and no process can be left behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fastcnn.data.decode import DecodeError
from fastcnn.data.loaders.base import BatchRequest, ImageLoader, LoaderPosition
from fastcnn.data.loaders.threads import chunks, pool_for
from fastcnn.data.sources.dataset import Split
from fastcnn.data.transforms.geometry import Geometry, eval_geometry
from fastcnn.data.transforms.torch_ops import apply_to_image
from fastcnn.data.transforms.transform import Transform

_PREFETCH = 2  # batches
_LONGEST = 8
"""Maximum aspect ratio: longer strips are cropped to it around the middle before they are resized."""


class TorchLoader(ImageLoader):
    """Loader with torchvision."""

    _pool: ThreadPoolExecutor | None = None

    def _start(self, position: LoaderPosition) -> None:
        self._drop()
        if self._pool is None:
            self._pool = pool_for(self.split, self.workers, gives_way=self.device.type == "cpu")
        self._source: Iterator[BatchRequest] = self._requests(position)
        self._under_way: deque[tuple[BatchRequest, Tensor, list[Future[dict[int, str]]]]] = deque()
        for _ in range(_PREFETCH):
            self._submit()

    def _submit(self) -> None:
        assert self._pool is not None
        request, t = next(self._source), self.transform
        images = torch.empty(
            (len(request.samples), t.size, t.size, t.channels),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        parts = chunks(range(len(images)), 4 * self.workers)  # small enough to even out slow images
        futures = [self._pool.submit(self._load_part, request, part, images.numpy()) for part in parts]
        self._under_way.append((request, images, futures))

    def _next(self) -> tuple[BatchRequest, Tensor]:
        request, images, futures = self._under_way.popleft()
        self._submit()
        for future in futures:
            for i, reason in future.result().items():
                self._replace(request, i, reason, images.numpy()[i])
        # [N, H, W, C] permuted to [N, C, H, W] is channels-last.
        return request, images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _load_part(self, request: BatchRequest, part: Sequence[int], out: np.ndarray) -> dict[int, str]:
        """Load some samples of a batch; return the reason for each undecodable one."""
        problems = {}
        for i in part:
            try:
                self._load(request, i, out[i])
            except DecodeError as error:
                problems[i] = str(error)
        return problems

    def _replace(self, request: BatchRequest, i: int, reason: str, out: np.ndarray) -> None:
        """Replace an undecodable image until one can be decoded, and update the request."""
        while reason:
            self._exchange(request, i, reason)
            try:
                self._load(request, i, out)
                reason = ""
            except DecodeError as error:
                reason = str(error)

    def _load(self, request: BatchRequest, i: int, out: np.ndarray) -> None:
        """Load one sample of a batch into `out`, [size, size, channels]."""
        split, image, g, t = self.split, int(request.images[i]), request.geometry, self.transform
        if self.sampler.train and t.train_crop == "random-resized":
            pixels = _resized(split, t, image, (g.start[i], g.shape[i]), g.resized[i])
        elif self.sampler.train and t.train_crop == "random":
            pixels = _window(split, t, image, g.start[i] + g.roi_start[i])
        else:
            pixels = _whole(split, t, image, g, i)
        up, left = g.shift[i].tolist()  # none after random-resized
        reflect = t.pad_mode == "reflect" and self.sampler.train
        pixels = _shifted(pixels, up, left, t.size, reflect=reflect)
        pixels = pixels[:, ::-1] if g.flip[i] else pixels
        out[:] = apply_to_image(pixels, request.steps, i, t.fill) if request.steps else pixels

    def _drop(self) -> None:
        """Cancel prefetched batches."""
        if self._pool is not None:
            for _, _, futures in self._under_way:
                for future in futures:
                    future.cancel()

    def _stop(self) -> None:
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def evaluation_sample(split: Split, t: Transform, image: int, geometry: Geometry, i: int) -> np.ndarray:
    """Return an image as in validation, uint8 [size, size, channels].

    Args:
        image: its number in the split.
        geometry: result of `eval_geometry`, with this image at `i`.

    Raises:
        DecodeError: undecodable.
    """
    up, left = geometry.shift[i].tolist()
    return _shifted(_whole(split, t, image, geometry, i), up, left, t.size, reflect=False)


def _whole(split: Split, t: Transform, image: int, g: Geometry, i: int) -> np.ndarray:
    """Return a resized image, whole or the center of it, before it is shifted into its borders."""
    if t.crop_mode == "border":
        return _resized(split, t, image, (g.start[i], g.shape[i]), g.resized[i])
    return _window(split, t, image, None)


def _window(split: Split, t: Transform, image: int, corner: np.ndarray | None) -> np.ndarray:
    """Apply torchvision's Resize, and cut out the center or the window at a corner of the whole image."""
    sides = split.sizes[image].astype(np.int64)
    most = _LONGEST * sides.min()  # of a strip only the part around the window is resized
    kept = np.minimum(sides, most)
    scaled = kept * t.resize // sides.min()
    if corner is None:
        first = (sides - kept) // 2
        window = (scaled - t.size) / 2
    else:
        first = (corner.astype(int) - most // 2).clip(0, sides - kept)
        window = (corner - first) * scaled / kept
    y, x = np.rint(window).astype(int).tolist()
    return _resized(split, t, image, (first, kept), scaled)[y : y + t.size, x : x + t.size]


def _resized(
    split: Split, t: Transform, image: int, region: tuple[np.ndarray, np.ndarray], shape: np.ndarray
) -> np.ndarray:
    """Return a region of an image (corner; height and width), resized to a shape."""
    (top, left), (height, width) = (pair.tolist() for pair in region)
    wanted = tuple(shape.tolist())
    if split.images is not None:
        pixels = split.images[image][top : top + height, left : left + width]
    else:
        assert split.files is not None
        part = (top, left, height, width)
        pixels = split.files.decode(image, t.channels, part, shape=wanted if t.dct_scaling else None)
    return resize(pixels, *wanted)


def shapes_of_whole(t: Transform, sizes: np.ndarray, *, train: bool) -> np.ndarray | None:
    """Return the height and width to which images are resized before they are cropped, int64 [N, 2].

    None if they are cropped before, or to a shape that changes.
    """
    if t.progressive or (train and t.train_crop == "random-resized"):
        return None
    sizes = sizes.astype(np.int64).clip(min=1)  # 0 of unreadable images
    if t.crop_mode == "border":
        return eval_geometry(t, sizes).resized.astype(np.int64)
    short = sizes.min(axis=1, keepdims=True)
    strips = sizes.max(axis=1, keepdims=True) > _LONGEST * short  # cropped before
    return np.where(strips, sizes, sizes * t.resize // short)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image, uint8 [H, W, C], to [height, width, C] with antialiasing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    return F.resize(image, [height, width], antialias=True).permute(1, 2, 0).numpy()


def _shifted(pixels: np.ndarray, up: int, left: int, size: int, *, reflect: bool) -> np.ndarray:
    """Return the image shifted up and left, padded to `size` x `size` with black or its reflection."""
    height, width, channels = pixels.shape
    if up == left == 0 and height == width == size:
        return pixels
    if reflect:
        return pixels[np.ix_(*(_reflected(np.arange(size) + by, size) for by in (up, left)))]
    moved = np.zeros((size, size, channels), dtype=np.uint8)
    kept = pixels[max(0, up) : size + up, max(0, left) : size + left]
    top, start = max(0, -up), max(0, -left)
    moved[top : top + kept.shape[0], start : start + kept.shape[1]] = kept
    return moved


def _reflected(index: np.ndarray, size: int) -> np.ndarray:
    """Mirror indices at the border, which itself is not repeated."""
    last = size - 1
    return last - abs(last - abs(index))
