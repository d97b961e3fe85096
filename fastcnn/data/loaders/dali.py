"""Loader with NVIDIA DALI: one pipeline definition for GPU and CPU.

DALI decodes and resizes (except random-resized crops on the CPU). It receives encoded images, crops and flips
batch by batch, so a pipeline is stateless and can be rebuilt at any position. Images are read and checked by
threads (`fastcnn.data.loaders.dali_images`).

DALI is imported only here, in `fastcnn.data.loaders.dali_regions`, `fastcnn.data.transforms.dali_ops` and
`fastcnn.data.sources.remote`.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Sequence
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
from fastcnn.data.loaders.dali_images import DaliImages
from fastcnn.data.loaders.dali_regions import regions_work
from fastcnn.data.loaders.threads import chunks, pool_for
from fastcnn.data.loaders.torch_loader import resize
from fastcnn.data.sources.remote import error_cause
from fastcnn.data.transforms.augment import draw_steps
from fastcnn.data.transforms.dali_ops import apply_steps, fields_of
from fastcnn.runtime.machine import is_out_of_memory

_AHEAD = 2
"""Batches that are read before DALI takes them."""

Loaded = list[np.ndarray | DecodeError]
"""Encoded images of a part of a batch, or why one is undecodable."""


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
    _readers: ThreadPoolExecutor | None = None

    def __init__(self, args: LoaderArgs, tuning: Tuning = Tuning()) -> None:
        super().__init__(args)
        self.tuning = tuning
        files = self.split.files if self.split.images is None else None
        self._encoded = None if files is None else DaliImages(files, self.transform.channels)
        on_gpu = files is not None and self.device.type == "cuda"
        self._regions = not on_gpu or regions_work(self.device, announce=self.sampler.rank == 0)

    def _start(self, position: LoaderPosition) -> None:
        self._stop()
        t, split, train = self.transform, self.split, self.sampler.train
        self._resizing: deque[tuple[BatchRequest, Tensor, list[Future[None]]]] = deque()
        self._being_copied: deque[tuple[torch.cuda.Event, Any]] = deque()
        self._steps = draw_steps(t.augment, t.size, 0, 0, np.arange(1)) if train else ()
        random_resized = train and t.train_crop == "random-resized"
        by_torch = self.device.type == "cpu" and self.torch_resizes and not self._steps
        if self._encoded is not None:
            self._readers = ThreadPoolExecutor(self.workers, "fastcnn-reader")
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
        self._loading: deque[tuple[BatchRequest, list[Future[Loaded]]]] = deque()
        graph = Graph(
            fields=self._fields,
            regions=self._regions,
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
        while len(self._loading) <= _AHEAD:
            self._loading.append(self._begin_loading(next(self._source)))
        request, parts = self._loading.popleft()
        images = self._cropped(request) if self._encoded is None else self._decodable(request, parts)
        self._fed.append(request)
        fields = [getattr(request.geometry, name) for name in self._fields]
        t = self.transform
        for step in request.steps:
            fields += fields_of(step, t.size, t.channels).values()
        return (images, *[f.astype(np.int32) if f.dtype == bool else f for f in fields])  # DALI has no bool

    def _cropped(self, request: BatchRequest) -> list[np.ndarray]:
        """Return the regions of images in memory."""
        assert self.split.images is not None
        corners, shapes = request.geometry.start.tolist(), request.geometry.shape.tolist()
        return [
            np.ascontiguousarray(self.split.images[image][y : y + h, x : x + w])
            for image, (y, x), (h, w) in zip(request.images.tolist(), corners, shapes)
        ]

    def _begin_loading(self, request: BatchRequest) -> tuple[BatchRequest, list[Future[Loaded]]]:
        if self._readers is None:
            return request, []
        parts = chunks(request.images.tolist(), self.workers)
        return request, [self._readers.submit(self._load_part, part) for part in parts]

    def _load_part(self, images: Sequence[int]) -> Loaded:
        return [self._load(image) for image in images]

    def _load(self, image: int) -> np.ndarray | DecodeError:
        assert self._encoded is not None
        try:
            return self._encoded.load(image)
        except DecodeError as error:
            return error

    def _decodable(self, request: BatchRequest, parts: Sequence[Future[Loaded]]) -> list[np.ndarray]:
        """Return the images of a batch for DALI's decoder; replace undecodable ones in the request."""
        images = []
        for i, image in enumerate(itertools.chain.from_iterable(part.result() for part in parts)):
            while isinstance(image, DecodeError):
                self._exchange(request, i, str(image))
                image = self._load(int(request.images[i]))
            images.append(image)
        return images

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
        """Return the next batch from DALI, after a restart if it could not decode one."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        while True:
            try:
                (images,) = self._pipeline.run(stream and stream.cuda_stream)
            except RuntimeError as error:
                self._recover(error)
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

    def _recover(self, error: RuntimeError) -> None:
        """Rebuild the pipeline, with Pillow for all images in flight: the error does not name one."""
        assert self._fed, "DALI failed before it was fed"
        if is_out_of_memory(error):
            raise error
        images = np.unique(np.concatenate([request.images for request in self._fed]))
        if self._encoded is None or self._encoded.by_pillow[images].all():
            raise error
        self._encoded.by_pillow[images] = True
        print(
            f"warning: DALI cannot decode a batch ({error_cause(str(error))}); Pillow decodes these images",
            file=sys.stderr,
            flush=True,
        )
        self._pipeline = None  # before the next one takes its memory
        self._build(self._fed[0].position)

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
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
        self._pool = self._readers = self._pipeline = None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Operators of a pipeline."""

    fields: list[str]
    """Fields of `Geometry` that are fed; they determine the operators of crop, resize, shift and flip."""
    regions: bool = True
    """The decoder decodes regions; otherwise whole images, which are then cut."""
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
        feed: returns a batch: encoded images (or cropped pixels), then the fields of their `Geometry` and of
            the augmentation.
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
        settings = {
            "device": "mixed" if graph.gpu else "cpu",
            "output_type": types.GRAY if graph.channels == 1 else types.RGB,
            "adjust_orientation": graph.upright,
            **graph.decoder,
        }
        if graph.regions:
            images = fn.decoders.image_slice(data, g["start"], g["shape"], axes=(0, 1), **settings)
        else:
            images = fn.decoders.image(data, **settings)
            images = fn.slice(images, start=g["start"], shape=g["shape"], axes=(0, 1))
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
