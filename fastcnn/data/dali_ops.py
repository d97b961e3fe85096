"""The operations of `fastcnn.data.augment` inside a DALI pipeline, on CPU and GPU by the same definition.

The host computes what each sample's operation needs, batch by batch; nothing here is random or has a state.
Kinds that one operator of DALI can do are a group, and run on the samples that need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import DataNode

from fastcnn.data.augment import Step
from fastcnn.data.colour import GREY, linear

_GROUPS = {
    **dict.fromkeys(("rotate", "shear_x", "shear_y", "translate_x", "translate_y"), "affine"),
    **dict.fromkeys(("brightness", "saturation", "hue", "lighting", "invert"), "linear"),
}
"""Of other kinds the group has the kind's name."""


def groups_of(kinds: Sequence[str]) -> tuple[str, ...]:
    """Which groups of operations a step of these kinds has."""
    return tuple(dict.fromkeys(_GROUPS.get(kind, kind) for kind in kinds if kind != "identity"))


def _varies(kinds: Sequence[str]) -> bool:
    """Whether samples need different groups."""
    return len(groups_of(kinds)) > 1 or "identity" in kinds


def fields_of(step: Step, size: int, channels: int) -> dict[str, np.ndarray]:
    """What `apply_steps` needs of a step of N samples: names depend on its kinds alone.

    Returns:
        "group": [N] int32, the place in `groups_of`, or -1 for nothing, unless all do the same; and,
        float32, what the groups ask for: "affine" [N, 2, 3], "matrix" [N, C, C], "offset" [N, C],
        "amount" [N], "anchor" and "extent" [N, 2].
    """
    groups = groups_of(step.kinds)
    fields: dict[str, np.ndarray] = {}
    if _varies(step.kinds):
        places = [-1 if kind == "identity" else groups.index(_GROUPS.get(kind, kind)) for kind in step.kinds]
        fields["group"] = np.array(places, dtype=np.int32)[step.code]
    if "affine" in groups:
        fields["affine"] = _affine(step, size)
    if "linear" in groups:
        fields["matrix"], _, fields["offset"] = linear(step, channels)
    if "erase" in groups:
        fields["anchor"], fields["extent"] = step.values[:, :2].copy(), step.values[:, 2:].copy()
    if set(groups) - {"affine", "linear", "erase", "autocontrast", "equalize"}:
        fields["amount"] = step.values[:, 0].copy()
    return fields


def _affine(step: Step, size: int) -> np.ndarray:
    """[N, 2, 3]: from a place in the result to the one in the image, in pixels from the corner."""
    matrices = np.tile(np.eye(3), (len(step.code), 1, 1))
    for number, kind in enumerate(step.kinds):
        chosen = step.code == number
        value = step.values[chosen, 0].astype(np.float64)
        if kind == "rotate":
            cos, sin, centre = np.cos(np.radians(value)), np.sin(np.radians(value)), size / 2
            matrices[chosen, 0, 0] = matrices[chosen, 1, 1] = cos
            matrices[chosen, 0, 1], matrices[chosen, 1, 0] = -sin, sin
            matrices[chosen, 0, 2] = centre - (cos - sin) * centre
            matrices[chosen, 1, 2] = centre - (cos + sin) * centre
        elif kind in _CELLS:
            row, column, sign = _CELLS[kind]
            matrices[chosen, row, column] = sign * value
    return np.ascontiguousarray(matrices[:, :2], dtype=np.float32)


_CELLS = {"shear_x": (0, 1, 1), "shear_y": (1, 0, 1), "translate_x": (0, 2, -1), "translate_y": (1, 2, -1)}
"""Where in the matrix a value stands."""


def apply_steps(
    images: DataNode,
    steps: Sequence[tuple[tuple[str, ...], dict[str, DataNode]]],
    size: int,
    fill: tuple[int, ...],
    gpu: bool,
) -> DataNode:
    """To be called in a pipeline that has conditionals.

    Args:
        images: uint8 [size, size, C].
        steps: of each its kinds, and its `fields_of` on the host.
        fill: what erases, [C].
        gpu: whether the images are on a GPU.
    """
    for kinds, fields in steps:
        groups = groups_of(kinds)
        for place, group in enumerate(groups):
            if not _varies(kinds):
                images = _apply(group, images, fields, size, fill, gpu)
            else:
                if fields["group"] == place:
                    images = _apply(group, images, fields, size, fill, gpu)
    return images


def _apply(
    group: str, images: DataNode, fields: dict[str, DataNode], size: int, fill: tuple[int, ...], gpu: bool
) -> DataNode:
    if group == "affine":
        return fn.warp_affine(images, matrix=fields["affine"], fill_value=0, interp_type=types.INTERP_LINEAR)
    if group == "linear":
        return fn.coord_transform(images, M=fields["matrix"], T=fields["offset"], dtype=types.UINT8)
    if group == "erase":
        return fn.erase(
            images,
            anchor=fields["anchor"],
            shape=fields["extent"],
            axis_names="HW",
            fill_value=[float(value) for value in fill],
        )
    if group == "equalize":
        return fn.equalize(images)
    if group == "autocontrast":
        return _autocontrast(images)
    amount = fields["amount"].gpu() if gpu else fields["amount"]
    if group == "contrast":
        channels = len(fill)
        weights = GREY if channels == 3 else np.ones(1)
        mean = fn.reductions.sum(
            fn.reductions.mean(images, axes=[0, 1]) * _constant(weights.astype(np.float32), gpu), axes=[0]
        )
        return fn.cast(images * amount + (1 - amount) * mean, dtype=types.UINT8)
    if group == "sharpness":
        return _sharpness(images, amount, size, gpu)
    if group == "posterize":
        kept = fn.cast(256 - 2 ** (8 - amount), dtype=types.UINT8)
        return images & kept
    if group == "solarize":
        return fn.cast(
            images ^ (types.Constant(255, dtype=types.UINT8) * (images >= amount)), dtype=types.UINT8
        )
    assert group == "solarize_add", group
    return fn.cast(images + amount * (images < 128), dtype=types.UINT8)


def _constant(values: np.ndarray, gpu: bool) -> Any:
    return types.Constant(values, device="gpu" if gpu else "cpu")


def _autocontrast(images: DataNode) -> DataNode:
    low = fn.cast(fn.reductions.min(images, axes=[0, 1]), dtype=types.FLOAT)
    high = fn.cast(fn.reductions.max(images, axes=[0, 1]), dtype=types.FLOAT)
    flat = high == low  # a channel that stays
    scale = 255.0 / (high - low + flat) * (1 - flat) + flat
    return fn.cast((images - low * (1 - flat)) * scale, dtype=types.UINT8)


def _sharpness(images: DataNode, amount: DataNode, size: int, gpu: bool) -> DataNode:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
    inside = np.zeros((size, size, 1), dtype=np.float32)
    inside[1:-1, 1:-1] = 1  # the border stays
    smooth = fn.filter(images, _constant(kernel, gpu), dtype=types.FLOAT)
    change = (amount - 1) * (images - smooth)
    return fn.cast(images + change * _constant(inside, gpu), dtype=types.UINT8)
