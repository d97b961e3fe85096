"""Sources of labeled images in class folders.

A source lists the images with their sizes and labels; it decodes nothing.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcnn.config.settings import DataSettings
from fastcnn.data.reading import entries_of
from fastcnn.data.sources.dataset import Source, Split, native_size
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.layout import folders, is_leftover
from fastcnn.data.sources.parts import check_classes, find_parts
from fastcnn.data.sources.splits import check_shares, split_off
from fastcnn.data.sources.text import lines_of
from fastcnn.data.sources.walk import IMAGE_SUFFIXES, and_more, image_files, list_images
from fastcnn.errors import UserError

VAL_LISTS, TEST_LISTS = ("val.txt", "LOC_val_solution.csv"), ("test.txt",)
"""Lists of the images of a part without class folders, in it or beside it."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The class folders of the training images."""

    names: tuple[str, ...]
    numbers: dict[str, int]
    """Class number by name, in Unicode's composed form."""
    remarks: tuple[str, ...]


def read_folder(root: Path, settings: DataSettings, seed: int, name: str | None = None) -> Source:
    """Read class folders: in `train/` with `val/` or `test/` beside it, or alone with `val_split`.

    Parts are found whatever their case, usual name and wrappers (`fastcnn.data.sources.parts`). A `val/`
    without class folders needs a list, in `val/` or beside it: `val.txt` (a file name and a class number or
    name per line) or ImageNet's `LOC_val_solution.csv`.

    Args:
        seed: seed of the run, for the splits.

    Raises:
        UserError: an unexpected layout; the message names the remedy.
    """
    parts = find_parts(root)
    classes = _find_classes(root, parts.train)
    remarks = [*parts.remarks, *classes.remarks, *_left_out(parts.train)]
    # Lists of the parts without class folders; test images are often published without their classes.
    val, test = parts.val, parts.test
    val_list = val and _find_list(val, root, VAL_LISTS)
    test_list = test and _find_list(test, root, TEST_LISTS if val else (*TEST_LISTS, *VAL_LISTS))
    expected = "val/ or test/"
    if test is not None and test_list is None and not folders(test):
        remarks.append(f"skipped: {test} has neither class folders nor a list of its classes")
        expected = f"val/, or {test / 'test.txt'} with `FILE CLASS` a line"
        test = None
    check_shares(settings, val=_shown(val), test=_shown(test), expected=expected)
    train, found = _read_classes(parts.train, classes, settings)
    remarks += found
    held: list[Split | None] = []
    for folder, listed in ((val, val_list), (test, test_list)):
        split, found = (None, ()) if folder is None else _read_part(folder, listed, classes, settings)
        held.append(split)
        remarks += [*found, *(_left_out(folder) if folder is not None else ())]
    splits = split_off(train, settings, seed, val=held[0], test=held[1])
    return Source(
        name=name or root.resolve().name,
        train=splits.train,
        val=splits.val,
        test=splits.test,
        class_names=classes.names,
        native_size=native_size(splits.train),
        remarks=(*remarks, *splits.remarks),
    )


def _shown(folder: Path | None) -> str:
    return "" if folder is None else f"{folder.name}/"


def _find_classes(root: Path, train: Path) -> Classes:
    """Return the classes of the training folder; folders whose names are in two Unicode forms are one."""
    found = _class_folders(train)
    check_classes(found)
    present = [folder.name for folder in found]
    if not present:
        raise UserError(f"--data {root}: no class folders in {train}; expected {train}/CLASS/*.jpg")
    by_form: dict[str, list[str]] = {}
    for name in present:
        by_form.setdefault(_composed(name), []).append(name)
    names = tuple(same[0] for same in by_form.values())
    remarks = [
        f"one class in {len(same)} Unicode forms: {train / same[0]}"
        for same in by_form.values()
        if len(same) > 1
    ]
    by_case: dict[str, list[str]] = {}
    for name in names:
        by_case.setdefault(_composed(name).casefold(), []).append(name)
    remarks += [
        f"warning: the classes {' and '.join(same)} differ in case only; merge their folders if they are one"
        for same in by_case.values()
        if len(same) > 1
    ]
    if len(names) == 1:
        raise UserError(f"--data {root}: one class only, {names[0]}; classification needs two folders")
    return Classes(names=names, numbers={form: i for i, form in enumerate(by_form)}, remarks=tuple(remarks))


def _class_folders(root: Path) -> list[Path]:
    """Return the class folders, without links to a folder around them.

    Raises:
        UserError: a link to another class.
    """
    found = folders(root)
    links = {folder: folder.resolve() for folder in found if folder.is_symlink()}
    base = root.resolve()
    real = {base / folder.name: folder for folder in found if folder not in links}
    for link, target in links.items():
        if target in real:
            raise UserError(f"{link}: a link to {real[target]}, another class; remove one of them")
    around = (base, *base.parents)
    return [folder for folder in found if links.get(folder) not in around]


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form; macOS writes the decomposed one."""
    return unicodedata.normalize("NFC", name)


def _read_part(
    folder: Path, found: Path | None, classes: Classes, settings: DataSettings
) -> tuple[Split, tuple[str, ...]]:
    """Read a validation or test folder: class folders, or images with the list `found`."""
    if folders(folder):
        return _read_classes(folder, classes, settings)
    if found is None:
        raise UserError(
            f"{folder}: neither class folders nor a list; add {folder / 'val.txt'} with `FILE CLASS` a line"
        )
    return _read_flat(folder, found, classes, settings), ()


def _read_classes(root: Path, classes: Classes, settings: DataSettings) -> tuple[Split, tuple[str, ...]]:
    """Read class folders; return the split and remarks."""
    numbered = sorted((_number(folder, classes), folder) for folder in _class_folders(root))
    listing = list_images([folder for _, folder in numbered])
    for (_, folder), count in zip(numbered, listing.counts.tolist()):
        if not count:
            raise UserError(f"{folder}: a class folder without images; add some or remove it")
    labels = np.repeat(np.array([number for number, _ in numbered], dtype=np.int64), listing.counts)
    files = scan(str(root.resolve()), listing.paths, upright=settings.exif == "upright")
    return Split(labels, files), listing.remarks


def _number(folder: Path, classes: Classes) -> int:
    """Return the class number of a folder; UserError if the training images have no such class."""
    name = _composed(folder.name)
    if name not in classes.numbers:
        same = [n for n in classes.names if _composed(n).casefold() == name.casefold()]
        remedy = f"rename it to {same[0]}" if same else "add it there or remove it"
        raise UserError(f"{folder}: a class that train/ does not have; {remedy}")
    return classes.numbers[name]


def _find_list(folder: Path, root: Path, beside: Sequence[str]) -> Path | None:
    """Return the list of the classes of a folder's images: in it, or beside it or its wrappers in `root`."""
    outer = [parent for parent in folder.parents if parent == root or root in parent.parents]
    candidates = [folder / name for name in (*VAL_LISTS, *TEST_LISTS)]
    candidates += [parent / name for parent in outer for name in beside]
    return next((path for path in candidates if path.is_file()), None)


def _read_flat(root: Path, found: Path, classes: Classes, settings: DataSettings) -> Split:
    """Read a folder of images with the list `found` of their classes."""
    paths = _by_name(root)
    labels: dict[str, int] = {}
    for number, name, label in _listed(found):
        where = f"{found}, line {number}"
        index = classes.numbers.get(_composed(label))
        if index is None and label.isdecimal() and int(label) < len(classes.names):
            index = int(label)
        if index is None:
            raise UserError(f"{where}: {name} has the class {label!r}, which train/ does not have")
        key = _composed(name.replace("\\", "/")).removeprefix("./")
        path = paths.get(key) or paths.get(key.removeprefix(f"{root.name}/"))
        if path is None:
            raise UserError(f"{where}: {root / name} is not there; correct the list")
        if path in labels:
            raise UserError(f"{where}: {name} is listed twice; remove one of the lines")
        labels[path] = index
    unlisted = sorted(set(paths.values()) - labels.keys())
    if unlisted:
        raise UserError(f"{found}: {unlisted[0]} is not listed; add it or remove it ({len(unlisted)} in all)")
    numbers = np.fromiter(labels.values(), np.int64, len(labels))
    return Split(numbers, scan(str(root.resolve()), list(labels), upright=settings.exif == "upright"))


def _by_name(root: Path) -> dict[str, str]:
    """Return the paths of a folder's images by their names within it, with and without their suffixes."""
    paths: dict[str, str] = {}
    for path in image_files(root):
        name = _composed(path[len(str(root)) + 1 :].replace(os.sep, "/"))
        paths[name] = path
        paths.setdefault(os.path.splitext(name)[0], path)
    return paths


def _listed(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, file name and class of each line of a list of images."""
    for number, line in enumerate(lines_of(path), 1):
        if path.suffix == ".csv":  # ImageId,PredictionString; the class is the first word of the latter
            image, _, prediction = line.partition(",")
            words = [image, *prediction.split()[:1]] if number > 1 else []
        else:
            words = line.rsplit("\t" if "\t" in line else None, maxsplit=1)
        if not line.strip() or not words:
            continue
        if len(words) != 2:
            raise UserError(f"{path}, line {number}: {line.strip()!r} does not give a file and its class")
        yield number, words[0].strip(), words[1].strip()


def _left_out(root: Path) -> tuple[str, ...]:
    """Return remarks on skipped files and folders beside the class folders."""
    found = entries_of(root)
    hidden = sorted(entry.name for entry in found if is_leftover(entry.name) and entry.is_dir())
    loops = sorted({f.name for f in folders(root)} - {f.name for f in _class_folders(root)})
    stray = sorted(e.name for e in found if e.name.lower().endswith(IMAGE_SUFFIXES) and e.is_file())
    remarks = []
    if hidden:
        remarks.append(f"skipped: {root / hidden[0]}, hidden or left by a program" + and_more(hidden))
    if loops:
        remarks.append(f"skipped: {root / loops[0]}, a link to a folder around it" + and_more(loops))
    if stray and folders(root):
        remarks.append(f"skipped: {root / stray[0]} is in no class folder" + and_more(stray))
    return tuple(remarks)
