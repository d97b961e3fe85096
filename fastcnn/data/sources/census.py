"""Lines about a data set for the start of a run: its classes, rare ones, and images on both sides of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.sources.headers import Files
from fastcnn.data.sources.manifest import examine_once, file_stamps
from fastcnn.data.targets import Boxes, Masks

NAMED_CLASSES = 10
"""Number of classes up to which all are named."""
COMPARED_FILES, COMPARED_BYTES = 100_000, 512 << 20
"""Files whose contents are compared at most: some seconds, once."""
SLOW_DIGESTS = 20_000
"""Number of files above which their comparison is announced."""


def with_census(source: Source, key: str) -> Source:
    """Return the source with its counts, and warnings, in front of its remarks.

    Args:
        key: name of the data set, for the cache.
    """
    parts = {"validation": source.val} | ({"test": source.test} if source.test is not None else {})
    compared = [
        line
        for phase, split in parts.items()
        if split is not source.train  # all images are validated, and none is trained on
        for line in same_images(source.train, split, phase, key)
    ]
    return dataclasses.replace(source, remarks=(*count_lines(source), *source.remarks, *compared))


def count_lines(source: Source) -> list[str]:
    """Return a line with the classes and the numbers of images, and warnings about rare classes."""
    names, train, val = source.class_names, source.train, source.val
    shown = f" ({', '.join(names)})" if len(names) <= NAMED_CLASSES else ""
    images = f"{len(train):,} images for training, {len(val):,} for validation"
    if source.test is not None:
        images += f", {len(source.test):,} held out for the test"
    line = f"{len(names):,} {'class' if len(names) == 1 else 'classes'}{shown}"
    if isinstance(train.annotations, Masks):
        return [f"{line}: {images}"]
    one, what = ("box", "boxes") if isinstance(train.annotations, Boxes) else ("image", "images")
    counts, in_val = (_per_class(split, len(names)) for split in (train, val))
    least, most = int(counts.argmin()), int(counts.argmax())
    spread = f"{counts[most]:,}"
    if counts[least] < counts[most]:
        spread = f"{counts[least]:,} ({names[least]}) to {counts[most]:,} ({names[most]})"
    rare = {
        f"without training {what}": counts == 0,
        f"with one training {one} only": counts == 1,
        f"without validation {what}": in_val == 0,
    }
    warnings = [
        f"warning: {_counted(np.flatnonzero(found).tolist(), names)} {why}"
        for why, found in rare.items()
        if found.any()
    ]
    each = "" if len(names) == 1 else " each"
    return [f"{line}: {spread} training {what}{each}; {images}", *warnings]


def _per_class(split: Split, count: int) -> np.ndarray:
    """Return the number of images, or of boxes that are no crowds, of each class, [count]."""
    if not isinstance(split.annotations, Boxes):
        return split.class_counts(count)
    values = split.annotations.values
    return np.bincount(values[values[:, 5] == 0, 0].astype(np.int64), minlength=count)


def _counted(numbers: Sequence[int], names: Sequence[str]) -> str:
    listed = ", ".join(names[i] for i in numbers[:NAMED_CLASSES])
    more = f" and {len(numbers) - NAMED_CLASSES:,} more" if len(numbers) > NAMED_CLASSES else ""
    return f"{len(numbers):,} {'class' if len(numbers) == 1 else 'classes'} ({listed}{more})"


def same_images(train: Split, other: Split, phase: str, key: str) -> list[str]:
    """Return a line about files of another part whose contents are a training image's; none without any.

    Only files of the same length and size in pixels are read. Contents are digested once, and cached. Beyond
    `COMPARED_FILES` or `COMPARED_BYTES` a random part of the files is compared, which the line says.

    Args:
        phase: name of the other part.
        key: name of the data set, for the cache.
    """
    if train.files is None or other.files is None:
        return []
    ours, theirs, left = _candidates(train.files, other.files)
    if left == len(other):
        return [f"{phase} images not compared with training images: too many files have the same size"]
    compared = f" (of {len(other) - left:,} compared)" if left else ""
    digests = _digests(train.files, ours, f"{key} training contents for {phase}")
    twins = {digest: i for i, digest in zip(ours.tolist(), digests) if digest is not None}
    digests = _digests(other.files, theirs, f"{key} {phase} contents")
    same = [(i, twins[digest]) for i, digest in zip(theirs.tolist(), digests) if digest in twins]
    if not same:
        return [f"no {phase} image is also a training image{compared}"] if left else []
    (i, twin), count = same[0], len(same)
    images = (
        f"{phase} image is also a training image"
        if count == 1
        else f"{phase} images are also training images"
    )
    return [
        f"warning: {count:,} {images}{compared}, such as {other.name(i)}, the same as {train.name(twin)}; "
        "remove them from one side, or the accuracy is too high"
    ]


def _candidates(train: Files, other: Files) -> tuple[np.ndarray, np.ndarray, int]:
    """Find files that may be equal, by their lengths and sizes in pixels.

    Returns:
        Their indices in both parts, and the number of others that are too many to compare.
    """
    sides = [_keys(train), _keys(other)]
    shared = np.intersect1d(sides[0], sides[1])
    shared = shared[shared != 0]
    if not len(shared):
        return np.empty(0, np.int64), np.empty(0, np.int64), 0
    places = [np.searchsorted(shared, keys).clip(max=len(shared) - 1) for keys in sides]
    members = [np.flatnonzero(shared[place] == keys) for place, keys in zip(places, sides)]
    # Numbers of files and bytes by key, and the keys within the limits.
    files, size = np.zeros(len(shared)), np.zeros(len(shared))
    for encoded, place, member in zip((train, other), places, members):
        assert encoded.lengths is not None
        files += np.bincount(place[member], minlength=len(shared))
        size += np.bincount(place[member], encoded.lengths[member], len(shared))
    order = np.random.default_rng(0).permutation(len(shared))
    fits = (files[order].cumsum() <= COMPARED_FILES) & (size[order].cumsum() <= COMPARED_BYTES)
    is_chosen = np.zeros(len(shared), dtype=bool)
    is_chosen[order[fits]] = True
    ours, theirs = (member[is_chosen[place[member]]] for place, member in zip(places, members))
    return ours, theirs, len(members[1]) - len(theirs)


def _keys(files: Files) -> np.ndarray:
    """Return a number for each file's length and size in pixels, uint64 [N]; 0 for unreadable files."""
    if files.lengths is None:
        return np.zeros(len(files), dtype=np.uint64)
    height, width = files.sizes.astype(np.uint64).T
    keys = (files.lengths.astype(np.uint64) << np.uint64(32)) ^ (height << np.uint64(16)) ^ width
    return np.where((height > 0) & (files.lengths > 0), keys, np.uint64(0))


def _digests(files: Files, chosen: np.ndarray, key: str) -> list[bytes | None]:
    """Return the digest of the contents of some files; None for unreadable ones."""
    encoded = files.take(chosen)
    stamps = file_stamps(encoded.paths)
    if encoded.spans is not None:
        stamps = np.column_stack([stamps, encoded.spans])
    facts, problems = examine_once(
        key,
        [encoded.name(i) for i in range(len(encoded))],
        stamps,
        columns=4,
        examine=lambda i: _digest(encoded, i),
        notice="comparing the contents of {:,} images, once",
        slow=SLOW_DIGESTS,
    )
    return [None if i in problems else row.tobytes() for i, row in enumerate(facts)]


def _digest(files: Files, index: int) -> tuple[int | str, ...]:
    """Return the digest of a file's contents as 4 numbers, and its problem ("" if none)."""
    try:
        digest = hashlib.blake2b(files.read(index).tobytes(), digest_size=16).digest()
    except OSError as error:
        return 0, 0, 0, 0, error.strerror or "unreadable"
    return *np.frombuffer(digest, dtype=np.int32).tolist(), ""
