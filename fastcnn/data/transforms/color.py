"""Augmentations that are linear in color, as one matrix and one offset per sample.

Brightness, contrast, saturation, hue, lighting and inversion are all
`matrix @ color + share * mean of the gray image + offset`, in every backend.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastcnn.data.transforms.augment import Step

GRAY = np.array([0.299, 0.587, 0.114])
"""Luma weights of ITU-R BT.601, as in Pillow and torchvision."""
YIQ = np.array([GRAY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""Matrix from RGB to NTSC's YIQ; the last two rows sum to 0, so that gray has no chroma."""

LINEAR = ("brightness", "contrast", "saturation", "hue", "lighting", "invert")

IMAGENET_COMPONENTS = (
    np.array([[-0.5675, -0.5808, -0.5836], [0.7192, -0.0045, -0.6948], [0.4009, -0.8140, 0.4203]])
    * np.array([[0.2175], [0.0188], [0.0045]])
    * 255
)
"""ImageNet's principal components of color, [3, 3], each times its variance for values from 0 to 1, times
255. From fb.resnet.torch (datasets/imagenet.lua); adopted by users of timm and DALI."""


class Linear(NamedTuple):
    """Linear color transform of N samples of C channels."""

    matrix: np.ndarray
    """float32 [N, C, C]"""
    share: np.ndarray
    """Factor of the gray image's mean, which is added, float32 [N]."""
    offset: np.ndarray
    """float32 [N, C], for values from 0 to 255"""


def linear(step: Step, channels: int) -> Linear:
    """Return the linear transform of a step; kinds that are not in `LINEAR` count as identity."""
    count, value = len(step.code), step.values[:, 0].astype(np.float64)
    matrix = np.tile(np.eye(channels), (count, 1, 1))
    share, offset = np.zeros(count), np.zeros((count, channels))
    chosen = {kind: step.code == number for number, kind in enumerate(step.kinds)}
    for kind in ("brightness", "contrast"):
        if kind in chosen:
            matrix[chosen[kind]] *= value[chosen[kind], None, None]
    if "contrast" in chosen:
        share[chosen["contrast"]] = 1 - value[chosen["contrast"]]
    if "saturation" in chosen and channels == 3:
        factor = value[chosen["saturation"], None, None]
        matrix[chosen["saturation"]] = factor * np.eye(3) + (1 - factor) * np.tile(GRAY, (3, 1))
    if "hue" in chosen and channels == 3:
        matrix[chosen["hue"]] = hue_matrix(value[chosen["hue"]])
    if "lighting" in chosen:
        added = step.values[chosen["lighting"], :3]
        offset[chosen["lighting"]] = added if channels == 3 else added.mean(axis=1, keepdims=True)
    if "invert" in chosen:
        matrix[chosen["invert"]] *= -1
        offset[chosen["invert"]] = 255
    return Linear(*(array.astype(np.float32) for array in (matrix, share, offset)))


def hue_matrix(turns: np.ndarray) -> np.ndarray:
    """Return rotations of colors by `turns` [N] around the gray axis in YIQ, as in DALI, [N, 3, 3]."""
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cos
    turn[:, 1, 2], turn[:, 2, 1] = sin, -sin
    return np.linalg.inv(YIQ) @ turn @ YIQ


def principal_components(images: list[np.ndarray]) -> np.ndarray:
    """Return the principal components of the images' colors, each times its variance for values from 0 to 1,
    times 255 (Krizhevsky et al. 2012, section 4.1), float64 [3, 3].

    Args:
        images: uint8 [H, W, 3] each; about a thousand pixels of a large image are used.
    """
    colors = np.concatenate([image.reshape(-1, 3)[:: 1 + image.size // 3000] for image in images])
    colors = colors.astype(np.float64) / 255
    variances, vectors = np.linalg.eigh(np.cov(colors, rowvar=False))
    largest = variances.argsort()[::-1]
    return 255 * variances[largest, None] * vectors.T[largest]
