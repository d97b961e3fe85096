"""The operations of `fastcnn.data.augment` inside a DALI pipeline.

Kinds that one DALI operator can do are a group: the host computes its arguments, batch by batch, and the
operator runs on the samples that need it. Nothing here is random or has a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from fastcnn.data.augment import Step

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=np.float64)
"""NTSC's; the last two rows sum to 0, so that grey has no colour."""
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_SHARP = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float32)

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


class StepNodes(NamedTuple):
    """A step in a pipeline."""

    groups: tuple[str, ...]
    """As `groups_of` has them."""
    fields: dict[str, DataNode]
    """As `fields_of` has them, on the host."""


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
    images: DataNode, steps: Sequence[StepNodes], size: int, fill: tuple[int, ...], gpu: bool
) -> DataNode:
    """To be called in a pipeline that has conditionals.

    Args:
        images: uint8 [size, size, C], 1 or 3 channels.
        fill: what erases, [C].
        gpu: whether by what is made for a GPU: some operators take arguments from the host alone, and some
            are slow on one of both.
    """
    for step in steps:
        group = step.fields["group"]
        for i, name in enumerate(step.groups):
            if group == i + 1:
                images = _apply(name, images, step.fields, size, fill, gpu)
    return images


def _apply(
    name: str, images: DataNode, fields: dict[str, DataNode], size: int, fill: tuple[int, ...], gpu: bool
) -> DataNode:
    if name == "affine":
        return _warp(images, fields["matrix"], gpu)
    if name == "scale":
        return fn.brightness_contrast(images, brightness=fields["factor"], brightness_shift=fields["base"])
    if name == "colour":
        return fn.coord_transform(images, M=fields["colour"], dtype=types.UINT8)
    if name == "offset":
        return fn.cast(images + _beside(images, fields["offset"]), dtype=types.UINT8)
    if name == "contrast":
        return _contrast(images, fields["amount"], gpu)
    if name == "filter":
        return _sharpness(images, _beside(images, fields["kernel"]), size)
    if name == "posterize":
        return images & fn.cast(_beside(images, fields["amount"]), dtype=types.UINT8)
    if name == "solarize":
        return images ^ (_byte(255) * (images >= _beside(images, fields["amount"])))
    if name == "solarize_add":
        added = _beside(images, fields["amount"]) * (images < 128)
        return fn.cast(images + added, dtype=types.UINT8)
    if name == "autocontrast":
        return _autocontrast(images)
    if name == "equalize":
        return _equalize(images, size)
    assert name == "erase", name
    return fn.erase(
        images, anchor=fields["anchor"], shape=fields["extent"], axis_names="HW", fill_value=list(fill)
    )
