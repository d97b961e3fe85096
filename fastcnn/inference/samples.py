"""Prepare single images as in validation: files, encoded bytes, images of Pillow, arrays and tensors."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcnn.data.arrays import Levels
from fastcnn.data.decode import DecodeError, fitted, orientation_of, pixels_of
from fastcnn.data.loaders.torch_loader import evaluation_sample
from fastcnn.data.reading import read_file
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.headers import in_memory
from fastcnn.data.transforms.geometry import Geometry, eval_geometry
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from fastcnn.inference.exported import Exported
from fastcnn.inference.trained import Trained

KINDS = (
    "use a path, an image of Pillow, an array uint8 [H, W, 3] or a tensor [3, H, W], uint8 or float 0 to 1"
)


class Preprocessing(NamedTuple):
    """Settings under which a trained network sees images."""

    transform: Transform
    upright: bool
    """Images are turned by their EXIF orientation."""
    levels: Levels | None
    """Levels of images of more than 8 bits; None: each its own."""

    @classmethod
    def of(cls, trained: Trained | Exported) -> Preprocessing:
        """Return the preprocessing of a trained network."""
        levels = trained.levels
        return cls(trained.transform, trained.exif == "upright", None if levels == "auto" else levels)


class Sample(NamedTuple):
    """An image as the network sees it."""

    pixels: np.ndarray
    """uint8 [size, size, channels]."""
    geometry: Geometry
    """Way from the original image to the sample, as the only one."""
    size: tuple[int, int]
    """Height and width of the original image in pixels, upright if the preprocessing is."""


def read_pixels(image: Any, preprocessing: Preprocessing, name: str) -> Any:
    """Return an image in memory as pixels, uint8 [H, W, C]; a path or bytes stay as they are.

    It copies, so that the caller may use the memory again.

    Raises:
        DecodeError: an image of Pillow that cannot be decoded, or of other channels.
        UserError: not an image.
    """
    channels = preprocessing.transform.channels
    if isinstance(image, str | os.PathLike | bytes):
        return image
    if isinstance(image, Image.Image):
        return _from_pillow(image, preprocessing)
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise UserError(f"{name}: a tensor of shape {list(image.shape)}; {KINDS}")
        image = _bytes_of(image, name).permute(1, 2, 0).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name}: a {type(image).__name__} is not an image; {KINDS}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise UserError(f"{name}: an array {image.dtype} {list(image.shape)}; {KINDS}")
    return fitted(image.reshape(*image.shape[:2], -1), channels).copy()


def prepare(image: Any, preprocessing: Preprocessing, name: str) -> Sample:
    """Prepare an image as the loader of the validation does.

    Args:
        image: a path, encoded bytes, or pixels of `read_pixels`.

    Raises:
        DecodeError: undecodable.
        ReadError: an error of the machine.
    """
    transform, upright, levels = preprocessing
    label = np.zeros(1, dtype=np.int64)
    if isinstance(image, np.ndarray):
        split = Split(label, images=[image])
    else:
        data = image if isinstance(image, bytes) else _read(image)
        split = Split(label, files=in_memory(name, data, upright=upright, levels=levels))
    if split.problems:
        raise DecodeError(split.problems[0])
    geometry = eval_geometry(transform, split.sizes)
    height, width = split.sizes[0].tolist()
    pixels = np.array(evaluation_sample(split, transform, 0, geometry, 0))  # writable, of its own
    return Sample(pixels, geometry, (height, width))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise DecodeError(error.strerror or str(error)) from error


def _from_pillow(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    if preprocessing.transform.channels not in (1, 3):
        raise DecodeError(f"an image of gray or color, not of {preprocessing.transform.channels} channels")
    # Pillow turns a TIFF when it loads it.
    turns = preprocessing.upright and image.format != "TIFF"
    orientation = orientation_of(image) if turns else 1
    try:
        image.load()
        return pixels_of(image, preprocessing.transform.channels, orientation, preprocessing.levels).copy()
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on corrupt bytes
        raise DecodeError(" ".join(str(error).split()) or type(error).__name__) from error


def _bytes_of(image: Tensor, name: str) -> Tensor:
    """Convert a tensor of uint8, or of floats from 0 to 1, to uint8."""
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):
        raise UserError(f"{name}: a tensor {image.dtype} with values that are not from 0 to 1; {KINDS}")
    return (255 * image.float()).round().to(torch.uint8)
