"""`Predictor`: predictions of a trained network for images of any kind, in plain results.

python -c "import fastcnn; print(fastcnn.Predictor('runs/resnet50-demo/best.pt')('photo.jpg').labels)"
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcnn.data.decode import DecodeError
from fastcnn.data.targets import restore_boxes, restore_mask
from fastcnn.errors import BadImageError, UserError
from fastcnn.inference.exported import Exported, is_exported, open_exported
from fastcnn.inference.results import Box, Classified, Detected, Label, Prediction, Segmented
from fastcnn.inference.samples import Preprocessing, Sample, prepare, read_pixels
from fastcnn.inference.trained import Trained, open_trained
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.runtime.machine import is_out_of_memory
from fastcnn.tasks.detection.task import Detection
from fastcnn.tasks.multilabel import MultiLabelClassification
from fastcnn.tasks.segmentation import Segmentation

T = TypeVar("T")
PREFETCH = 2
"""Batches that are prepared ahead."""


class Outcome(NamedTuple):
    """One image: its prediction, or why there is none."""

    name: str
    problem: str = ""
    """Reason why it cannot be decoded."""
    pixels: np.ndarray | None = None
    """As the network sees it, uint8 [size, size, channels]."""
    raw: np.ndarray | None = None
    """Result of `Task.predict`, in pixels of the sample."""
    prediction: Prediction | None = None


class Predictor:
    """Predict images with a trained network: `fastcnn.Predictor("runs/resnet50-demo/best.pt")("photo.jpg")`.

    Images are prepared as in validation. A predictor may be called from several threads: they prepare images
    in parallel and share the network in turn.

    Args:
        path: checkpoint, or a file of `fastcnn export`.
        device: "auto", "cuda", "mps" or "cpu".
        batch_size: maximum number of images in a forward pass.
        workers: threads that prepare images.
        top_k: maximum number of classes or boxes for an image; by default 3 classes, and all boxes.
        threshold: minimum score of classes and boxes, 0 to 1; by default 0.2 for boxes, 0.5 for labels of a
            network of several labels an image, and 0 for one class an image.
        arch: MODULE:FACTORY, for a checkpoint of that network: its code runs only if you name it.
        trust_code: open a .pt2 file, which contains code.
        source_flag: beginning of messages about the file.

    Raises:
        UserError: no such file, a damaged one, or a setting without effect on it.
    """

    def __init__(  # noqa: PLR0913 - options of a public class
        self,
        path: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 16,
        workers: int = 2,
        top_k: int | None = None,
        threshold: float | None = None,
        arch: str | None = None,
        trust_code: bool = False,
        source_flag: str = "fastcnn.Predictor",
    ) -> None:
        path = Path(path)
        self.device = choose_device(device, Ranks())
        self.trained: Trained | Exported
        self._model: Callable[[Tensor], object]
        if is_exported(path):
            exported = open_exported(path, source_flag, device=self.device, trust_code=trust_code)
            self.trained = self._model = exported
        else:
            self.trained = trained = open_trained(path, source_flag, arch)
            self._model = trained.normalized(self.device)
        self.batch_size = batch_size
        self.task = self.trained.build_task()
        _choose_shown(self.task, top_k, threshold)
        self.preprocessing = Preprocessing.of(self.trained)
        self._turn = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fastcnn-predict")

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.trained.class_names

    def __call__(self, images: Any) -> Any:
        """Predict images.

        Args:
            images: one image, a list of images, or any other iterable of them. An image is a path, encoded
                bytes, an image of Pillow, an array uint8 [H, W] or [H, W, C] (RGB), or a tensor [C, H, W] of
                uint8 or of floats from 0 to 1. Arrays and tensors of one more dimension are lists of images.

        Returns:
            For one image a `Classified`, `Detected` or `Segmented`; for a list a list of them; for any other
            iterable, such as a generator, an iterator that reads it as needed.

        Raises:
            BadImageError: an image cannot be decoded; the message names it.
            UserError: not an image.
        """
        if _is_image(images):
            return next(self._results([images]))
        results = self._results(images)
        return list(results) if isinstance(images, list | tuple | np.ndarray | Tensor) else results

    def pixels(self, image: Any) -> Tensor:
        """Return an image as the network sees it, uint8 [C, size, size], before the normalization."""
        try:
            sample = prepare(read_pixels(image, self.preprocessing, "image"), self.preprocessing, "image")
        except DecodeError as error:
            raise BadImageError(f"the image cannot be decoded: {error}; use another") from error
        return torch.from_numpy(sample.pixels).permute(2, 0, 1)

    def outcomes(self, images: Iterable[tuple[str, Any]]) -> Iterator[Outcome]:
        """Yield the outcome for each image, in order; undecodable ones have a problem.

        Args:
            images: names and images.
        """
        ahead: deque[list[tuple[str, Future[Sample | str]]]] = deque()
        for batch in batched(images, self.batch_size):
            ahead.append([(name, self._submit(name, image)) for name, image in batch])
            if len(ahead) > PREFETCH:
                yield from self._predict(ahead.popleft())
        while ahead:
            yield from self._predict(ahead.popleft())

    def close(self) -> None:
        """Stop the threads; the predictor cannot be called any more."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _results(self, images: Iterable[Any]) -> Iterator[Any]:
        named = ((str(image) if _is_path(image) else f"image {i}", image) for i, image in enumerate(images))
        for outcome in self.outcomes(named):
            if outcome.prediction is None:
                raise BadImageError(f"{outcome.name}: cannot be decoded: {outcome.problem}; leave it out")
            yield outcome.prediction

    def _submit(self, name: str, image: Any) -> Future[Sample | str]:
        """Start the preparation of an image, whose result is a sample or a problem."""

        def work() -> Sample | str:
            try:
                return prepare(content, self.preprocessing, name)
            except DecodeError as error:
                return str(error)

        try:
            content = read_pixels(image, self.preprocessing, name)
        except DecodeError as error:
            problem: Future[Sample | str] = Future()
            problem.set_result(str(error))
            return problem
        return self._pool.submit(work)

    def _predict(self, batch: list[tuple[str, Future[Sample | str]]]) -> Iterator[Outcome]:
        prepared = [(name, future.result()) for name, future in batch]
        samples = [sample for _, sample in prepared if isinstance(sample, Sample)]
        raw = iter(self._forward(np.stack([sample.pixels for sample in samples])) if samples else [])
        for name, sample in prepared:
            if isinstance(sample, str):
                yield Outcome(name, problem=sample)
            else:
                predicted = next(raw)
                yield Outcome(name, "", sample.pixels, predicted, self._prediction(name, sample, predicted))

    @torch.inference_mode()
    def _forward(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the predictions for uint8 [N, size, size, C], as `Task.predict`."""
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        try:
            with self._turn:
                return self.task.predict(self._model(images))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise UserError(
                    f"{self.trained.path}: not enough memory on {self.device.type}: use a smaller batch size"
                ) from error
            raise

    def _prediction(self, name: str, sample: Sample, raw: np.ndarray) -> Prediction:
        """Convert the prediction for a sample to pixels of its original image."""
        task, names = self.task, self.class_names
        height, width = sample.size
        if isinstance(task, Detection):
            rows = restore_boxes(task.shown(raw), sample.geometry, 0, sample.size).tolist()
            boxes = tuple(Box(int(row[0]), names[int(row[0])], row[5], *row[1:5]) for row in rows)
            return Detected(image=name, width=width, height=height, boxes=boxes)
        if isinstance(task, Segmentation):
            side = self.preprocessing.transform.size
            mask = restore_mask(raw, sample.geometry, 0, side, sample.size)
            return Segmented(image=name, width=width, height=height, mask=mask, class_names=names)
        labels = tuple(Label(i, names[i], float(raw[i])) for i in task.shown(raw))  # type: ignore[attr-defined]
        return Classified(image=name, width=width, height=height, labels=labels, probabilities=raw)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _choose_shown(task: Any, top_k: int | None, threshold: float | None) -> None:
    """Set how much of a prediction is shown."""
    for flag, value in (("top_k", top_k), ("threshold", threshold)):
        if value is None:
            continue
        if isinstance(task, Segmentation):
            words = "--" + flag.replace("_", "-")
            raise UserError(f"{words}: each pixel has one class in a segmentation; omit it")
        setattr(task, flag, value)
    if threshold is not None and top_k is None and not isinstance(task, Detection | MultiLabelClassification):
        task.top_k = None


def _is_path(image: Any) -> bool:
    return isinstance(image, str | os.PathLike)


def _is_image(images: Any) -> bool:
    """Return whether this is one image, not several."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return _is_path(images) or isinstance(images, bytes | Image.Image) or not isinstance(images, Iterable)
