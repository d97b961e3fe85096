"""Loader with NVIDIA DALI: one pipeline definition for GPU and CPU.

DALI reads, decodes and resizes (except random-resized crops on the CPU). It receives files, crops and flips
batch by batch, so a pipeline is stateless and can be rebuilt at any position.

DALI is imported only here, in `fastcnn.data.transforms.dali_ops` and in `fastcnn.data.sources.remote`.
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
    """Performance settings of DALI; they do not change the batches."""

    prefetch: int = 2
    """Batches in flight, including the next one."""
    threads: int | None = None
    """Threads of DALI; None: as many as workers."""
    hw_decoder_load: float = 0.65
    """Fraction of the images for the GPU's hardware JPEG decoder, if any; its cores decode the others. The
    default is DALI's."""
    preallocate: bool = False
    """Allocate the hardware decoder's memory for batches of the largest image at the start."""

    def decoder_arguments(self, sizes: np.ndarray) -> dict[str, Any]:
        """Return arguments of `fn.decoders.image_slice` on a GPU, for images of sizes [N, 2]."""
        arguments: dict[str, Any] = {"hw_decoder_load": self.hw_decoder_load}
        if self.preallocate:
            height, width = sizes.max(axis=0).tolist()
            arguments |= {"preallocate_height_hint": height, "preallocate_width_hint": width}
        return arguments


class DaliLoader(ImageLoader):
    """Loader with DALI; with CUDA, files are decoded on the GPU."""

    torch_resizes = True
    """Resize random-resized crops on the CPU with torch, in a quarter of DALI's time. With augmentation other
    than flips DALI does everything."""
    _pipeline: Any = None
    _pool: ThreadPoolExecutor | None = None

    def __init__(self, args: LoaderArgs, tuning: Tuning = Tuning()) -> None:
        super().__init__(args)
        self.tuning = tuning

    def _start(self, position: LoaderPosition) -> None:
        self._stop()
        t, split, train = self.transform, self.split, self.sampler.train
        self._special = split.files.special if split.files is not None else None
        self._resizing: deque[tuple[BatchRequest, Tensor, list[Future[None]]]] = deque()
        self._being_copied: deque[tuple[torch.cuda.Event, Any]] = deque()
        self._steps = draw_steps(t.augment, t.size, 0, 0, np.arange(1)) if train else ()
        random_resized = train and t.train_crop == "random-resized"
        by_torch = self.device.type == "cpu" and self.torch_resizes and not self._steps
        # The fields of a batch's geometry that the pipeline needs.
        self._fields = ["start", "shape"] if split.images is None else []
        if random_resized and split.images is None and by_torch:
            self._pool = pool_for(split, self.workers, gives_way=True)
        else:
            self._fields += self._resize_fields(random_resized=random_resized)
        self._build(position)

    def _resize_fields(self, *, random_resized: bool) -> list[str]:
        """Return the fields of the geometry that DALI's resize, shift and flip need."""
        t, train = self.transform, self.sampler.train
        resizes = random_resized or t.resize != t.size or bool((self.split.sizes != t.size).any())
        borders = resizes and not random_resized and t.crop_mode == "border"
        shifts = borders or (train and t.train_crop == "pad")
        return [
            *(["roi_start", "roi_end"] if resizes else []),
            *(["resized"] if borders else []),
            *(["shift"] if shifts else []),
            *(["flip"] if train else []),
        ]

    def _build(self, position: LoaderPosition) -> None:
        """Build a new pipeline that starts at `position`."""
        t, files, on_gpu = self.transform, self.split.files, self.device.type == "cuda"
        self._fed: deque[BatchRequest] = deque()
        self._source = self._requests(position)
        graph = Graph(
            fields=self._fields,
            read_files=self._reads_files,
            steps=[(step.kinds, list(fields_of(step, t.size, t.channels))) for step in self._steps],
            size=t.size,
            channels=t.channels,
            border="reflect_101" if self.sampler.train and t.pad_mode == "reflect" else "pad",
            fill=t.fill,
            upright=files is not None and files.orientations is not None,
            gpu=on_gpu,
            decoder=self.tuning.decoder_arguments(self.split.sizes) if on_gpu else {},
        )
        self._pipeline = batch_pipeline(
            self._feed,
            graph,
            batch_size=self.sampler.batch_size,
            num_threads=self.tuning.threads or self.workers,
            device_id=self.device.index if on_gpu else None,
            prefetch_queue_depth=self.tuning.prefetch,
        )
        self._pipeline.build()

    def _feed(self) -> tuple[Any, ...]:
        """Return the next batch's inputs; DALI prefetches some."""
        request = next(self._source)
        self._fed.append(request)
        images = [self._encoded(request, i) for i in range(len(request.images))]
        fields = [getattr(request.geometry, name) for name in self._fields]
        t = self.transform
        for step in request.steps:
            fields += fields_of(step, t.size, t.channels).values()
        return (images, *[f.astype(np.int32) if f.dtype == bool else f for f in fields])  # DALI has no bool

    @property
    def _reads_files(self) -> bool:
        """DALI reads the files; otherwise it is fed with bytes or pixels."""
        files = self.split.files if self.split.images is None else None
        return files is not None and files.spans is None and self._special is None

    def _encoded(self, request: BatchRequest, i: int) -> np.ndarray:
        """Return the i-th image for DALI: cropped pixels, encoded bytes, or the bytes of its path.

        Images that DALI would decode differently are decoded here, and encoded as PPM."""
        index = int(request.images[i])
        if self.split.images is not None:
            (y, x), (h, w) = request.geometry.start[i], request.geometry.shape[i]
            return np.ascontiguousarray(self.split.images[index][y : y + h, x : x + w])
        files = self.split.files
        assert files is not None
        if self._reads_files:
            return np.frombuffer(os.fsencode(files.paths[index]), dtype=np.uint8)
        try:
            if self._special is not None and self._special[index]:
                return _as_ppm(files.decode(index, self.transform.channels))
            return files.read(index)
        except (OSError, DecodeError):
            return np.zeros(1, dtype=np.uint8)  # rejected by DALI's decoder

    def _next(self) -> tuple[BatchRequest, Tensor]:
        if self._pool is None:
            request, images = self._run()
            return request, self._to_torch(images.as_tensor()).permute(0, 3, 1, 2)
        while len(self._resizing) < self.tuning.prefetch:
            self._resizing.append(self._resize(*self._run()))
        request, resized, futures = self._resizing.popleft()
        for future in futures:
            future.result()
        return request, resized.permute(0, 3, 1, 2)

    def _run(self) -> tuple[BatchRequest, Any]:
        """Return the next batch from DALI, after a restart without any undecodable images."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        while True:
            try:
                (images,) = self._pipeline.run(stream and stream.cuda_stream)
            except RuntimeError as error:
                self._find_bad(error)
                continue
            return self._fed.popleft(), images

    def _resize(self, request: BatchRequest, regions: Any) -> tuple[BatchRequest, Tensor, list[Future[None]]]:
        """Start resizing and flipping the regions of a batch with torch."""
        assert self._pool is not None
        size, flip = self.transform.size, request.geometry.flip
        images = torch.empty((len(flip), size, size, self.transform.channels), dtype=torch.uint8)
        out = images.numpy()

        def finish(part: Sequence[int]) -> None:
            for i in part:
                pixels = resize(np.asarray(regions[i]), size, size)
                out[i] = pixels[:, ::-1] if flip[i] else pixels

        parts = chunks(range(len(flip)), 4 * self.workers)
        return request, images, [self._pool.submit(finish, part) for part in parts]

    def _find_bad(self, error: RuntimeError) -> None:
        """Find the images in flight that DALI cannot decode, and rebuild the pipeline without them."""
        under_way = list(self._fed)
        assert under_way, "DALI failed before it was fed"
        if self.split.files is None:
            raise error
        for request in under_way:  # the error does not name the batch
            reasons = {
                image: _why_undecodable(self.split.files, image, self.transform.channels, self.device)
                for image in set(request.images.tolist())
            }
            for image in sorted(reasons):
                if reasons[image]:
                    self.bad.find(image, reasons[image])
            if any(reasons.values()):
                self._build(under_way[0].position)
                return
        raise error

    def _to_torch(self, images: Any) -> Tensor:
        """Return a tensor of the same memory on the CPU, a copy on a GPU.

        DALI reuses GPU memory on its own stream and not on torch's. So its batch is held until the copy is
        done."""
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


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Operators of a pipeline."""

    fields: list[str]
    """Fields of `Geometry` that are fed; they determine the operators of crop, resize, shift and flip."""
    read_files: bool
    """Images are fed as paths."""
    steps: list[tuple[tuple[str, ...], list[str]]]
    """Augmentation after crop and flip: kinds of operations, and the names of their fields."""
    size: int
    channels: int
    border: str
    """Padding beyond the image's border, by its name in `fn.slice`."""
    fill: tuple[int, ...]
    """Value of erased pixels, [channels]."""
    upright: bool
    """Turn images upright by their EXIF orientation; regions refer to the upright image."""
    gpu: bool
    decoder: dict[str, Any]
    """Additional arguments of the decoder."""


@pipeline_def(enable_conditionals=True)
def batch_pipeline(feed: Any, graph: Graph) -> DataNode:
    """Return images, uint8 [size, size, channels], or regions of images, uint8 [height, width, channels].

    Args:
        feed: returns a batch: encoded images (or their paths, or cropped pixels), then the fields of their
            `Geometry` and of the augmentation.
    """
    pixels = "start" not in graph.fields
    count = len(graph.fields) + sum(len(names) for _, names in graph.steps)
    data, *values = fn.external_source(
        feed, num_outputs=1 + count, batch=True, layout=["HWC" if pixels else "", *[""] * count]
    )
    g = dict(zip(graph.fields, values))
    rest = iter(values[len(graph.fields) :])
    operations = [(kinds, {name: next(rest) for name in names}) for kinds, names in graph.steps]
    # Read and decode.
    if pixels:
        images = data.gpu() if graph.gpu else data
    else:
        images = fn.decoders.image_slice(
            fn.io.file.read(data, dont_use_mmap=True) if graph.read_files else data,
            g["start"],
            g["shape"],
            axes=(0, 1),
            device="mixed" if graph.gpu else "cpu",
            output_type=types.GRAY if graph.channels == 1 else types.RGB,
            adjust_orientation=graph.upright,
            **graph.decoder,
        )
    # Resize, shift, flip and augment.
    shape = [graph.size, graph.size]
    if "roi_start" in g:
        resized = fn.cast(g["resized"], dtype=types.FLOAT) if "resized" in g else shape
        images = fn.resize(images, size=resized, roi_start=g["roi_start"], roi_end=g["roi_end"])
    if "shift" in g:
        images = fn.slice(
            images, start=g["shift"], shape=shape, axes=(0, 1), out_of_bounds_policy=graph.border
        )
    if "flip" in g:
        images = fn.flip(images, horizontal=g["flip"])
    return apply_steps(images, operations, graph.size, graph.fill, gpu=graph.gpu)


def _as_ppm(pixels: np.ndarray) -> np.ndarray:
    """Encode pixels, uint8 [H, W, 1 or 3], as PGM or PPM; uint8 [length]."""
    height, width, channels = pixels.shape
    header = f"P{5 if channels == 1 else 6}\n{width} {height}\n255\n".encode()
    return np.concatenate([np.frombuffer(header, dtype=np.uint8), pixels.reshape(-1)])


def _why_undecodable(files: Files, image: int, channels: int, device: torch.device) -> str:
    """Return the error of an image by the decoder that failed, "" if it can be decoded."""
    if files.special is not None and files.special[image]:
        try:
            files.decode(image, channels)
        except DecodeError as reason:
            return str(reason)
        return ""
    try:
        data = files.read(image)
    except OSError as error:
        return error.strerror or str(error)
    if not len(data):
        return "empty"
    on_gpu = device.type == "cuda"
    settings = {**SINGLE_SAMPLE, "device_id": device.index if on_gpu else None}
    try:
        upright = files.orientations is not None
        pipeline = _one_image(iter([[data]]), channels=channels, upright=upright, gpu=on_gpu, **settings)
        pipeline.build()
        (pixels,) = pipeline.run()
    except RuntimeError as error:
        try:
            files.decode(image, channels)
        except DecodeError as reason:  # Pillow's messages are readable
            return str(reason)
        return error_cause(str(error))
    smaller = any(there < known for there, known in zip(pixels[0].shape(), files.sizes[image].tolist()))
    return "changed since its header was read" if smaller else ""


@pipeline_def
def _one_image(source: Iterator[Any], *, channels: int, upright: bool, gpu: bool) -> DataNode:
    return fn.decoders.image(
        fn.external_source(source),
        device="mixed" if gpu else "cpu",
        output_type=types.GRAY if channels == 1 else types.RGB,
        adjust_orientation=upright,
    )
