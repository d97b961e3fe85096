"""Augmentations in torch and torchvision, on one image in a loader thread or on a batch on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fastcnn.data.transforms.augment import Step
from fastcnn.data.transforms.color import GRAY, LINEAR, linear
from fastcnn.runtime.to_device import to_device

BATCHED = frozenset(("identity", "erase", *LINEAR))
"""Operations that run on whole batches."""


def apply_to_batch(images: Tensor, steps: Sequence[Step], fill: Sequence[int]) -> Tensor:
    """Apply steps of `BATCHED` kinds on the images' device, without synchronization.

    Args:
        images: uint8 [N, H, W, C].
        fill: value of erased pixels, [C].
    """
    for step in steps:
        if "erase" in step.kinds:
            images = _erase(images, step, fill)
        else:
            images = _recolor(images, step)
    return images


def apply_to_image(pixels: np.ndarray, steps: Sequence[Step], i: int, fill: Sequence[int]) -> np.ndarray:
    """Apply steps to the i-th sample, uint8 [H, W, C]."""
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))[None]
    for step in steps:
        kind = step.kinds[step.code[i]]
        if kind == "identity":
            continue
        if kind in BATCHED:
            image = apply_to_batch(image, [step.take(np.array([i]))], fill)
        else:
            value = float(step.values[i, 0])
            image = _SINGLE[kind](image.permute(0, 3, 1, 2), value).permute(0, 2, 3, 1).contiguous()
    return image[0].numpy()


def _erase(images: Tensor, step: Step, fill: Sequence[int]) -> Tensor:
    chosen = step.code == step.kinds.index("erase")
    box = np.where(chosen[:, None], step.values, 0).astype(np.int64)
    top, left, height, width = to_device(box, images.device)[..., None].unbind(1)
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[1:3])
    inside = ((rows >= top) & (rows < top + height))[:, :, None] & (
        (columns >= left) & (columns < left + width)
    )[:, None]
    color = to_device(np.array(fill, dtype=np.uint8), images.device)
    return torch.where(inside[..., None], color, images)


def _recolor(images: Tensor, step: Step) -> Tensor:
    n, height, width, channels = images.shape
    matrix, share, offset = (to_device(array, images.device) for array in linear(step, channels))
    pixels = images.reshape(n, height * width, channels).float()
    result = torch.bmm(pixels, matrix.transpose(1, 2)) + offset[:, None]
    if "contrast" in step.kinds:
        gray = pixels.mean(dim=1)
        if channels == 3:  # Python scalars need no copy to the device
            red, green, blue = GRAY.tolist()
            gray = red * gray[:, :1] + green * gray[:, 1:2] + blue * gray[:, 2:]
        result += (share[:, None] * gray)[:, None]
    return result.round_().clamp_(0, 255).to(torch.uint8).view(images.shape)


def _affine(
    image: Tensor,
    angle: float = 0.0,
    translate: tuple[float, float] = (0, 0),
    shear: tuple[float, float] = (0, 0),
) -> Tensor:
    return F.affine(
        image,
        angle=angle,
        translate=list(translate),
        scale=1.0,
        shear=[math.degrees(math.atan(part)) for part in shear],
        interpolation=InterpolationMode.BILINEAR,
        center=[0, 0] if any(shear) else None,
    )


def _sharpness(image: Tensor, factor: float) -> Tensor:
    """Apply `F.adjust_sharpness`, but round only once."""
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    channels = image.shape[1]
    pixels = image.float()
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = torch.nn.functional.conv2d(
        pixels, kernel.expand(channels, 1, 3, 3), groups=channels
    )
    return (smooth + factor * (pixels - smooth)).round_().clamp_(0, 255).to(torch.uint8)


_SINGLE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rotate": lambda image, value: _affine(image, angle=-value),
    "shear_x": lambda image, value: _affine(image, shear=(value, 0)),
    "shear_y": lambda image, value: _affine(image, shear=(0, value)),
    "translate_x": lambda image, value: _affine(image, translate=(value, 0)),
    "translate_y": lambda image, value: _affine(image, translate=(0, value)),
    "sharpness": _sharpness,
    "posterize": lambda image, value: F.posterize(image, int(value)),
    "solarize": lambda image, value: torch.where(image >= value, 255 - image, image),
    "solarize_add": lambda image, value: torch.where(
        image < 128, (image.int() + int(value)).clamp_(0, 255).to(torch.uint8), image
    ),
    "autocontrast": lambda image, value: F.autocontrast(image),
    "equalize": lambda image, value: F.equalize(image),
}
"""Operations on one image, uint8 [1, C, H, W]."""
