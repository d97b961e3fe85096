"""Loading by NVIDIA DALI: one pipeline definition for GPU and CPU. The only file that imports DALI.

Files go through DALI's own reader and decoder (on the GPU: nvJPEG); arrays are fed from memory. Images
come out as uint8 NHWC, in memory that the CPU's batches share and the GPU's copy once.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.pipeline import DataNode

from fastcnn.data.batch import Batch, Share, Transform
from fastcnn.data.sources import Split, first_undecodable
from fastcnn.errors import BadImageError


class DaliLoader:
    """One phase of one rank, by DALI.

    Args:
        split: files or arrays.
        transform: their geometry.
        share: which samples, in batches of what size; training augments.
        device: where the batches go; with CUDA, files are decoded there.
        workers: CPU threads.
    """

    def __init__(
        self, split: Split, transform: Transform, share: Share, device: torch.device, workers: int
    ) -> None:
        self.split = split
        self.transform = transform
        self.share = share
        self.device = device
        self.workers = workers
        self.num_samples = share.num_samples
        self.labels = torch.from_numpy(split.labels)
        self.epoch = 0
        self.first_epoch = 0
        self.position = 0
        self.pipeline: Any = None
        self.checkpoint: bytes | None = None
        self.being_copied: deque[tuple[torch.cuda.Event, Any]] = deque()

    def __len__(self) -> int:
        return self.share.steps

    def set_epoch(self, epoch: int) -> None:
        if epoch == self.epoch:
            return
        assert self.position in (0, self.share.steps), "the reader is in the middle of an epoch"
        if self.position and self.split.files is not None:
            # The reader pads every rank's share to whole batches; training leaves the padded one out.
            for _ in range(dataclasses.replace(self.share, train=False).steps - self.share.steps):
                self._run()
        self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        while self.position < self.share.steps:
            images, indices = self._run()
            pixels = self._to_torch(images.as_tensor()).permute(0, 3, 1, 2)
            index = torch.from_dlpack(indices.as_tensor()).flatten().long()
            targets = self.labels[index].to(self.device, non_blocking=True)
            mask = self.share.mask(self.position, self.device)
            self.position += 1
            yield Batch(pixels, targets, mask)
        if not self.share.train:
            self.position = 0

    def _to_torch(self, images: Any) -> torch.Tensor:
        """The same memory on the CPU. On a GPU a copy, since DALI takes its memory back in its own order of
        work and not in torch's; DALI's is held until the copy is made."""
        pixels = torch.from_dlpack(images)
        if self.device.type != "cuda":
            return pixels
        copy, made = pixels.clone(), torch.cuda.Event()
        made.record()
        self.being_copied.append((made, images))
        while self.being_copied and self.being_copied[0][0].query():
            self.being_copied.popleft()
        return copy

    def state_dict(self) -> dict[str, Any]:
        checkpoint = self.checkpoint if self.pipeline is None else self.pipeline.checkpoint()
        return {
            "epoch": self.epoch,
            "position": self.position,
            "first_epoch": self.first_epoch,
            "checkpoint": checkpoint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self.first_epoch = state["first_epoch"]
        self.checkpoint = state["checkpoint"]
        self.pipeline = None

    def close(self) -> None:
        self.pipeline = None

    def _run(self) -> tuple[Any, Any]:
        if self.pipeline is None:
            self.pipeline = self._build()
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            return self.pipeline.run(stream and stream.cuda_stream)
        except RuntimeError as error:
            # DALI's text seldom names the file, and which ones a shuffled batch holds only DALI knows.
            images = self.split.files if "image" in str(error) else None
            bad = first_undecodable(images or ())
            if bad is None:
                raise
            raise BadImageError(f"--data: {bad} cannot be decoded; mend or remove it") from error

    def _build(self) -> Any:
        on_gpu = self.device.type == "cuda"
        images = self.split.images
        if self.checkpoint is None:
            self.first_epoch = self.epoch
        pipeline = _pipeline(
            read=self._read_arrays if images is not None else self._read_files,
            array_shape=images.shape[1:3] if images is not None else None,
            transform=self.transform,
            train=self.share.train,
            gpu=on_gpu,
            batch_size=self.share.batch_size,
            num_threads=self.workers,
            device_id=self.device.index if on_gpu else None,
            seed=self.share.seed * 65_537 + self.share.rank + 1,
            prefetch_queue_depth=2,
            enable_checkpointing=True,
            checkpoint=self.checkpoint,
        )
        pipeline.build()
        return pipeline

    def _read_files(self) -> Sequence[DataNode]:
        """Encoded files and their indices."""
        order: dict[str, Any] = (
            {"shuffle_after_epoch": True, "shuffle_after_epoch_seed": self.share.seed + 1}
            if self.share.train
            else {"stick_to_shard": True}
        )
        return fn.readers.file(
            files=list(self.split.files or ()),
            labels=list(range(len(self.split))),
            shard_id=self.share.rank,
            num_shards=self.share.world_size,
            pad_last_batch=True,
            dont_use_mmap=True,
            **order,
        )

    def _read_arrays(self) -> Sequence[DataNode]:
        """Images in memory and their indices, in an order of our own."""
        images, share = self.split.images, self.share
        assert images is not None
        order_of_epoch = (-1, np.empty(0, dtype=np.int64))

        def batch_at(info: types.BatchInfo) -> tuple[np.ndarray, np.ndarray]:
            nonlocal order_of_epoch
            passes, step = divmod(info.iteration, share.steps)
            epoch = self.first_epoch + passes if share.train else 0
            if order_of_epoch[0] != epoch:
                order_of_epoch = (epoch, share.order(epoch))
            index = share.indices(order_of_epoch[1], step)
            return images[index], index

        return fn.external_source(batch_at, num_outputs=2, batch_info=True, layout=["HWC", ""])


@pipeline_def
def _pipeline(
    read: Callable[[], Sequence[DataNode]],
    array_shape: tuple[int, int] | None,
    transform: Transform,
    train: bool,
    gpu: bool,
) -> tuple[DataNode, DataNode]:
    """Images [size, size, channels] uint8 and sample indices.

    Args:
        read: yields encoded files, or arrays of `array_shape` (height, width).
        gpu: decode and transform there.
    """
    source, index = read()
    t = transform
    decoder: dict[str, Any] = {
        "device": "mixed" if gpu else "cpu",
        "output_type": types.GRAY if t.channels == 1 else types.RGB,
        "adjust_orientation": False,  # as torchvision and PIL
    }
    size = [t.size, t.size]
    if train and t.train_crop == "random-resized":
        region: dict[str, Any] = {"random_area": t.scale, "random_aspect_ratio": t.ratio}
        if array_shape is not None:
            images = fn.random_resized_crop(source.gpu() if gpu else source, size=size, **region)
        else:
            images = fn.resize(fn.decoders.image_random_crop(source, **region, **decoder), size=size)
    else:
        if array_shape is not None:
            images, shape = source.gpu() if gpu else source, source.shape()
        else:
            images = fn.decoders.image(source, **decoder)
            shape = fn.peek_image_shape(source, adjust_orientation=False)
        if array_shape != (t.size, t.size):
            start, end = _centre_region(shape[0], shape[1], t.resize, t.size)
            images = fn.resize(images, size=size, roi_start=start, roi_end=end)
        if train:
            shifts = [float(i) for i in range(-t.padding, t.padding + 1)]
            start = fn.cast(fn.random.uniform(values=shifts, shape=[2]), dtype=types.INT32)
            images = fn.slice(images, start, size, axes=(0, 1), out_of_bounds_policy="pad", fill_values=0)
    if train:
        images = fn.flip(images, horizontal=fn.random.coin_flip(probability=t.hflip))
    return images, index


def _centre_region(height: Any, width: Any, resize: int, size: int) -> tuple[Any, Any]:
    """What torchvision's Resize(resize) and CenterCrop(size) keep, in pixels of the original image.

    Torchvision scales the short side to `resize`, rounds the long side down, and rounds the crop's offset
    half to even.
    """
    short = math.min(height, width)
    start, end = [], []
    for side in (height, width):
        scaled = side * resize // short
        odd = (scaled - size) & 1
        half = (scaled - size) // 2
        offset = half + odd * (half & 1)
        start.append(offset * 1.0 * side / scaled)
        end.append((offset + size) * 1.0 * side / scaled)
    return fn.stack(*start), fn.stack(*end)
