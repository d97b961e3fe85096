"""Find the training, validation and test folders of a data set, and the wrappers around them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcnn.data.reading import entries_of
from fastcnn.data.sources.layout import (
    FILLER_WORDS,
    PHASES,
    Phase,
    folders,
    is_leftover,
    phase_of,
    phases,
)
from fastcnn.data.sources.walk import IMAGE_SUFFIXES, and_more
from fastcnn.errors import UserError

MAX_WRAPPERS = 4
"""Folders in each other that hold nothing but the next one: an archive's own, twice, and `images`."""
COMPANIONS = frozenset(("masks", "labels", "annotations"))
"""Usual folders beside the images, which hold other targets."""
IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "jpegimages"))
ANNOTATION_FOLDERS = COMPANIONS | {"mask", "label", "segmentationclass", "gt", "groundtruth"}
"""Folders of data for other tasks; together with one of images they are no classes."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Folders of a data set by their use, without wrappers."""

    train: Path
    """The whole folder if it has no parts."""
    val: Path | None = None
    test: Path | None = None
    remarks: tuple[str, ...] = ()


def find_parts(root: Path) -> Parts:
    """Find the training, validation and test folders, whatever their case, usual name and wrappers.

    Raises:
        UserError: a folder that may be a part or a class.
    """
    inner = unwrap(root)
    remarks = [] if inner == root else [f"--data {root}: reading {inner}"]
    found = phases(inner)
    if not found:
        return Parts(train=inner, remarks=tuple(remarks))
    others = [f for f in folders(inner) if f not in found.values() and f.name.lower() not in COMPANIONS]
    others = [f for f in others if _holds_images(f)]
    _check_ambiguous(inner, found, others)
    if others:
        beside = f"skipped: {others[0]} is beside {found['train'].name}/"
        remarks.append(beside + and_more([folder.name for folder in others]))
    parts = {phase: _unwrap_part(folder) for phase, folder in found.items()}
    return Parts(train=parts["train"], val=parts.get("val"), test=parts.get("test"), remarks=tuple(remarks))


def unwrap(root: Path) -> Path:
    """Return the folder within wrappers: folders that hold one other and no images.

    Below the last wrapper lie parts or at least two folders, so a single class is none.
    """
    folder = root
    for _ in range(MAX_WRAPPERS):
        if phases(folder) or (len(folders(folder)) > 1 and _images_folder(folder) is None):
            return folder
        inner = _images_folder(folder) or _only_folder(folder)
        if inner is None:
            break
        folder = inner
    return root


def _unwrap_part(folder: Path) -> Path:
    """Return the folder within wrappers that repeat a part's name, as in `seg_train/seg_train/CLASS`."""
    for _ in range(MAX_WRAPPERS):
        inner = _only_folder(folder)
        if inner is None or not (phase_of(inner.name) or _is_filler(inner.name)):
            break
        folder = inner
    return folder


def _only_folder(folder: Path) -> Path | None:
    """Return the one folder within a folder without images; None otherwise."""
    inner = folders(folder)
    return inner[0] if len(inner) == 1 and not _has_images(folder) else None


def _images_folder(folder: Path) -> Path | None:
    """Return the folder `images` beside others that hold no image, such as `annotations`."""
    inner = folders(folder)
    named = [f for f in inner if _is_filler(f.name)]
    if len(named) != 1 or len(inner) < 2 or _has_images(named[0]) or _has_images(folder):
        return None
    return None if any(_holds_images(f) for f in inner if f != named[0]) else named[0]


def _is_filler(name: str) -> bool:
    return all(word in FILLER_WORDS for word in re.findall(r"[a-z]+|\d+", name.lower()) or ("",))


def _check_ambiguous(root: Path, found: dict[Phase, Path], others: list[Path]) -> None:
    """Raise UserError for folders that may be parts or classes."""
    named = ", ".join(f"{folder.name}/" for folder in found.values())
    beside = ", ".join(f"{folder.name}/" for folder in others[:3]) + (", ..." if len(others) > 3 else "")
    is_class = "train" in found and not folders(found["train"])
    folder = found.get("train") or next(iter(found.values()))
    if others and ("train" not in found or is_class):
        raise UserError(
            f"--data {root}: {named} beside {beside}: a part of the data, or a class? Move the class folders "
            f"into {root / 'train'}, or rename {folder.name}/ if it is a class"
        )
    if "train" not in found:
        raise UserError(
            f"--data {root}: {named} without train/; add {root / 'train'}, or train on it by --data {folder}"
        )


def check_classes(classes: Sequence[Path]) -> None:
    """Raise UserError if a part's name stands for a class folder, or if the parts lie within the classes.

    Folders of images and of masks are no classes either.
    """
    names = {folder.name.lower(): folder for folder in classes}
    images, annotations = sorted(names.keys() & IMAGE_FOLDERS), sorted(names.keys() & ANNOTATION_FOLDERS)
    if images and annotations:
        raise UserError(
            f"{names[images[0]]} and {names[annotations[0]].name}/ beside it: no classes; use --arch unet "
            "for masks or --arch yolo for boxes, or rename them if they are classes"
        )
    part = next((folder for folder in classes if phase_of(folder.name)), None)
    if part is not None:
        raise UserError(f"{part}: the name of a part of the data in place of a class; move or rename it")
    for folder in classes[:1]:
        inside = phases(folder)
        if len(inside) > 1:
            first = next(inside[phase] for phase in PHASES if phase in inside)
            moved = folder.parent / first.name / folder.name
            raise UserError(
                f"{first}: a part within a class; move its images to {moved}, and those of the other parts "
                "and classes alike"
            )


def _has_images(folder: Path) -> bool:
    return _any(folder, lambda entry: entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file())


def _holds_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or in those within."""
    return _has_images(folder) or any(_holds_images(f) for f in folders(folder) if not f.is_symlink())


def _any(folder: Path, condition: Callable[[os.DirEntry[str]], bool]) -> bool:
    return any(condition(entry) for entry in entries_of(folder) if not is_leftover(entry.name))
