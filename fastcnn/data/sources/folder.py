"""Sources of labeled images in class folders.

A source lists the images with their sizes and labels; it decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.layout import folders, is_leftover
from fastcnn.data.sources.walk import IMAGE_SUFFIXES, and_more, image_files
from fastcnn.errors import UserError


def read_folder(root: Path, val_split: float | None, seed: int, name: str | None = None) -> Source:
    """Read an image folder: `train/` with `val/` or `test/`, or class folders alone with a `val_split`.

    A `val/` without class folders needs a list, in `val/` or beside it: `val.txt` (a file name and a class
    number or name per line) or ImageNet's `LOC_val_solution.csv`.
    """
    train_root = root / "train" if (root / "train").is_dir() else root
    val_root = next((root / v for v in ("val", "validation", "valid", "test") if (root / v).is_dir()), None)
    if train_root is root:
        val_root = None
    class_names = tuple(d.name for d in folders(train_root))
    remarks = _left_out(train_root)
    if not class_names:
        raise UserError(f"--data {root}: no class folders in {train_root}; expected {train_root}/CLASS/*.jpg")
    if len(class_names) == 1:
        raise UserError(f"--data {root}: one class only, {class_names[0]}; classification needs two folders")
    train = _read_classes(train_root, class_names)
    if val_root is not None:
        if val_split is not None:
            raise UserError(f"--val-split: {root} has {val_root.name}/; omit it")
        val = _read_classes(val_root, class_names) if folders(val_root) else _read_flat(val_root, class_names)
    elif val_split is None:
        raise UserError(f"--data {root}: no val/ or test/ folder; add one, or add --val-split 0.1")
    else:
        train, val = split_by_class(train, val_split, seed)
    return Source(
        name=name or root.resolve().name,
        train=train,
        val=val,
        class_names=class_names,
        native_size=native_size(train),
        remarks=remarks + (_left_out(val_root) if val_root is not None else ()),
    )


def _read_classes(root: Path, class_names: tuple[str, ...]) -> Split:
    present = {d.name for d in folders(root)}
    unknown = sorted(present - set(class_names))
    if unknown:
        raise UserError(f"{root / unknown[0]}: a class that train/ does not have; add it there or remove it")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        if name not in present:
            continue
        found = image_files(root / name)
        if not found:
            raise UserError(f"{root / name}: a class folder without images; add some or remove it")
        files += found
        labels += [label] * len(found)
    return Split(np.asarray(labels, dtype=np.int64), scan(str(root.resolve()), files))


def _read_flat(root: Path, class_names: tuple[str, ...]) -> Split:
    """Read a folder of images with a list of their classes."""
    candidates = [d / n for n in ("val.txt", "test.txt", "LOC_val_solution.csv") for d in (root, root.parent)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{root}: neither class folders nor a list; add {root / 'val.txt'} with `FILE CLASS` a line"
        )
    index = {name: i for i, name in enumerate(class_names)}
    files, labels = [], []
    for number, name, label in _listed(found):
        where = f"{found}, line {number}"
        if label not in index and not (label.isdecimal() and int(label) < len(class_names)):
            raise UserError(f"{where}: {name} has the class {label!r}, which train/ does not have")
        if not (root / name).is_file():
            raise UserError(f"{where}: {root / name} is not there; correct the list")
        files.append(str(root / name))
        labels.append(index[label] if label in index else int(label))
    unlisted = sorted(set(image_files(root)) - set(files))
    if unlisted:
        raise UserError(f"{found}: {unlisted[0]} is not listed; add it or remove it ({len(unlisted)} in all)")
    return Split(np.asarray(labels, dtype=np.int64), scan(str(root.resolve()), files))


def _listed(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, file name and class of each line of a list of images."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix == ".csv":  # ImageId,PredictionString; the class is the first word of the latter
            image, _, prediction = line.partition(",")
            words = [f"{image}.JPEG", *prediction.split()[:1]] if number > 1 else []
        else:
            words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2:
            raise UserError(f"{path}, line {number}: {line.strip()!r} does not give a file and its class")
        yield number, words[0].strip(), words[1]


def split_by_class(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split off the fraction `share` for validation, stratified by class; return both parts."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(split))  # relative position of each image in its shuffled class, 0 to 1
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        place[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    count = min(max(1, round(share * len(split))), len(split) - 1)
    chosen = np.argsort(place, kind="stable")
    return split.take(np.sort(chosen[count:])), split.take(np.sort(chosen[:count]))


def _left_out(root: Path) -> tuple[str, ...]:
    """Return remarks on skipped files and folders beside the class folders."""
    hidden = sorted(d.name for d in root.iterdir() if d.is_dir() and is_leftover(d.name))
    stray = sorted(f.name for f in root.iterdir() if f.name.lower().endswith(IMAGE_SUFFIXES) and f.is_file())
    remarks = []
    if hidden:
        remarks.append(f"skipped: {root / hidden[0]} is hidden" + and_more(hidden))
    if stray and folders(root):
        remarks.append(f"skipped: {root / stray[0]} is in no class folder" + and_more(stray))
    return tuple(remarks)
