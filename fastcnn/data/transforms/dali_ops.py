"""The operations of `fastcnn.data.transforms.augment` in a DALI pipeline.

Kinds implemented by the same DALI operator form a group. The host computes its arguments batch by batch, and
the operator runs on the samples that need it. Nothing here is random or stateful.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from fastcnn.data.transforms.augment import Step
from fastcnn.data.transforms.color import GRAY, linear

Fields = dict[str, DataNode]
"""Result of `fields_of` for a step as nodes of a pipeline, always on the host."""

_GROUPS = {
    **dict.fromkeys(("rotate", "shear_x", "shear_y", "translate_x", "translate_y"), "affine"),
    **dict.fromkeys(("brightness", "invert"), "scale"),
}
"""Groups of kinds; for other kinds the group has the kind's name."""
_ENTRIES = {"shear_x": (0, 1, 1), "shear_y": (1, 0, 1), "translate_x": (0, 2, -1), "translate_y": (1, 2, -1)}
"""Row, column and sign of the value in an affine matrix."""
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_SHARP = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float32)


class _Setting(NamedTuple):
    """Parameters shared by all samples."""

    size: int
    fill: tuple[int, ...]
    gpu: bool


def groups_of(kinds: Sequence[str], channels: int) -> tuple[str, ...]:
    """Return the groups of a step of these kinds; saturation and hue are skipped for gray images."""
    nothing = ("identity",) if channels == 3 else ("identity", "saturation", "hue")
    return tuple(dict.fromkeys(_GROUPS.get(kind, kind) for kind in kinds if kind not in nothing))


def fields_of(step: Step, size: int, channels: int) -> dict[str, np.ndarray]:
    """Return the arguments of `apply_steps` for a step of N samples; the names depend only on its kinds.

    Returns:
        "group": index in `groups_of`, -1 for none, int32 [N]; missing if all samples have the same group.
        Arguments of the groups, float32 unless noted: "affine" [N, 3, 3], "factor" and "base" [N], "hue" [N,
        3, 3], "offset" int16 [N, C], "kernel" [N, 3, 3], "amount" [N], "anchor" and "extent" [N, 2].
    """
    groups, amount = groups_of(step.kinds, channels), step.values[:, 0]
    of_kinds = [_GROUPS.get(kind, kind) for kind in step.kinds]
    places = np.array([groups.index(g) if g in groups else -1 for g in of_kinds], dtype=np.int32)
    fields: dict[str, np.ndarray] = {}
    if len(set(places.tolist())) > 1:
        fields["group"] = places[step.code]
    if "affine" in groups:
        fields["affine"] = _affine_matrices(step, size)
    if {"scale", "hue", "lighting"} & set(groups):
        matrix, _, offset = linear(step, channels)
        if "scale" in groups:
            fields["factor"], fields["base"] = matrix[:, 0, 0].copy(), offset[:, 0] / 255
        if "hue" in groups:
            fields["hue"] = matrix
        if "lighting" in groups:
            fields["offset"] = np.rint(offset).astype(np.int16)
    if "sharpness" in groups:
        fields["kernel"] = _SMOOTH + amount[:, None, None] * (_SHARP - _SMOOTH)
    if {"contrast", "saturation", "posterize", "solarize", "solarize_add"} & set(groups):
        fields["amount"] = amount.copy()
    if "erase" in groups:
        fields["anchor"], fields["extent"] = step.values[:, :2].copy(), step.values[:, 2:].copy()
    return fields


def _affine_matrices(step: Step, size: int) -> np.ndarray:
    """Return the map from result to image coordinates, in pixels from the corner, float32 [N, 3, 3]."""
    matrices = np.tile(np.eye(3), (len(step.code), 1, 1))
    for number, kind in enumerate(step.kinds):
        chosen = step.code == number
        value = step.values[chosen, 0].astype(np.float64)
        if kind == "rotate":
            cos, sin, center = np.cos(np.radians(value)), np.sin(np.radians(value)), size / 2
            rows = [cos, -sin, center * (1 - cos + sin)], [sin, cos, center * (1 - sin - cos)]
            matrices[chosen, :2] = np.array(rows).transpose(2, 0, 1)
        elif kind in _ENTRIES:
            row, column, sign = _ENTRIES[kind]
            matrices[chosen, row, column] = sign * value
    return matrices.astype(np.float32)


def apply_steps(
    images: DataNode,
    steps: Sequence[tuple[tuple[str, ...], Fields]],
    size: int,
    fill: tuple[int, ...],
    *,
    gpu: bool,
) -> DataNode:
    """Apply steps in a pipeline with conditionals enabled.

    Args:
        images: uint8 [size, size, C], 1 or 3 channels.
        steps: kinds, and `fields_of` as nodes on the host, of each step.
        fill: value of erased pixels, [C].
        gpu: use operators for the GPU. Their named arguments must come from the host, and some of them are
            slow on the CPU.
    """
    setting = _Setting(size, fill, gpu)
    for kinds, fields in steps:
        for place, group in enumerate(groups_of(kinds, len(fill))):
            if "group" not in fields:
                images = _APPLY[group](images, fields, setting)
            else:
                if fields["group"] == place:
                    images = _APPLY[group](images, fields, setting)
    return images


def _affine(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    if setting.gpu:
        return fn.warp_affine(images, matrix=fields["affine"][:2], fill_value=0)
    # OpenCV takes an eighth of the time.
    return fn.experimental.warp_perspective(images, matrix=fields["affine"], fill_value=0)


def _scale(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    return fn.brightness_contrast(images, brightness=fields["factor"], brightness_shift=fields["base"])


def _contrast(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    weights = GRAY.astype(np.float32) if len(setting.fill) == 3 else np.ones(1, dtype=np.float32)
    shares = fn.reductions.mean(images, axes=(0, 1)) * types.Constant(weights, device=images.device)
    mean = fn.reductions.sum(shares, axes=0)
    if setting.gpu:
        return _rounded(mean + (images - mean) * fields["amount"])
    return fn.brightness_contrast(images, contrast=fields["amount"], contrast_center=mean)


def _saturation(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    factor = fields["amount"]
    gray = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
    gray = fn.color_space_conversion(gray, image_type=types.GRAY, output_type=types.RGB)
    if setting.gpu:
        return _rounded(images * factor + gray * (1.0 - factor))
    # A quarter of the time of a matrix.
    colored = fn.brightness_contrast(images, brightness=factor, dtype=types.INT16)
    return _rounded(colored + fn.brightness_contrast(gray, brightness=1.0 - factor, dtype=types.INT16))


def _hue(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    return fn.coord_transform(images, M=fields["hue"], dtype=types.UINT8)


def _lighting(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    return _rounded(images + fields["offset"])


def _sharpness(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    kernel = fields["kernel"]
    filtered = fn.filter(images, kernel.gpu() if images.device == "gpu" else kernel)
    inside = np.zeros((setting.size, setting.size, 1), dtype=np.uint8)
    inside[1:-1, 1:-1] = 255
    border = types.Constant(255 - inside, device=images.device)
    return (filtered & types.Constant(inside, device=images.device)) | (images & border)


def _posterize(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    return images & _rounded(256.0 - 2.0 ** (8.0 - fields["amount"]))


def _solarize(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    return images ^ ((images >= fields["amount"]) * _byte(255))


def _solarize_add(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    return _rounded(images + (images < 128) * fields["amount"])


def _autocontrast(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    low, high = fn.reductions.min(images, axes=(0, 1)), fn.reductions.max(images, axes=(0, 1))
    flat = low == high  # unchanged
    return _rounded((images - low * (flat ^ True)) * (255.0 / (high - low + flat * _byte(255))))


def _equalize(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    """Equalize as Pillow's `ImageOps.equalize`.

    There, a value with b pixels below it in the channel becomes b / (p // 255), with p pixels below the
    highest value. DALI's result for the inverted image, inverted, is 255 b / p."""
    highest = images == fn.reductions.max(images, axes=(0, 1))
    count = fn.reductions.sum(highest * _byte(1), axes=(0, 1))
    lower = setting.size**2 - fn.cast(count, dtype=types.INT32)
    step = lower // 255
    few = step == 0  # unchanged
    factor = lower / (255.0 * (step + few)) * (few ^ True)
    return _rounded((fn.equalize(images ^ _byte(255)) ^ _byte(255)) * factor + images * few)


def _erase(images: DataNode, fields: Fields, setting: _Setting) -> DataNode:
    return fn.erase(
        images,
        anchor=fields["anchor"],
        shape=fields["extent"],
        axis_names="HW",
        fill_value=list(setting.fill),
    )


_APPLY: dict[str, Callable[[DataNode, Fields, _Setting], DataNode]] = {
    "affine": _affine,
    "scale": _scale,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "lighting": _lighting,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "erase": _erase,
}


def _rounded(values: DataNode) -> DataNode:
    """Round and clip to 0 to 255."""
    return fn.cast(values, dtype=types.UINT8)


def _byte(value: int) -> Any:
    return types.Constant(value, dtype=types.UINT8)
