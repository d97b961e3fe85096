"""Loading by NVIDIA DALI: one pipeline definition for GPU and CPU. Only this file and `dali_ops` import DALI.

DALI reads, decodes and, but for random-resized crops on the CPU, resizes. Which files, crops and flips is
told to it batch by batch, so a pipeline has no state and can be built anew at any place.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import DataNode
from torch import Tensor

from fastcnn.data.decode import DecodeError
from fastcnn.data.loaders.base import BatchRequest, ImageLoader, LoaderArgs, LoaderPosition
from fastcnn.data.loaders.threads import chunks, pool_for
from fastcnn.data.loaders.torch_loader import resize
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.remote import SINGLE_SAMPLE, error_cause
from fastcnn.data.transforms.augment import draw_steps
from fastcnn.data.transforms.dali_ops import apply_steps, fields_of


@dataclass(frozen=True)
class Tuning:
    """How DALI works: the batches are the same."""

    prefetch: int = 2
    """Batches under way, with the one that is waited for."""
    threads: int | None = None
    """Of DALI; by default as many as workers."""
    hw_decoder_load: float = 0.65
    """Share of the images that go to the GPU's JPEG decoder, where it has one; the others go to its cores.
    DALI's default."""
    preallocate: bool = False
    """Whether that decoder takes the memory for batches of the largest image at the start."""

    def decoder_arguments(self, sizes: np.ndarray) -> dict[str, Any]:
        """Of `fn.decoders.image_slice` on a GPU, for images [N, 2] of these heights and widths."""
        arguments: dict[str, Any] = {"hw_decoder_load": self.hw_decoder_load}
        if self.preallocate:
            height, width = sizes.max(axis=0).tolist()
            arguments |= {"preallocate_height_hint": height, "preallocate_width_hint": width}
        return arguments


class DaliLoader(ImageLoader):
    """One phase of one rank, by DALI; with CUDA, files are decoded on the GPU.

    Args:
        tuning: what may be varied to find what is fastest; for the others see `ImageLoader`.
    """

    torch_resizes = True
    """Random-resized crops on the CPU: torch takes a quarter of the time that DALI's resize takes there.
    Where more is done to the samples than to flip them, DALI does all."""
    _pipeline: Any = None
    _pool: ThreadPoolExecutor | None = None

    def __init__(self, args: LoaderArgs, tuning: Tuning = Tuning()) -> None:
        super().__init__(args)
        self.tuning = tuning

    def _start(self, place: LoaderPosition) -> None:
        self._stop()
        t, split, train = self.transform, self.split, self.sampler.train
        self._resizing: deque[tuple[BatchRequest, Tensor, list[Future[None]]]] = deque()
        self._being_copied: deque[tuple[torch.cuda.Event, Any]] = deque()
        # The fields of a batch's geometry that the pipeline needs.
        self._fields = ["start", "shape"] if split.images is None else []
        random_resized = train and t.train_crop == "random-resized"
        self._steps = draw_steps(t.augment, t.size, 0, 0, np.arange(1)) if train else ()
        by_torch = self.device.type == "cpu" and self.torch_resizes and not self._steps
        if random_resized and split.images is None and by_torch:
            self._pool = pool_for(split, self.workers, gives_way=True)
        else:
            resizes = random_resized or t.resize != t.size or bool((split.sizes != t.size).any())
            borders = resizes and not random_resized and t.crop_mode == "border"
            if resizes:
                self._fields += ["roi_start", "roi_end"]
            if borders:
                self._fields += ["resized"]
            if borders or (train and t.train_crop == "pad"):
                self._fields += ["shift"]
            if train:
                self._fields += ["flip"]
        self._build(place)

    def _build(self, place: LoaderPosition) -> None:
        """A new pipeline that begins at `place`."""
        t, files, on_gpu = self.transform, self.split.files, self.device.type == "cuda"
        self._fed: deque[BatchRequest] = deque()
        self._source = self._works(place)
        self._pipeline = _pipeline(
            feed=self._feed,
            fields=self._fields,
            read_files=self.split.images is None and files is not None and files.spans is None,
            steps=[(step.kinds, list(fields_of(step, t.size, t.channels))) for step in self._steps],
            size=t.size,
            channels=t.channels,
            border="reflect_101" if self.sampler.train and t.pad_mode == "reflect" else "pad",
            fill=t.fill,
            gpu=on_gpu,
            decoder=self.tuning.decoder_arguments(self.split.sizes) if on_gpu else {},
            batch_size=self.sampler.batch_size,
            num_threads=self.tuning.threads or self.workers,
            device_id=self.device.index if on_gpu else None,
            prefetch_queue_depth=self.tuning.prefetch,
        )
        self._pipeline.build()

    def _feed(self) -> tuple[Any, ...]:
        """The next batch for DALI; it asks for some ahead."""
        work = next(self._source)
        self._fed.append(work)
        images = [self._encoded(work, i) for i in range(len(work.images))]
        fields = [getattr(work.geometry, name) for name in self._fields]
        t = self.transform
        for step in work.steps:
            fields += fields_of(step, t.size, t.channels).values()
        return (images, *[f.astype(np.int32) if f.dtype == bool else f for f in fields])

    def _encoded(self, work: BatchRequest, i: int) -> np.ndarray:
        index = int(work.images[i])
        if self.split.images is not None:
            (y, x), (h, w) = work.geometry.start[i], work.geometry.shape[i]
            return np.ascontiguousarray(self.split.images[index][y : y + h, x : x + w])
        assert self.split.files is not None
        if self.split.files.spans is not None:
            try:
                return self.split.files.read(index)
            except OSError:
                return np.zeros(1, dtype=np.uint8)  # which DALI will refuse
        return np.frombuffer(os.fsencode(self.split.files.paths[index]), dtype=np.uint8)

    def _next(self) -> tuple[BatchRequest, Tensor]:
        if self._pool is None:
            work, images = self._run()
            return work, self._to_torch(images.as_tensor()).permute(0, 3, 1, 2)
        while len(self._resizing) < self.tuning.prefetch:
            self._resizing.append(self._resize(*self._run()))
        work, resized, futures = self._resizing.popleft()
        for future in futures:
            future.result()
        return work, resized.permute(0, 3, 1, 2)

    def _run(self) -> tuple[BatchRequest, Any]:
        """The next batch that DALI has finished."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        while True:
            try:
                (images,) = self._pipeline.run(stream and stream.cuda_stream)
            except RuntimeError as error:
                self._find_bad(error)
                continue
            return self._fed.popleft(), images

    def _resize(self, work: BatchRequest, regions: Any) -> tuple[BatchRequest, Tensor, list[Future[None]]]:
        """Begins to resize and flip the regions of a batch."""
        assert self._pool is not None
        size, flip = self.transform.size, work.geometry.flip
        images = torch.empty((len(flip), size, size, self.transform.channels), dtype=torch.uint8)
        out = images.numpy()

        def finish(part: Sequence[int]) -> None:
            for i in part:
                pixels = resize(np.asarray(regions[i]), size, size)
                out[i] = pixels[:, ::-1] if flip[i] else pixels

        parts = chunks(range(len(flip)), 4 * self.workers)
        return work, images, [self._pool.submit(finish, part) for part in parts]

    def _find_bad(self, error: RuntimeError) -> None:
        """Finds out which of the images under way DALI cannot decode, and begins again without them."""
        under_way = list(self._fed)
        assert under_way, "DALI failed before it was fed"
        if self.split.files is None:
            raise error
        for work in under_way:  # the error does not say in which batch it was
            reasons = {
                image: _why_undecodable(self.split.files, image, self.transform.channels, self.device)
                for image in set(work.images.tolist())
            }
            for image in sorted(reasons):
                if reasons[image]:
                    self.bad.find(image, reasons[image])
            if any(reasons.values()):
                self._build(under_way[0].place)
                return
        raise error

    def _to_torch(self, images: Any) -> Tensor:
        """The same memory on the CPU. On a GPU a copy, since DALI takes its memory back in its own order of
        work and not in torch's; DALI's is held until the copy is made."""
        pixels = torch.from_dlpack(images)
        if self.device.type != "cuda":
            return pixels
        copy, made = pixels.clone(), torch.cuda.Event()
        made.record()
        self._being_copied.append((made, images))
        while self._being_copied and self._being_copied[0][0].query():
            self._being_copied.popleft()
        return copy

    def _stop(self) -> None:
        if self._pipeline is not None:
            for made, _ in self._being_copied:
                made.synchronize()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._pipeline = None


@pipeline_def(enable_conditionals=True)
def _pipeline(
    feed: Any,
    fields: list[str],
    steps: list[tuple[tuple[str, ...], list[str]]],
    read_files: bool,
    size: int,
    channels: int,
    border: str,
    fill: tuple[int, ...],
    gpu: bool,
    decoder: dict[str, Any],
) -> DataNode:
    """Images [size, size, channels] uint8, or regions of images [height, width, channels].

    Args:
        feed: called for a batch: encoded images (or their paths, or pixels that are cut already), then the
            fields of their `Geometry`.
        fields: names of those; they decide which steps there are.
        steps: what is done after crop and flip: kinds of operations, and the names of their fields.
        border: what lies beyond the image's border, as `fn.slice` calls it.
        fill: what erases.
        read_files: whether they are paths.
        decoder: how it decodes.
    """
    pixels = "start" not in fields
    count = len(fields) + sum(len(names) for _, names in steps)
    data, *values = fn.external_source(
        feed, num_outputs=1 + count, batch=True, layout=["HWC" if pixels else "", *[""] * count]
    )
    g = dict(zip(fields, values))
    rest = iter(values[len(fields) :])
    operations = [(kinds, {name: next(rest) for name in names}) for kinds, names in steps]
    if pixels:
        images = data.gpu() if gpu else data
    else:
        images = fn.decoders.image_slice(
            fn.io.file.read(data, dont_use_mmap=True) if read_files else data,
            g["start"],
            g["shape"],
            axes=(0, 1),
            device="mixed" if gpu else "cpu",
            output_type=types.GRAY if channels == 1 else types.RGB,
            adjust_orientation=False,  # as torchvision and Pillow
            **decoder,
        )
    if "roi_start" in g:
        resized = fn.cast(g["resized"], dtype=types.FLOAT) if "resized" in g else [size, size]
        images = fn.resize(images, size=resized, roi_start=g["roi_start"], roi_end=g["roi_end"])
    if "shift" in g:
        images = fn.slice(
            images, start=g["shift"], shape=[size, size], axes=(0, 1), out_of_bounds_policy=border
        )
    if "flip" in g:
        images = fn.flip(images, horizontal=g["flip"])
    return apply_steps(images, operations, size, fill, gpu)


def _why_undecodable(files: Files, image: int, channels: int, device: torch.device) -> str:
    """What is wrong with an image, "" if nothing is, asked of the decoder that failed."""
    try:
        data = files.read(image)
    except OSError as error:
        return error.strerror or str(error)
    if not len(data):
        return "empty"
    on_gpu = device.type == "cuda"
    settings = {**SINGLE_SAMPLE, "device_id": device.index if on_gpu else None}
    try:
        pipeline = _one_image(iter([[data]]), channels, on_gpu, **settings)
        pipeline.build()
        (pixels,) = pipeline.run()
    except RuntimeError as error:
        try:
            files.decode(image, channels)
        except DecodeError as reason:  # Pillow's are for people
            return str(reason)
        return error_cause(str(error))
    smaller = any(there < known for there, known in zip(pixels[0].shape(), files.sizes[image].tolist()))
    return "changed since its header was read" if smaller else ""


@pipeline_def
def _one_image(source: Iterator[Any], channels: int, gpu: bool) -> DataNode:
    return fn.decoders.image(
        fn.external_source(source),
        device="mixed" if gpu else "cpu",
        output_type=types.GRAY if channels == 1 else types.RGB,
        adjust_orientation=False,
    )
