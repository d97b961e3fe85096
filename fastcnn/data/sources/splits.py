"""Training, validation and held-out test images: the parts that a data set has, and shares split off it.

Every source splits here, so that `--val-split`, `--test-split`, `--split-seed` and `--group-by` mean the same
for class folders, tables, shards, masks and boxes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.walk import and_more
from fastcnn.data.targets import MultiLabels
from fastcnn.errors import UserError
from fastcnn.files import expand_user

WHOLE = 1.0
"""`val_split` of data that is only judged, which no flag can set: the validation images are those of its
validation part, else of its test part, else all images."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Images by their use."""

    train: Split
    val: Split
    test: Split | None = None
    """Held-out images, if any."""
    remarks: tuple[str, ...] = ()


def check_shares(settings: DataSettings, *, val: str = "", test: str = "", expected: str = "val/") -> None:
    """Check the shares to split off against the parts that a data set has, before its images are read.

    Args:
        val, test: names of the validation and the test part, such as "val/"; "" without one.
        expected: name of a validation part, for the message if there is none.

    Raises:
        UserError: a share of a part that is there, or nothing to validate on.
    """
    data = settings.data
    if val and settings.val_split not in (None, WHOLE):
        raise UserError(f"--val-split: {data} has {val}; omit it")
    if test and settings.test_split is not None:
        raise UserError(f"--test-split: {data} has {test}; omit it")
    if not val and not test and settings.val_split is None:
        raise UserError(f"--data {data}: nothing to validate on; add {expected}, or use --val-split 0.1")


def split_off(
    train: Split,
    settings: DataSettings,
    seed: int,
    *,
    val: Split | None = None,
    test: Split | None = None,
    groups: Sequence[object] | None = None,
) -> Splits:
    """Split `--val-split` and `--test-split` off the training images, stratified by class.

    Each class keeps a training image. Images of one group are on one side. Without `val` and `--val-split`,
    the images of `test` serve for validation. With `WHOLE` nothing is split off.

    Args:
        seed: seed of the run, used without `--split-seed`.
        val, test: parts that the data set has; `check_shares` has checked them.
        groups: group of each training image, such as its patient; None: by `--group-by`.

    Raises:
        UserError: too few images or groups, or a `--group-by` that does not group the images.
    """
    if settings.val_split == WHOLE:
        judged = next(part for part in (val, test, train) if part is not None)
        return Splits(train=train, val=judged, test=test)
    if val is None and settings.val_split is None:
        assert test is not None
        remark = "the test images serve for validation: hold them out with --val-split 0.1"
        return Splits(train=train, val=test, remarks=(remark,))
    shares = settings.val_split or 0.0, settings.test_split or 0.0
    if not any(shares):
        assert val is not None
        return Splits(train=train, val=val, test=test)
    if groups is None and settings.group_by is not None:
        groups = _groups(train, settings)
    group_of = _numbered(groups) if groups is not None else None
    seed = settings.split_seed if settings.split_seed is not None else seed
    several = train.annotations.values if isinstance(train.annotations, MultiLabels) else None
    parts = _assign(train.labels, group_of, shares, seed, several=several)
    _check_parts(parts, settings, group_of)
    taken = [train.take(np.flatnonzero(parts == part)) for part in range(3)]
    return Splits(
        train=taken[0],
        val=taken[1] if val is None else val,
        test=taken[2] if settings.test_split else test,
        remarks=() if group_of is None else _group_remarks(group_of, parts),
    )


def _assign(
    labels: np.ndarray,
    group_of: np.ndarray | None,
    shares: tuple[float, float],
    seed: int,
    *,
    several: np.ndarray | None = None,
) -> np.ndarray:
    """Return the part of each image: 0 training, 1 validation, 2 test; int8 [N].

    Args:
        labels: classes, int64 [N].
        group_of: group numbers, int64 [N]; None: each image is a group.
        shares: fractions of the images for validation and test.
        several: all labels of each image, 0 or 1, [N, C], of which `labels` is one.
    """
    rng = np.random.default_rng(seed)
    classes = labels if group_of is None else _main_classes(labels, group_of)
    group_of = np.arange(len(labels)) if group_of is None else group_of
    weights = np.bincount(group_of)
    place = np.empty(len(weights))  # relative position of each group in its shuffled class, 0 to 1
    for members in _by_class(classes):
        order = np.empty_like(members)
        order[rng.permutation(len(members))] = members
        ends = np.cumsum(weights[order])
        place[order] = (ends - weights[order] + rng.random()) / ends[-1]

    # The last group with images of a class stays in training.
    is_kept = np.zeros(len(weights), dtype=bool)
    for members in _by_class(labels):
        groups = group_of[members]
        is_kept[groups[place[groups].argmax()]] = True
    for column in several.T if several is not None else ():
        groups = group_of[column > 0]
        if len(groups) and not is_kept[groups].any():
            is_kept[groups[place[groups].argmax()]] = True
    order = np.argsort(place, kind="stable")
    free = order[~is_kept[order]]

    parts = np.zeros(len(weights), dtype=np.int8)
    for part, share in enumerate(shares, 1):
        wanted = max(1, round(share * len(labels))) if share else 0
        parts[_take(free, weights, wanted)] = part
        free = free[parts[free] == 0]
    return parts[group_of]


def _take(groups: np.ndarray, weights: np.ndarray, wanted: int) -> np.ndarray | list[int]:
    """Return the first groups with `wanted` images or nearly so; the smallest one if all are large."""
    if weights.max() == 1:  # a million images without groups
        return groups[:wanted]
    chosen, total = [], 0
    for group in groups.tolist():
        if total >= wanted:
            break
        if weights[group] < 2 * (wanted - total):  # nearer with it than without
            chosen.append(group)
            total += weights[group]
    if wanted and len(groups) and not chosen:
        chosen = [min(groups, key=lambda group: int(weights[group]))]
    return chosen


def _main_classes(labels: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """Return the class of most images of each group, int64 [G]."""
    classes = int(labels.max()) + 1
    pairs, counts = np.unique(group_of * classes + labels, return_counts=True)
    order = np.lexsort((counts, pairs // classes))
    last = np.flatnonzero(np.append(np.diff(pairs[order] // classes) != 0, True))
    return pairs[order][last] % classes


def _by_class(classes: np.ndarray) -> Iterable[np.ndarray]:
    """Return the indices of each class, by class."""
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)


def _groups(split: Split, settings: DataSettings) -> list[object]:
    """Return the group of each image by `--group-by`, applied to its path within the data folder."""
    flag = f"--group-by {settings.group_by!r}"
    pattern = re.compile(settings.group_by or "")
    groups: list[object] = []
    unmatched = []
    for i, name in enumerate(_names(split, settings)):
        found = pattern.search(name)
        key = found and (found[1] if pattern.groups else found[0])
        groups.append(i if key is None else key)
        if key is None:
            unmatched.append(name)
    if len(unmatched) == len(split):
        raise UserError(f"{flag}: matches no image, such as {unmatched[0]}; correct it or omit it")
    if unmatched:
        raise UserError(
            f"{flag}: does not match {unmatched[0]}{and_more(unmatched)}; write a pattern for all images"
        )
    return groups


def _names(split: Split, settings: DataSettings) -> Iterable[str]:
    """Yield the path of each image within the data folder, or its name in the shards."""
    files = split.files
    if files is None:
        raise UserError(f"--group-by: the images of {settings.data} have no files; omit it")
    if files.members is not None:
        yield from files.members
        return
    root = os.path.join(expand_user(settings.data, "--data"), "")
    for path in files.paths:
        yield path.removeprefix(root).replace(os.sep, "/")


def _numbered(groups: Sequence[object]) -> np.ndarray:
    """Number the groups in the order of their first images, int64 [N]."""
    numbers: dict[object, int] = {}
    return np.fromiter((numbers.setdefault(group, len(numbers)) for group in groups), np.int64, len(groups))


def _check_parts(parts: np.ndarray, settings: DataSettings, group_of: np.ndarray | None) -> None:
    if group_of is not None and group_of.max() == 0:
        raise UserError(
            "--group-by: all images are in one group, which cannot be split; "
            "name a part that differs, such as '(patient[0-9]+)'"
        )
    for part, flag in ((1, "val_split"), (2, "test_split")):
        share = getattr(settings, flag)
        if share is not None and not (parts == part).any():
            kept = "each class keeps an image for training" + ("" if group_of is None else " with its group")
            name = "--" + flag.replace("_", "-")
            raise UserError(f"{name} {share:g}: {kept}, and none is left; add images to {settings.data}")


def _group_remarks(group_of: np.ndarray, parts: np.ndarray) -> tuple[str, ...]:
    """Return a remark on the sizes of the parts, which groups make uneven."""
    names = ("for training", "for validation", "for the test")
    counts = [
        f"{len(np.unique(group_of[parts == part])):,} with {np.count_nonzero(parts == part):,} images {name}"
        for part, name in enumerate(names)
        if (parts == part).any()
    ]
    return (f"--group-by: {group_of.max() + 1:,} groups: {', '.join(counts)}",)
