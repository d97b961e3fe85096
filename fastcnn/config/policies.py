"""Policies of `--aa` as tables of operations, probabilities and strengths. Torch- and numpy-free.

Operations and their values are those of `fastcnn.data.transforms.augment.OPERATIONS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from fastcnn.errors import UserError


class Scale(NamedTuple):
    """Value of an operation at a level from 0 to 1: start + slope * level."""

    start: float = 0.0
    slope: float = 0.0
    signed: bool = False
    """The slope's sign is flipped in half of the draws."""
    of_size: bool = False
    """The slope is a fraction of the image's side."""
    whole: Literal["", "truncated", "rounded"] = ""
    """Conversion of slope * level to an integer; "": none."""


class Choice(NamedTuple):
    """A candidate operation of a slot."""

    kind: str
    scale: Scale
    level: float | None = 0.0
    """None: drawn from `LEVELS` evenly spaced levels."""
    probability: float = 1.0


@dataclass(frozen=True)
class Policy:
    """Distribution of the operations applied to an image."""

    slots: tuple[tuple[Choice, ...], ...]
    """Candidates of each slot; one per slot is applied, in order."""
    together: bool = False
    """All slots share one index, as in the sub-policies of AutoAugment."""
    deviation: float = 0.0
    """Standard deviation of the level, normally distributed and clipped to [0, 1]."""


LEVELS = 31
SINGLE = {kind: Scale() for kind in ("identity", "autocontrast", "equalize", "invert")}
"""Operations without a strength."""


def _scales(shear: float, translate: Scale, rotate: float, factor: float, bits: float) -> dict[str, Scale]:
    """Return the scales that torchvision's policies share."""
    return SINGLE | {
        "shear_x": Scale(0, shear, signed=True),
        "shear_y": Scale(0, shear, signed=True),
        "translate_x": translate,
        "translate_y": translate,
        "rotate": Scale(0, rotate, signed=True),
        "brightness": Scale(1, factor, signed=True),
        "saturation": Scale(1, factor, signed=True),
        "contrast": Scale(1, factor, signed=True),
        "sharpness": Scale(1, factor, signed=True),
        "posterize": Scale(8, -bits, whole="rounded"),
        "solarize": Scale(255, -255),
    }


TORCHVISION = _scales(
    0.3, Scale(0, 150 / 331, signed=True, of_size=True, whole="truncated"), rotate=30, factor=0.9, bits=4
)
"""Scales of AutoAugment and RandAugment, as in torchvision."""
WIDE = _scales(0.99, Scale(0, 32, signed=True, whole="truncated"), rotate=135, factor=0.99, bits=6)
"""Scales of TrivialAugment (Müller and Hutter 2021, table 1, "wide")."""
TIMM = SINGLE | {
    "rotate": Scale(0, 30, signed=True),
    "posterize": Scale(0, 4, whole="truncated"),
    "solarize": Scale(0, 256, whole="truncated"),
    "solarize_add": Scale(0, 110, whole="truncated"),
    "saturation": Scale(0.1, 1.8),
    "contrast": Scale(0.1, 1.8),
    "brightness": Scale(0.1, 1.8),
    "sharpness": Scale(0.1, 1.8),
    "shear_x": Scale(0, 0.3, signed=True),
    "shear_y": Scale(0, 0.3, signed=True),
    "translate_x": Scale(0, 0.45, signed=True, of_size=True),
    "translate_y": Scale(0, 0.45, signed=True, of_size=True),
}
"""Scales of timm, from the EfficientNet for TPUs; a higher level is not always stronger."""
TIMM_INCREASING = TIMM | {
    "posterize": Scale(4, -4, whole="truncated"),
    "solarize": Scale(256, -256, whole="truncated"),
    "saturation": Scale(1, 0.9, signed=True),
    "contrast": Scale(1, 0.9, signed=True),
    "brightness": Scale(1, 0.9, signed=True),
    "sharpness": Scale(1, 0.9, signed=True),
}
"""Scales of timm with `inc1`: a higher level is always stronger."""

Operation = tuple[str, float, int]
"""Kind, probability, and level from 0 to 9."""

IMAGENET: tuple[tuple[Operation, Operation], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("saturation", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("saturation", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("saturation", 1.0, 2)),
    (("saturation", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("saturation", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("saturation", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
"""AutoAugment for ImageNet (Cubuk et al. 2019, table 9), as in torchvision."""
CIFAR10: tuple[tuple[Operation, Operation], ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("saturation", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("saturation", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("saturation", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("saturation", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("saturation", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)
"""AutoAugment for CIFAR-10 (table 7), as in torchvision."""
SVHN: tuple[tuple[Operation, Operation], ...] = (
    (("shear_x", 0.9, 4), ("invert", 0.2, 0)),
    (("shear_y", 0.9, 8), ("invert", 0.7, 0)),
    (("equalize", 0.6, 0), ("solarize", 0.6, 6)),
    (("invert", 0.9, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.6, 0), ("rotate", 0.9, 3)),
    (("shear_x", 0.9, 4), ("autocontrast", 0.8, 0)),
    (("shear_y", 0.9, 8), ("invert", 0.4, 0)),
    (("shear_y", 0.9, 5), ("solarize", 0.2, 6)),
    (("invert", 0.9, 0), ("autocontrast", 0.8, 0)),
    (("equalize", 0.6, 0), ("rotate", 0.9, 3)),
    (("shear_x", 0.9, 4), ("solarize", 0.3, 3)),
    (("shear_y", 0.8, 8), ("invert", 0.7, 0)),
    (("equalize", 0.9, 0), ("translate_y", 0.6, 6)),
    (("invert", 0.9, 0), ("equalize", 0.6, 0)),
    (("contrast", 0.3, 3), ("rotate", 0.8, 4)),
    (("invert", 0.8, 0), ("translate_y", 0.0, 2)),
    (("shear_y", 0.7, 6), ("solarize", 0.4, 8)),
    (("invert", 0.6, 0), ("rotate", 0.8, 4)),
    (("shear_y", 0.3, 7), ("translate_x", 0.9, 3)),
    (("shear_x", 0.1, 6), ("invert", 0.6, 0)),
    (("solarize", 0.7, 2), ("translate_y", 0.6, 7)),
    (("shear_y", 0.8, 4), ("invert", 0.8, 0)),
    (("shear_x", 0.7, 9), ("translate_y", 0.8, 3)),
    (("shear_y", 0.8, 5), ("autocontrast", 0.7, 0)),
    (("shear_x", 0.7, 2), ("invert", 0.1, 0)),
)
"""AutoAugment for SVHN (table 8), as in torchvision."""


def _rand(scales: dict[str, Scale], slots: int, level: float | None) -> Policy:
    kinds = (kind for kind in scales if kind != "invert")
    return Policy((tuple(Choice(kind, scales[kind], level) for kind in kinds),) * slots)


def _auto(table: tuple[tuple[Operation, Operation], ...]) -> Policy:
    first, second = (
        tuple(Choice(kind, TORCHVISION[kind], level / 9, probability) for kind, probability, level in slot)
        for slot in zip(*table)
    )
    return Policy((first, second), together=True)


POLICIES: dict[str, Policy | None] = {
    "none": None,
    "ra": _rand(TORCHVISION, slots=2, level=9 / 30),  # RandAugment (Cubuk et al. 2020)
    "ta_wide": _rand(WIDE, slots=1, level=None),
    "imagenet": _auto(IMAGENET),
    "cifar10": _auto(CIFAR10),
    "svhn": _auto(SVHN),
}


@cache
def parse_policy(aa: str) -> Policy | None:
    """Parse `--aa`: a name in `POLICIES`, or RandAugment in timm's notation.

    In rand-m9-n2-mstd0.5-inc1, m is the magnitude from 0 to 10, n the number of operations and mstd the
    standard deviation of the magnitude. With inc1 a higher magnitude is always stronger. Each operation is
    skipped with probability 0.5.

    Raises:
        UserError: an unknown policy.
    """
    if aa in POLICIES:
        return POLICIES[aa]
    word, *parts = aa.split("-")
    matches = [re.fullmatch(r"(m|n|mstd|inc)(\d+(?:\.\d+)?)", part) for part in parts]
    letters = {"m": 10.0, "n": 2.0, "mstd": 0.0, "inc": 0.0, **{m[1]: float(m[2]) for m in matches if m}}
    wrong = letters["n"] < 1 or letters["n"] % 1 or max(letters["m"], letters["mstd"]) > 10
    if word != "rand" or None in matches or wrong:
        names = ", ".join(POLICIES)
        raise UserError(f"--aa {aa}: no such policy; use {names}, or as rand-m9-n2-mstd0.5-inc1")
    scales = TIMM_INCREASING if letters["inc"] else TIMM
    kinds = (kind for kind in scales if kind != "identity")
    slot = tuple(Choice(kind, scales[kind], letters["m"] / 10, probability=0.5) for kind in kinds)
    return Policy((slot,) * int(letters["n"]), deviation=letters["mstd"] / 10)
