"""The operations of `fastcnn.data.augment` inside a DALI pipeline.

Kinds that one DALI operator can do are a group: the host computes its arguments, batch by batch, and the
operator runs on the samples that need it. Nothing here is random or has a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from fastcnn.data.augment import Step

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=np.float64)
"""NTSC's; the last two rows sum to 0, so that grey has no colour."""
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_SHARP = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float32)

_ENTRIES = {
    "shear_x": (0, 1, 1),
    "shear_y": (1, 0, 1),
    "translate_x": (0, 2, -1),
    "translate_y": (1, 2, -1),
}
"""Which element of the inverse matrix holds the value: its row, its column, its sign."""

_GROUPS = {
    "rotate": "affine",
    "shear_x": "affine",
    "shear_y": "affine",
    "translate_x": "affine",
    "translate_y": "affine",
    "brightness": "scale",
    "invert": "scale",
    "contrast": "contrast",
    "saturation": "colour",
    "hue": "colour",
    "lighting": "offset",
    "sharpness": "filter",
    "posterize": "posterize",
    "solarize": "solarize",
    "solarize_add": "solarize_add",
    "autocontrast": "autocontrast",
    "equalize": "equalize",
    "erase": "erase",
}


Fields = dict[str, DataNode]
"""What `fields_of` has of a step, in a pipeline; always on the host."""


class Setting(NamedTuple):
    """What is the same for all samples."""

    size: int
    """Pixels a side."""
    fill: tuple[int, ...]
    """What erases, for each channel."""
    gpu: bool
    """Whether to work by what suits a GPU: there operators take named arguments from the host alone, and on
    the CPU some are slow that are fast there."""


def groups_of(kinds: tuple[str, ...], channels: int) -> tuple[str, ...]:
    """Which groups of operations a step has. Grey images have no colour that could change."""
    groups = (_GROUPS[kind] for kind in kinds if kind != "identity")
    return tuple(dict.fromkeys(group for group in groups if channels == 3 or group != "colour"))


def fields_of(step: Step, size: int, channels: int) -> dict[str, np.ndarray]:
    """A step as `apply_steps` takes it, for N samples: names depend on its kinds alone.

    Returns:
        "group": [N] int32, 0 for nothing, else one more than the place in `groups_of`; and what the groups
        ask for: "matrix" [N, 3, 3], "factor" and "base" [N], "amount" [N], "colour" [N, 3, 3], "offset"
        [N, channels] int16, "kernel" [N, 3, 3], "anchor" and "extent" [N, 2]. Float32 if nothing is said.
    """
    groups, values = groups_of(step.kinds, channels), step.values
    if not groups:
        return {}
    places = [groups.index(g) + 1 if (g := _GROUPS.get(kind)) in groups else 0 for kind in step.kinds]
    fields = {"group": np.array(places, dtype=np.int32)[step.code]}
    chosen = {kind: step.code == i for i, kind in enumerate(step.kinds)}
    if "affine" in groups:
        fields["matrix"] = _matrices(chosen, values, size)
    if "scale" in groups:
        inverted = chosen.get("invert", np.zeros(len(values), dtype=bool))
        fields["factor"] = np.where(inverted, -1, values[:, 0]).astype(np.float32)
        fields["base"] = inverted.astype(np.float32)  # times 255
    if "colour" in groups:
        fields["colour"] = _colours(chosen, values)
    if "offset" in groups:
        offset = values[:, :3] if channels == 3 else values[:, :3].mean(axis=1, keepdims=True)
        fields["offset"] = np.rint(offset).astype(np.int16)
    if "filter" in groups:
        fields["kernel"] = _SMOOTH + values[:, 0, None, None] * (_SHARP - _SMOOTH)
    if {"contrast", "posterize", "solarize", "solarize_add"} & set(groups):
        amount = values[:, 0].copy()
        if "posterize" in groups:
            bits = chosen["posterize"]
            amount[bits] = 256 - 2 ** (8 - amount[bits])  # the bits that stay
        fields["amount"] = amount
    if "erase" in groups:
        fields["anchor"], fields["extent"] = values[:, :2].copy(), values[:, 2:].copy()
    return fields


def hue_matrix(turns: np.ndarray) -> np.ndarray:
    """[N, 3, 3] float64: what turns colours by `turns` [N] around the grey axis in YIQ, as `fn.hue` does:

    inverse(yiq) @ [[1, 0, 0], [0, cos, sin], [0, -sin, cos]] @ yiq.
    """
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cos
    turn[:, 1, 2], turn[:, 2, 1] = sin, -sin
    return np.linalg.inv(_YIQ) @ turn @ _YIQ


def apply_steps(
    images: DataNode, steps: Sequence[tuple[tuple[str, ...], Fields]], setting: Setting
) -> DataNode:
    """Images with all steps applied; to be called in a pipeline that has conditionals.

    Args:
        images: uint8 [size, size, C], 1 or 3 channels.
        steps: of each its `groups_of` and its `fields_of`.
    """
    for groups, fields in steps:
        for number, group in enumerate(groups, start=1):
            if fields["group"] == number:
                images = _APPLY[group](images, fields, setting)
    return images


def _affine(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    if setting.gpu:
        return fn.warp_affine(images, matrix=fields["matrix"][:2], fill_value=0)
    # By OpenCV, in an eighth of the time.
    return fn.experimental.warp_perspective(images, matrix=fields["matrix"], fill_value=0)


def _scale(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    return fn.brightness_contrast(images, brightness=fields["factor"], brightness_shift=fields["base"])


def _colour(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    return fn.coord_transform(images, M=fields["colour"], dtype=types.UINT8)


def _offset(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    return _rounded(images + _beside(images, fields["offset"]))


def _contrast(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    weights = _GREY if len(setting.fill) == 3 else np.ones(1, dtype=np.float32)
    mean = fn.reductions.sum(fn.reductions.mean(images, axes=(0, 1)) * weights, axes=0)
    if setting.gpu:
        return _rounded(mean + (images - mean) * _beside(images, fields["amount"]))
    return fn.brightness_contrast(images, contrast=fields["amount"], contrast_center=mean)


def _filter(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    inner = fn.filter(images, _beside(images, fields["kernel"]), mode="valid")
    corners = np.array([[0, 0], [1, 1]], dtype=np.int32)
    return fn.multi_paste(images, inner, out_anchors=corners, output_size=[setting.size, setting.size])


def _posterize(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    return images & _rounded(_beside(images, fields["amount"]))


def _solarize(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    return images ^ ((images >= _beside(images, fields["amount"])) * _byte(255))


def _solarize_add(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    return _rounded(images + (images < 128) * _beside(images, fields["amount"]))


def _autocontrast(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    low, high = fn.reductions.min(images, axes=(0, 1)), fn.reductions.max(images, axes=(0, 1))
    flat = low == high  # stays
    return _rounded((images - low * (flat ^ True)) * (255.0 / (high - low + flat * _byte(255))))


def _equalize(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    """As Pillow's `ImageOps.equalize`: a value that b pixels of a channel are below becomes b / (p // 255),
    where p of them are below the highest value. DALI makes 255 b / p of it if it is given the inverted
    image, whose result is inverted."""
    highest = images == fn.reductions.max(images, axes=(0, 1))
    count = fn.reductions.sum(highest * _byte(1), axes=(0, 1))
    lower = setting.size**2 - fn.cast(count, dtype=types.INT32)
    step = lower // 255
    few = step == 0  # stays
    factor = lower / (255.0 * (step + few)) * (few ^ True)
    return _rounded((fn.equalize(images ^ _byte(255)) ^ _byte(255)) * factor + images * few)


def _erase(images: DataNode, fields: Fields, setting: Setting) -> DataNode:
    return fn.erase(
        images,
        anchor=fields["anchor"],
        shape=fields["extent"],
        axis_names="HW",
        fill_value=list(setting.fill),
    )


_APPLY: dict[str, Callable[[DataNode, Fields, Setting], DataNode]] = {
    "affine": _affine,
    "scale": _scale,
    "colour": _colour,
    "offset": _offset,
    "contrast": _contrast,
    "filter": _filter,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "erase": _erase,
}


def _beside(images: DataNode, values: DataNode) -> DataNode:
    """Where the images are: arithmetic does not mix devices."""
    return values.gpu() if images.device == "gpu" else values


def _rounded(values: DataNode) -> DataNode:
    """To the nearest of 0 to 255."""
    return fn.cast(values, dtype=types.UINT8)


def _byte(value: int) -> Any:
    return types.Constant(value, dtype=types.UINT8)


def _matrices(chosen: dict[str, np.ndarray], values: np.ndarray, size: int) -> np.ndarray:
    """[N, 3, 3] float32: where a pixel of the result lies in the image; the corner of the first is (0, 0)."""
    matrices = np.tile(np.eye(3), (len(values), 1, 1))
    for kind, (row, column, sign) in _ENTRIES.items():
        if kind in chosen:
            matrices[chosen[kind], row, column] = sign * values[chosen[kind], 0]
    if "rotate" in chosen:
        angle = np.radians(values[chosen["rotate"], 0].astype(np.float64))
        cos, sin, centre = np.cos(angle), np.sin(angle), size / 2
        rows = [cos, -sin, centre * (1 - cos + sin)], [sin, cos, centre * (1 - sin - cos)]
        matrices[chosen["rotate"], :2] = np.array(rows).transpose(2, 0, 1)
    return matrices.astype(np.float32)


def _colours(chosen: dict[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    """[N, 3, 3] float32: what colours are multiplied by."""
    matrices = np.tile(np.eye(3), (len(values), 1, 1))
    if "saturation" in chosen:
        factor = values[chosen["saturation"], 0, None, None]
        matrices[chosen["saturation"]] = _GREY + factor * (np.eye(3) - _GREY)
    if "hue" in chosen:
        matrices[chosen["hue"]] = hue_matrix(values[chosen["hue"], 0])
    return matrices.astype(np.float32)
