"""Random augmentation of pixels: operations and strengths as pure functions of (seed, epoch, sample).

A backend applies `Step` after `Step` to each sample after its crop and flip. `OPERATIONS` defines the
operations; `fastcnn.data.transforms.torch_ops` and `dali_ops` implement them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from fastcnn.config.policies import LEVELS, Policy, parse_policy
from fastcnn.data.transforms.random_numbers import uniforms

Uniforms = Callable[[int], np.ndarray]
"""Draws `count` random numbers from 0 to 1 per sample, float64 [N, count]; each call draws new ones."""

OPERATIONS: dict[str, str] = {
    "identity": "nothing",
    "rotate": "degrees counterclockwise around the center",
    "shear_x": "pixels to the left for each row below the first one",
    "shear_y": "pixels upwards for each column right of the first one",
    "translate_x": "pixels to the right",
    "translate_y": "pixels downwards",
    "brightness": "factor of all values",
    "contrast": "factor of the distance to the mean of the gray image",
    "saturation": "factor of the distance to the gray image",
    "hue": "turns, -0.5 to 0.5, around the gray axis in YIQ: linear, as in DALI",
    "sharpness": "factor of the distance to the image smoothed by 1 1 1, 1 5 1, 1 1 1; its border stays",
    "posterize": "highest bits that stay",
    "solarize": "value from which on values are inverted",
    "solarize_add": "added to values below 128",
    "autocontrast": "each channel stretched to 0 to 255",
    "equalize": "each channel's histogram equalized, as Pillow does",
    "invert": "255 minus the values",
    "lighting": "added to red, green, blue (to gray: the mean of the three)",
    "erase": "top, left, height, width in pixels, filled with `Augment.fill`",
}
"""Meaning of the values of each operation, at most four of them.

Images are uint8; results are rounded and clipped to 0 to 255. Gray is 0.299 R + 0.587 G + 0.114 B; saturation
and hue have no effect on gray images. Geometric operations interpolate bilinearly over black. Rows and
columns are measured at pixel centers from the image's corner, as in torchvision, so the first row is at 0.5.
"""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Settings of augmentation, named as the flags."""

    aa: str = "none"
    color_jitter: tuple[float, ...] | None = None
    grayscale_prob: float = 0.0
    lighting: float = 0.0
    lighting_components: tuple[tuple[float, float, float], ...] = ()
    """Principal components of color in red, green, blue, [3][3], each times its variance for values from 0 to
    1, times 255; see `fastcnn.data.transforms.color`."""
    rotate: float = 0.0
    reprob: float = 0.0
    cutout: int = 0
    fill: tuple[int, ...] = (124, 116, 104)
    """Mean color, 0 to 255 per channel."""


@dataclass(frozen=True)
class Step:
    """One operation per sample, for N samples."""

    kinds: tuple[str, ...]
    """Operations that may occur in this step, the same in all batches of a run."""
    code: np.ndarray
    """Index of each sample's operation in `kinds`, int32 [N]."""
    values: np.ndarray
    """Values by `OPERATIONS`, padded with 0, float32 [N, 4]."""

    def take(self, chosen: np.ndarray) -> Step:
        """Return the step of the samples at `chosen`."""
        return Step(self.kinds, self.code[chosen], self.values[chosen])


def draw_steps(augment: Augment, size: int, seed: int, epoch: int, draws: np.ndarray) -> tuple[Step, ...]:
    """Draw the augmentation of N samples: the steps of all enabled settings, in the order of the recipes of
    torchvision and timm.

    Each setting has its own random stream, independent of crops and flips. So a setting does not change the
    draws of the others.

    Args:
        size: side of the samples in pixels.
        draws: keys of the random numbers, int64 [N]: the sample's number, or one for each of its repeated
            uses in an epoch.
    """
    steps: list[Step] = []
    for number, draw in enumerate(_DRAWN.values(), start=1):
        steps += draw(augment, size, _numbers(seed, epoch, draws, number))
    return tuple(steps)


def operations(augment: Augment) -> set[str]:
    """Return the operations that may occur."""
    return {kind for step in draw_steps(augment, 1, 0, 0, np.arange(1)) for kind in step.kinds}


def _numbers(seed: int, epoch: int, draws: np.ndarray, setting: int) -> Uniforms:
    """Return a source of random numbers with one stream per setting and call."""
    calls = itertools.count()
    return lambda count: uniforms(seed, epoch, draws, count, stream=(setting, next(calls)))


def _normal(u: Uniforms, count: int) -> np.ndarray:
    """Draw normally distributed numbers, [N, count] (Box and Muller 1958)."""
    radius, turn = u(count), u(count)
    return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)


def _step(kinds: tuple[str, ...], code: np.ndarray, values: np.ndarray) -> Step:
    """Return a step of N samples with values [N, k], padded to four."""
    padded = np.zeros((len(code), 4), dtype=np.float32)
    padded[:, : values.shape[1]] = values
    return Step(kinds, code.astype(np.int32), padded)


def _always(kind: str, values: np.ndarray) -> Step:
    """Return a step that applies one operation to all samples."""
    return _step((kind,), np.zeros(len(values)), values)


def _sometimes(kind: str, applied: np.ndarray, values: np.ndarray) -> Step:
    """Return a step that applies one operation to the samples `applied`, bool [N]."""
    return _step(("identity", kind), applied, np.where(applied[:, None], values, 0))


def _rotate(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    if augment.rotate == 0:
        return []
    return [_always("rotate", augment.rotate * (2 * u(1) - 1))]


def _aa(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    """Draw the steps of an augmentation policy, one for each of its slots."""
    policy = parse_policy(augment.aa)
    if policy is None:
        return []
    steps = []
    chosen = u(1)
    for slot, table in enumerate(_tables(policy)):
        if slot and not policy.together:
            chosen = u(1)
        # One choice per sample, with its level from 0 to 1.
        row = (chosen[:, 0] * len(table.code)).astype(np.int64)
        applied, level, sign = u(3).T
        level = np.where(table.any_level[row], np.floor(level * LEVELS) / (LEVELS - 1), table.level[row])
        if policy.deviation:
            level = (level + policy.deviation * _normal(u, 1)[:, 0]).clip(0, 1)
        # From the level to the operation's value.
        amount = table.slope[row] * np.where(table.of_size[row], size, 1) * level
        amount = np.where(table.truncated[row], np.trunc(amount), amount)
        amount = np.where(table.rounded[row], np.rint(amount), amount)
        value = table.start[row] + np.where(table.signed[row] & (sign < 0.5), -amount, amount)
        happens = applied < table.probability[row]
        code = np.where(happens, table.code[row], table.identity)
        steps.append(_step(table.kinds, code, np.where(happens, value, 0)[:, None]))
    return steps


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Slot of a policy: its K choices as arrays [K]."""

    kinds: tuple[str, ...]
    identity: int
    """Index of "identity" in `kinds`; -1 if it cannot occur."""
    code: np.ndarray
    probability: np.ndarray
    level: np.ndarray
    any_level: np.ndarray
    start: np.ndarray
    slope: np.ndarray
    signed: np.ndarray
    of_size: np.ndarray
    truncated: np.ndarray
    rounded: np.ndarray


@cache
def _tables(policy: Policy) -> tuple[_Table, ...]:
    tables = []
    for slot in policy.slots:
        skips = any(choice.probability < 1 for choice in slot)
        kinds = tuple(dict.fromkeys((["identity"] if skips else []) + [choice.kind for choice in slot]))
        scales = [choice.scale for choice in slot]
        tables.append(
            _Table(
                kinds=kinds,
                identity=kinds.index("identity") if "identity" in kinds else -1,
                code=np.array([kinds.index(choice.kind) for choice in slot]),
                probability=np.array([choice.probability for choice in slot]),
                level=np.array([choice.level or 0.0 for choice in slot]),
                any_level=np.array([choice.level is None for choice in slot]),
                start=np.array([scale.start for scale in scales]),
                slope=np.array([scale.slope for scale in scales]),
                signed=np.array([scale.signed for scale in scales]),
                of_size=np.array([scale.of_size for scale in scales]),
                truncated=np.array([scale.whole == "truncated" for scale in scales]),
                rounded=np.array([scale.whole == "rounded" for scale in scales]),
            )
        )
    return tuple(tables)


def _color_jitter(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    """Draw torchvision's ColorJitter: each enabled operation once, in random order."""
    strengths = augment.color_jitter or ()
    strengths = strengths * 3 if len(strengths) == 1 else strengths
    kinds_of_jitter = "brightness", "contrast", "saturation", "hue"
    strength = {kind: value for kind, value in zip(kinds_of_jitter, strengths) if value > 0}
    if not strength:
        return []
    kinds = tuple(strength)
    order = u(len(kinds)).argsort(axis=1)
    low = np.array([-value if kind == "hue" else max(0.0, 1 - value) for kind, value in strength.items()])
    high = np.array([value if kind == "hue" else 1 + value for kind, value in strength.items()])
    values = np.take_along_axis(low + (high - low) * u(len(kinds)), order, axis=1)
    return [_step(kinds, code, value[:, None]) for code, value in zip(order.T, values.T)]


def _grayscale(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    if augment.grayscale_prob == 0:
        return []
    applied = u(1)[:, 0] < augment.grayscale_prob
    return [_sometimes("saturation", applied, np.zeros((len(applied), 1)))]


def _lighting(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    """Draw color noise along the principal components (Krizhevsky et al. 2012, section 4.1)."""
    if augment.lighting == 0:
        return []
    return [_always("lighting", augment.lighting * _normal(u, 3) @ np.array(augment.lighting_components))]


def _erase(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    """Draw Random Erasing (Zhong et al. 2020, algorithm 1) as torchvision's RandomErasing does."""
    if augment.reprob == 0:
        return []
    applied, place = u(1)[:, 0] < augment.reprob, u(2)
    area = size**2 * (0.02 + (0.33 - 0.02) * u(_TRIES))
    ratio = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * u(_TRIES))
    sides = np.rint(np.sqrt(np.stack([area * ratio, area / ratio], axis=2)))
    # The first try that fits.
    fits = (sides < size).all(axis=2)
    shape = sides[np.arange(len(sides)), fits.argmax(axis=1)]
    start = np.floor(place * (size - shape + 1))
    return [_sometimes("erase", applied & fits.any(axis=1), np.concatenate([start, shape], axis=1))]


def _cutout(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    """Draw a square around a random pixel, clipped at the border (DeVries and Taylor 2017, section 3.2)."""
    if augment.cutout == 0:
        return []
    start = np.floor(u(2) * size) - augment.cutout // 2
    end = (start + augment.cutout).clip(max=size)
    start = start.clip(min=0)
    return [_always("erase", np.concatenate([start, end - start], axis=1))]


_TRIES = 10  # as in torchvision
_DRAWN: dict[str, Callable[[Augment, int, Uniforms], list[Step]]] = {
    "rotate": _rotate,
    "aa": _aa,
    "color_jitter": _color_jitter,
    "grayscale_prob": _grayscale,
    "lighting": _lighting,
    "reprob": _erase,
    "cutout": _cutout,
}
"""Draws of the settings in the order of application. The position determines the random stream."""
