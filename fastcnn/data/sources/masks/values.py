"""Meaning of the values in masks: classes, the ignored value, blends of two classes.

Class numbers are taken as they are. 0 and 255 alone are two classes. Few values with gaps are classes in
order. An ambiguous set is an error whose advice names the values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastcnn.data.mask_files import StoredMasks
from fastcnn.data.targets import IGNORE
from fastcnn.errors import UserError

FEW_VALUES = 32
"""Number of values above which few must not make up nearly all pixels."""
COMMON_SHARE = 0.99
"""Fraction of the pixels that the common values make up."""
MIN_COMMON = 1 / 8
"""Least fraction of the values that are common, if there are more than `FEW_VALUES`."""
NOISE = 16
"""Largest change of a value in flat areas by lossy compression."""
MIN_NOISE_VALUES = 8
"""Least number of values that lossy compression adds."""
MIN_PEAK = 1 / 1000
"""Least share of the pixels of a value that is suggested as a class."""
MAX_DRAWN = 500
"""Number of drawn masks whose pixels are counted at most."""
SHOWN_CLASSES = 12
"""Number of classes up to which all are shown with their shares."""


@dataclass(frozen=True, kw_only=True)
class Census:
    """Values of a set of masks."""

    counts: np.ndarray
    """Number of pixels of each value, int64 [256]."""
    solid: np.ndarray
    """Values that fill 3 x 3 pixels somewhere, bool [256]; blends at borders do not."""

    @staticmethod
    def of(parts: Sequence[Census]) -> Census:
        """Build from the values of several sets."""
        counts = np.sum([part.counts for part in parts], axis=0)
        return Census(counts=counts, solid=np.any([part.solid for part in parts], axis=0))

    @property
    def present(self) -> list[int]:
        """Values that occur."""
        return np.flatnonzero(self.counts).tolist()

    def share(self, values: Sequence[int]) -> float:
        """Return the fraction of the pixels with these values."""
        return float(self.counts[list(values)].sum() / max(1, self.counts.sum()))


@dataclass(frozen=True, kw_only=True)
class MaskClasses:
    """Classes of masks."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    """Mask value of each class."""
    ignored: int | None
    """Mask value of pixels that are excluded; a class that has it stays empty."""
    rounded: dict[int, int] = field(default_factory=dict)
    """Values of blends, with the class value or the ignored value that they count as."""
    listed: bool = False
    """The values are listed, by a flag or a file."""
    remarks: tuple[str, ...] = ()

    @property
    def table(self) -> np.ndarray:
        """Class number or `IGNORE` of each value, uint8 [256]."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        if self.ignored is not None:
            table[self.ignored] = IGNORE
        table[list(self.rounded)] = table[list(self.rounded.values())]
        return table

    @property
    def allowed(self) -> np.ndarray:
        """Values that masks may have, bool [256]."""
        allowed = np.zeros(256, dtype=bool)
        allowed[[*self.values, *self.rounded]] = True
        if self.ignored is not None:
            allowed[self.ignored] = True
        return allowed

    @property
    def numbered(self) -> bool:
        """Values are class numbers."""
        return self.values == tuple(range(len(self.values)))


def numbered_classes(names: Sequence[str], ignored: int) -> MaskClasses:
    """Return classes whose values are their numbers."""
    return MaskClasses(names=tuple(names), values=tuple(range(len(names))), ignored=ignored)


def listed_classes(
    values: Sequence[int], names: Sequence[str], ignored: int, every: Census, origin: str
) -> MaskClasses:
    """Return the classes of listed values; blends of two of them count as the nearest one.

    Args:
        names: a name for each value, or none.
        every: values of all masks.
        origin: flag or file that lists the values.

    Raises:
        UserError: another number of names.
    """
    if names and len(names) != len(values):
        raise UserError(
            f"{origin}: {len(values)} classes, but {len(names)} class names; list a name for each"
        )
    kept = ignored if ignored not in values else None
    anchors = sorted({*values, ignored} if every.counts[ignored] else values)
    others = [value for value in every.present if value not in anchors and value != kept]
    rounded = {
        value: min(anchors, key=lambda anchor: abs(anchor - value))
        for value in others
        if _is_blend(value, anchors, every, len(others))
    }
    remark = (
        f"masks: {len(rounded)} other values, {_share(every.share(list(rounded)))} of the pixels, count as "
        f"the nearest of {_listing(anchors)}"
    )
    return MaskClasses(
        names=tuple(names) or _names(values),
        values=tuple(values),
        ignored=kept,
        rounded=rounded,
        listed=True,
        remarks=(remark,) if rounded else (),
    )


def _is_blend(value: int, anchors: Sequence[int], every: Census, others: int) -> bool:
    """Return whether a value comes from anti-aliasing or lossy compression of listed ones."""
    low = max((anchor for anchor in anchors if anchor < value), default=None)
    high = min((anchor for anchor in anchors if anchor > value), default=None)
    if low is not None and high is not None and not every.solid[value]:
        return True
    gap = min(b - a for a, b in itertools.pairwise(anchors))
    nearest = min(abs(anchor - value) for anchor in anchors)
    return others >= MIN_NOISE_VALUES and nearest <= min(NOISE, gap / 8)


def named_classes(names: Sequence[str], ignored: int, train: Census, data: str) -> MaskClasses:
    """Return the classes of a list of names: numbered from 0, or as many other values in order.

    Raises:
        UserError: blends of values; the message begins with `data`.
    """
    if len(names) == 1:
        raise UserError(
            f"{data}: one class only is listed, {names[0]}; list the background too, a line before it"
        )
    present = train.present
    values = [value for value in present if value != ignored]
    if not any(0 < value < len(names) for value in values):
        for found in (present, values):
            if len(found) == len(names) and found[-1] >= len(names):
                kept = ignored if ignored not in found else None
                return MaskClasses(
                    names=tuple(names), values=tuple(found), ignored=kept, remarks=(_in_order(found),)
                )
    if values and values[-1] >= len(names):
        _check_blends(train, data, classes=len(names))
    return numbered_classes(names, ignored)


def found_classes(ignored: int, train: Census, data: str) -> MaskClasses:
    """Return the classes of the values in the training masks.

    Raises:
        UserError: one class only, blends of values, or an ambiguous 255; the message begins with `data`.
    """
    present = train.present
    values = [value for value in present if value != ignored]
    if present == [0, 255] and ignored == IGNORE:
        remark = "masks: 0 and 255 are two classes, as there are no other values"
        return MaskClasses(names=_names(present), values=(0, 255), ignored=None, remarks=(remark,))
    if len(values) < 2:
        raise UserError(_one_class(present, ignored, data))
    _check_blends(train, data)
    if is_numbered(values):
        return numbered_classes(_names(range(values[-1] + 1)), ignored)
    if ignored == IGNORE and IGNORE in present:
        raise UserError(
            f"{data}: the training masks have the values {_listing(present)}; write --mask-values "
            f"{_words(present)} if 255 is a class, or --mask-values {_words(values)} to ignore it"
        )
    return MaskClasses(
        names=_names(values), values=tuple(values), ignored=ignored, remarks=(_in_order(values),)
    )


def is_numbered(values: Sequence[int]) -> bool:
    """Return whether most numbers up to the largest value occur, so that values are class numbers."""
    return values[-1] < IGNORE and 2 * len(values) > values[-1] + 1


def _one_class(present: Sequence[int], ignored: int, data: str) -> str:
    if len(present) == 2:
        value = next(value for value in present if value != ignored)
        return (
            f"{data}: the training masks have one class only, {value}, beside {ignored}, which is ignored; "
            f"write --mask-values {_words(present)} to make both of them classes"
        )
    return (
        f"{data}: all pixels of the training masks have the value {present[0]}; segmentation needs two "
        f"classes: add masks with another value"
    )


def _check_blends(census: Census, data: str, classes: int = 0) -> None:
    """Raise UserError if most values look like blends of few; values below `classes` are none."""
    present = census.present
    solid = [value for value in present if census.solid[value]]
    many = len(present) > FEW_VALUES
    if many and 2 * len(solid) >= len(present):
        _check_common(census, data)
        return
    between = [value for value in present if solid and solid[0] < value < solid[-1]]
    blends = [value for value in between if value >= classes and not census.solid[value]]
    if not many and (not blends or is_numbered([value for value in present if value != IGNORE])):
        return
    peaks = _peaks(census) if many else solid
    if len(peaks) < 2:
        raise UserError(
            f"{data}: the training masks have {len(present)} values and no areas of one value, as photos; "
            f"use masks with a class number for each pixel"
        )
    shares = ", ".join(f"{peak} ({_share(census.share([peak]))})" for peak in peaks)
    others = sorted(set(present) - set(peaks))
    keep = "" if many else f", or --mask-values {_words(present)} if each value is a class"
    raise UserError(
        f"{data}: the training masks have areas of {shares}; {len(others)} other values "
        f"({_share(census.share(others))}) look like borders smoothed by anti-aliasing or JPEG: write "
        f"--mask-values {_words(peaks)} to take them as the nearest of these{keep}"
    )


def _check_common(census: Census, data: str) -> None:
    """Raise UserError if few of many values make up nearly all pixels."""
    present = census.present
    order = sorted(present, key=lambda value: -census.counts[value])
    sums = census.counts[order].cumsum()
    common = order[: int(np.searchsorted(sums, COMMON_SHARE * sums[-1])) + 1]
    if len(common) >= MIN_COMMON * len(present):
        return
    shares = ", ".join(f"{value} ({_share(census.share([value]))})" for value in common)
    raise UserError(
        f"{data}: the training masks have {len(present)} values, but few are common: {shares}; correct the "
        f"others, or name the classes from 0 to {present[-1]} in classes.txt, a line each"
    )


def _peaks(census: Census) -> list[int]:
    """Return the solid values that are not close to a more common one."""
    solid = np.flatnonzero(census.solid & (census.counts >= MIN_PEAK * census.counts.sum()))
    peaks: list[int] = []
    for value in sorted(solid.tolist(), key=lambda v: -census.counts[v]):
        if all(abs(value - peak) > NOISE for peak in peaks):
            peaks.append(value)
    return sorted(peaks)


def drawn_census(masks: StoredMasks, count: int) -> Census:
    """Return the values of masks that are drawn; of `MAX_DRAWN` random ones if there are more.

    Args:
        count: number of masks.
    """
    chosen = np.random.default_rng(0).permutation(count)[:MAX_DRAWN]
    counts = [np.bincount(masks.read(i).ravel(), minlength=256) for i in chosen.tolist()]
    return Census(
        counts=np.sum([np.zeros(256, dtype=np.int64), *counts], axis=0), solid=np.ones(256, dtype=bool)
    )


def describe(classes: MaskClasses, train: Census, of: str = "training pixels") -> str:
    """Return a line with the share of the training pixels of each class."""
    table = classes.table
    counts = np.bincount(table, weights=train.counts, minlength=256)
    total = counts.sum()
    if not total:
        return f"{of}: none"
    shares = [(name, counts[i] / total) for i, name in enumerate(classes.names)]
    empty = [name for name, share in shares if not share]
    shown = [(name, share) for name, share in shares if share]
    text = ""
    if len(shown) > SHOWN_CLASSES:
        text = f"{len(shown)} classes, most common first: "
        shown = sorted(shown, key=lambda pair: -pair[1])
        shown = [*shown[: SHOWN_CLASSES - 2], ("...", -1), shown[-1]]
    text += ", ".join(name if share < 0 else f"{name} {_share(share)}" for name, share in shown)
    if counts[IGNORE]:
        text += f"; {_share(counts[IGNORE] / total)} ignored"
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        text += f"; no pixels of {', '.join(empty[:3])}{more}"
    return f"{of}: {text}"


def _share(share: float) -> str:
    return "less than 0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%"


def _in_order(values: Sequence[int]) -> str:
    return f"masks: the values {_listing(values)} are numbered in order, from class 0"


def _names(values: Sequence[int]) -> tuple[str, ...]:
    if list(values) == list(range(len(values))):
        return tuple(f"class {i}" for i in values)
    return tuple(f"class {i} (value {value})" for i, value in enumerate(values))


def _words(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _listing(values: Sequence[int]) -> str:
    words = [str(value) for value in values]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
