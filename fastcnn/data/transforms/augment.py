"""What becomes of a sample's pixels in training: which operations, how strong, as pure functions of (seed,
epoch, sample).

A backend applies `Step` after `Step` to each sample after its crop and flip. What each operation means is
said here once; `fastcnn.data.transforms.torch_ops` and `dali_ops` do it.
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
"""So many random numbers from 0 to 1 for each sample, float64 [N, count]; each call takes further ones."""

OPERATIONS: dict[str, str] = {
    "identity": "nothing",
    "rotate": "degrees counterclockwise around the centre",
    "shear_x": "pixels to the left for each row below the first one",
    "shear_y": "pixels upwards for each column right of the first one",
    "translate_x": "pixels to the right",
    "translate_y": "pixels downwards",
    "brightness": "factor of all values",
    "contrast": "factor of the distance to the mean of the grey image",
    "saturation": "factor of the distance to the grey image",
    "hue": "turns, -0.5 to 0.5, around the grey axis in YIQ: linear, as in DALI",
    "sharpness": "factor of the distance to the image smoothed by 1 1 1, 1 5 1, 1 1 1; its border stays",
    "posterize": "highest bits that stay",
    "solarize": "value from which on values are inverted",
    "solarize_add": "added to values below 128",
    "autocontrast": "each channel stretched to 0 to 255",
    "equalize": "each channel's histogram equalized, as Pillow does",
    "invert": "255 minus the values",
    "lighting": "added to red, green, blue (to grey: the mean of the three)",
    "erase": "top, left, height, width in pixels, filled with `Augment.fill`",
}
"""What the values of each operation mean, which there are at most four of. Images are uint8; results are
rounded, and clipped to 0 to 255. Grey is 0.299 R + 0.587 G + 0.114 B; of grey images saturation and hue
change nothing. Geometric ones interpolate bilinearly over black; rows and columns are measured at the middle
of the pixels from the image's corner, as in torchvision, so that the first row is sheared by half a pixel's
part."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Settings, as of the flags of the same names."""

    aa: str = "none"
    color_jitter: tuple[float, ...] | None = None
    grayscale_prob: float = 0.0
    lighting: float = 0.0
    lighting_components: tuple[tuple[float, float, float], ...] = ()
    """[3][3]: the principal components of colour in red, green, blue, each times its variance for values from
    0 to 1, times 255; see `fastcnn.data.transforms.color`."""
    rotate: float = 0.0
    reprob: float = 0.0
    cutout: int = 0
    fill: tuple[int, ...] = (124, 116, 104)
    """Mean colour, uint8."""


@dataclass(frozen=True)
class Step:
    """One operation for each of N samples."""

    kinds: tuple[str, ...]
    """Operations that may occur here: the same in all batches of a run, in the same order."""
    code: np.ndarray
    """[N] int32: which of them."""
    values: np.ndarray
    """[N, 4] float32: as `OPERATIONS` says, the rest 0."""

    def take(self, chosen: np.ndarray) -> Step:
        """Of the samples at `chosen`."""
        return Step(self.kinds, self.code[chosen], self.values[chosen])


def draw_steps(augment: Augment, size: int, seed: int, epoch: int, draws: np.ndarray) -> tuple[Step, ...]:
    """What becomes of N samples: a step for each operation that the settings ask for, in the order of
    `torchvision`'s and `timm`'s recipes.

    Each setting has random numbers of its own, which are not those of crops and flips: none of them changes
    what the others draw.

    Args:
        size: pixels a side of the samples.
        draws: [N] int64, the number of each sample, or of each time that a sample is used in an epoch.
    """
    steps: list[Step] = []
    for number, draw in enumerate(_DRAWN.values(), start=1):
        steps += draw(augment, size, _numbers(seed, epoch, draws, number))
    return tuple(steps)


def operations(augment: Augment) -> set[str]:
    """Those that may occur."""
    return {kind for step in draw_steps(augment, 1, 0, 0, np.arange(1)) for kind in step.kinds}


def _numbers(seed: int, epoch: int, draws: np.ndarray, setting: int) -> Uniforms:
    calls = itertools.count()
    return lambda count: uniforms(seed, epoch, draws, count, (setting, next(calls)))


def _normal(u: Uniforms, count: int) -> np.ndarray:
    """Normally distributed numbers [N, count] (Box and Muller 1958)."""
    radius, turn = u(count), u(count)
    return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)


def _step(kinds: tuple[str, ...], code: np.ndarray, values: np.ndarray) -> Step:
    """One of N samples with at most four values [N, k]."""
    padded = np.zeros((len(code), 4), dtype=np.float32)
    padded[:, : values.shape[1]] = values
    return Step(kinds, code.astype(np.int32), padded)


def _always(kind: str, values: np.ndarray) -> Step:
    return _step((kind,), np.zeros(len(values)), values)


def _sometimes(kind: str, applied: np.ndarray, values: np.ndarray) -> Step:
    return _step(("identity", kind), applied, np.where(applied[:, None], values, 0))


def _rotate(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    if augment.rotate == 0:
        return []
    return [_always("rotate", augment.rotate * (2 * u(1) - 1))]


def _aa(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    policy = parse_policy(augment.aa)
    if policy is None:
        return []
    steps = []
    chosen = u(1)
    for slot, table in enumerate(_tables(policy)):
        if slot and not policy.together:
            chosen = u(1)
        row = (chosen[:, 0] * len(table.code)).astype(np.int64)
        applied, level, sign = u(3).T
        level = np.where(table.any_level[row], np.floor(level * LEVELS) / (LEVELS - 1), table.level[row])
        if policy.deviation:
            level = (level + policy.deviation * _normal(u, 1)[:, 0]).clip(0, 1)
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
    """A slot of a policy: its K choices as arrays [K]."""

    kinds: tuple[str, ...]
    identity: int
    """Its number among the kinds; -1 where it cannot occur."""
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
        left_out = ["identity"] if any(choice.probability < 1 for choice in slot) else []
        kinds = tuple(dict.fromkeys([*left_out, *(choice.kind for choice in slot)]))
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
    """torchvision's ColorJitter: each of those that are asked for once, in random order."""
    told = augment.color_jitter or ()
    told = told * 3 if len(told) == 1 else told
    strength = {
        kind: value for kind, value in zip(("brightness", "contrast", "saturation", "hue"), told) if value > 0
    }
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
    """Krizhevsky et al. 2012, section 4.1."""
    if augment.lighting == 0:
        return []
    return [_always("lighting", augment.lighting * _normal(u, 3) @ np.array(augment.lighting_components))]


def _erase(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    """Random Erasing (Zhong et al. 2020, algorithm 1) as torchvision's RandomErasing draws it."""
    if augment.reprob == 0:
        return []
    applied, place = u(1)[:, 0] < augment.reprob, u(2)
    area = size**2 * (0.02 + (0.33 - 0.02) * u(_TRIES))
    ratio = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * u(_TRIES))
    sides = np.rint(np.sqrt(np.stack([area * ratio, area / ratio], axis=2)))
    fits = (sides < size).all(axis=2)
    shape = sides[np.arange(len(sides)), fits.argmax(axis=1)]
    start = np.floor(place * (size - shape + 1))
    return [_sometimes("erase", applied & fits.any(axis=1), np.concatenate([start, shape], axis=1))]


def _cutout(augment: Augment, size: int, u: Uniforms) -> list[Step]:
    """A square around a random pixel, cut off at the border (DeVries and Taylor 2017, section 3.2)."""
    if augment.cutout == 0:
        return []
    start = np.floor(u(2) * size) - augment.cutout // 2
    end = (start + augment.cutout).clip(max=size)
    start = start.clip(min=0)
    return [_always("erase", np.concatenate([start, end - start], axis=1))]


_TRIES = 10  # of torchvision
_DRAWN: dict[str, Callable[[Augment, int, Uniforms], list[Step]]] = {
    "rotate": _rotate,
    "aa": _aa,
    "color_jitter": _color_jitter,
    "grayscale_prob": _grayscale,
    "lighting": _lighting,
    "reprob": _erase,
    "cutout": _cutout,
}
"""What each setting asks for, in the order in which it is done. A setting's place is its random numbers'."""
