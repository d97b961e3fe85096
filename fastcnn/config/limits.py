"""Limits of settings, as annotations of their types: annotated_types, and `Limit` for other rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Interval

MAX_SIDE = 16_384
"""Max side of the images of a network, in pixels."""


@dataclass(frozen=True)
class Limit:
    """A rule for a value, and the advice for values that violate it."""

    holds: Callable[[Any], bool]
    advice: str


def broken(value: Any, annotations: tuple[Any, ...]) -> str | None:
    """Return the advice of the first violated limit; None if the value satisfies all.

    None and strings, such as "auto", have no limits. Infinity and NaN violate every limit.
    """
    if value is None or isinstance(value, str):
        return None
    values = value if isinstance(value, tuple) else (value,)
    finite = all(math.isfinite(v) for v in values if isinstance(v, float))
    for annotation in annotations:
        limit = as_limit(annotation)
        if limit is not None and not (finite and limit.holds(value)):
            return limit.advice
    return None


def as_limit(annotation: Any) -> Limit | None:
    """Convert an annotation of annotated_types to a `Limit`; None for annotations of other libraries.

    Raises:
        TypeError: a constraint of annotated_types without a rule here.
    """
    match annotation:
        case Limit():
            return annotation
        case Ge(low):
            return Limit(lambda v: v >= low, f"use at least {low}")
        case Gt(low):
            return Limit(lambda v: v > low, f"use more than {low}")
        case Interval(gt=None, ge=low, lt=None, le=high) if low is not None and high is not None:
            return Limit(lambda v: low <= v <= high, f"use {low} to {high}")
        case Interval(gt=None, ge=low, lt=high, le=None) if low is not None and high is not None:
            return Limit(lambda v: low <= v < high, f"use at least {low} and less than {high}")
        case Interval(gt=low, ge=None, lt=None, le=high) if low is not None and high is not None:
            return Limit(lambda v: low < v <= high, f"use more than {low} and at most {high}")
        case BaseMetadata() | GroupedMetadata():
            raise TypeError(f"no rule for {annotation}")
    return None


def ascending(values: tuple[float, ...]) -> bool:
    return all(v > 0 for v in values) and list(values) == sorted(values)


def are_rising_sizes(values: tuple[int, ...]) -> bool:
    return (
        len(values) > 1 and 8 <= values[0] and values[-1] <= MAX_SIDE and list(values) == sorted(set(values))
    )


def are_mask_values(values: tuple[int, ...]) -> bool:
    return (
        2 <= len(values) <= 255 and len(set(values)) == len(values) and 0 <= min(values) <= max(values) <= 255
    )


def are_colors(values: tuple[str, ...]) -> bool:
    known = {value.lower().removeprefix("#") for value in values if re.fullmatch("#?[0-9a-fA-F]{6}", value)}
    return 2 <= len(values) <= 255 and len(known) == len(values)


def is_jitter(values: tuple[float, ...]) -> bool:
    return len(values) in (1, 3, 4) and all(v >= 0 for v in values) and max(values[3:], default=0) <= 0.5


def are_shares(values: tuple[float, ...]) -> bool:
    return len(values) > 0 and all(0 <= v <= 1 for v in values)


def are_deviations(values: tuple[float, ...]) -> bool:
    return are_shares(values) and min(values) > 0


def are_weights(values: tuple[float, ...]) -> bool:
    return all(v >= 0 for v in values) and sum(values) > 0


def are_strides(values: tuple[int, ...]) -> bool:
    return len(values) > 0 and values[0] > 0 and list(values) == sorted(set(values))


def are_sides(values: tuple[float, ...]) -> bool:
    return len(values) > 0 and len(values) % 2 == 0 and all(v > 0 for v in values)
