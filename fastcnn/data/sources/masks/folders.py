"""Find the images of a folder and their masks: usual layouts, whatever the case of their names.

Layouts: `train/images` with `train/masks`; `images/train` with `masks/train`; `train` with `train_masks`;
`images` with `masks`; masks beside their images, as `a.jpg` with `a_mask.png`; PASCAL VOC's `JPEGImages` with
`SegmentationClass`. All may lie in a folder of their own within the given one.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastcnn.data.reading import refuse
from fastcnn.data.sources.layout import PHASES, Phase, check_unique, folders, phases
from fastcnn.data.sources.text import lines_of
from fastcnn.data.sources.walk import IMAGE_SUFFIXES, and_more, image_files
from fastcnn.errors import UserError

IMAGE_FOLDERS = (
    *(
        "images",
        "image",
        "imgs",
        "img",
        "JPEGImages",
        "photos",
        "pictures",
        "leftImg8bit",
        "rgb",
        "inputs",
        "input",
    ),
    *("originals", "original"),
)
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "SegmentationClassPNG"),
    *("SegmentationClass", "segmentations", "segmentation", "gtFine", "gt", "ground_truth", "ground truth"),
    *("groundtruth", "targets", "target", "annot", "annots", "ann"),
)
"""Usual names of the folders, most usual first."""
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg")
FORMS = (
    *(("", ""), ("", "_mask"), ("", "_masks"), ("", "-mask"), ("", "_L"), ("", "_label"), ("", "_labels")),
    *(("", "_gt"), ("", "_GT"), ("", "_seg"), ("", "_segmentation"), ("", "_anno"), ("", "_annotation")),
    *(("_sat", "_mask"), ("_image", "_mask"), ("_img", "_mask"), ("_image", "_label"), ("_rgb", "_mask")),
    *(("_leftImg8bit", "_gtFine_labelTrainIds"), ("_leftImg8bit", "_gtFine_labelIds")),
)
"""Ends of the names of an image and its mask."""
LISTS_OF_VOC = "ImageSets/Segmentation"
MAX_DEPTH = 3
"""Folders that hold nothing but one folder are passed, up to this number."""


@dataclass(kw_only=True)
class Pairing:
    """Images of a phase and the paths of their masks."""

    folder: Path
    """Folder of the images."""
    masks_folder: Path
    images: Sequence[str]
    masks: Sequence[str]
    """Path of the mask of each image; a missing one's path if there is none."""
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MaskFolders:
    """Images with masks in a folder."""

    base: Path
    """The folder that holds them, `--data` or one within it."""
    phases: dict[Phase, Pairing]
    """Pairs of each phase; training alone if the folder has no phases."""


def find_masks(root: Path) -> MaskFolders | None:
    """Find the images with masks in a folder; None if the layout is unknown."""
    for base in bases(root):
        found = _by_phase(base) or _by_kind(base)
        if found:
            check_unique(root, (folder for both in found.values() for folder in both))
            pairs = {phase: pair_files(*both) for phase, both in found.items()}
            return MaskFolders(base, _voc_lists(base, pairs["train"]) or pairs)
    for base in bases(root):
        if pair_files(base, base).images:
            return MaskFolders(base, {"train": pair_files(base, base)})
    return None


Both = tuple[Path, Path]
"""Folders of images and of their masks, which may be the same."""


def bases(root: Path) -> Iterator[Path]:
    """Yield a folder, then the one that alone lies within it, and so on."""
    for _ in range(MAX_DEPTH):
        yield root
        inner = folders(root)
        if len(inner) != 1:
            return
        root = inner[0]


def _by_phase(base: Path) -> dict[Phase, Both]:
    found: dict[Phase, Both] = {}
    for phase, folder in sorted(phases(base).items(), key=_order):
        both = next(filter(None, map(_within, bases(folder))), None) or _beside(base, folder)
        if both is None and pair_files(folder, folder).images:
            both = folder, folder
        if both:
            found[phase] = both
    return found if "train" in found else {}


def _order(item: tuple[Phase, Path]) -> int:
    return PHASES.index(item[0])


def _within(folder: Path) -> Both | None:
    images, masks = _child(folder, IMAGE_FOLDERS), _child(folder, MASK_FOLDERS)
    return (images, masks) if images and masks else None


def _beside(base: Path, folder: Path) -> Both | None:
    """Return the folders `train` or `train_images`, and `train_masks` beside it."""
    words = "|".join(IMAGE_FOLDERS)
    stem = re.sub(rf"^({words})[-_ .]|[-_ .]?({words})$", "", folder.name, flags=re.IGNORECASE)
    names = [
        name
        for word in MASK_FOLDERS
        for mark in ("_", "-", " ", "")
        for name in (f"{stem}{mark}{word}", f"{word}{mark}{stem}")
    ]
    masks = _child(base, names)
    return (folder, masks) if masks else None


def _by_kind(base: Path) -> dict[Phase, Both]:
    both = _within(base)
    if both is None:
        return {}
    images, masks = map(phases, both)
    found: dict[Phase, Both] = {
        phase: (folder, masks[phase])
        for phase, folder in sorted(images.items(), key=_order)
        if phase in masks
    }
    return found if "train" in found else {"train": both}


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first folder of these names that holds images, else the one with the first name."""
    present = {inner.name.lower(): inner for inner in reversed(folders(folder))}
    found = (present[name.lower()] for name in names if name.lower() in present)
    return next((path for path in found if _has_images(path)), present.get(names[0].lower()))


def _has_images(folder: Path) -> bool:
    files = (name.lower() for _, _, names in os.walk(folder, onerror=refuse) for name in names)
    return any(name.endswith(IMAGE_SUFFIXES) for name in files)


def _voc_lists(base: Path, pairing: Pairing) -> dict[Phase, Pairing]:
    """Share images by the lists in `ImageSets/Segmentation`; none without a list of training images."""
    lists = {path.stem.lower(): path for path in sorted(base.glob(f"{LISTS_OF_VOC}/*.txt"))}
    train = lists.get("train") or lists.get("trainval")
    if train is None:
        return {}
    found: dict[Phase, Pairing] = {"train": _of_list(train, pairing)}
    others: tuple[Phase, ...] = ("val", "test")
    for phase in others:
        if phase in lists and lists[phase] != train:
            part = _of_list(lists[phase], pairing)
            if any(map(os.path.exists, part.masks)):
                found[phase] = part
    return found


def _of_list(path: Path, pairing: Pairing) -> Pairing:
    """Return the pairs of the images that a list names, in its order."""
    place = {_stem(image, pairing.folder): i for i, image in enumerate(pairing.images)}
    lines = [(number, line.strip()) for number, line in enumerate(lines_of(path), 1) if line.strip()]
    for number, name in lines:
        if name not in place:
            raise UserError(
                f"{path}, line {number}: {name} is not in {pairing.folder}; add it or remove the line"
            )
    chosen = [place[name] for _, name in lines]
    return dataclasses.replace(
        pairing,
        images=[pairing.images[i] for i in chosen],
        masks=[pairing.masks[i] for i in chosen],
        remarks=[],
    )


def pair_files(images: Path, masks: Path) -> Pairing:
    """Pair the images of a folder with the masks of the same names, or of the usual ends of names."""
    together = images == masks
    found = list(image_files(images))
    mask_files = sorted(image_files(masks, MASK_SUFFIXES), key=_lossy)
    of_name = {_stem(path, masks): path for path in reversed(mask_files)}
    names = [_stem(path, images) for path in found]
    forms = FORMS[1:] if together else FORMS
    form, count = _best_form(names, of_name, forms)
    if together:
        if not count:
            return Pairing(folder=images, masks_folder=masks, images=[], masks=[])
        of_name = {name: path for name, path in of_name.items() if name.endswith(form[1])}
        kept = [i for i, name in enumerate(names) if name not in of_name]
        found, names = [found[i] for i in kept], [names[i] for i in kept]
    wanted = [_mask_name(name, form) for name in names]
    paths = [of_name.get(name) or str(masks / f"{name}.png") for name in wanted]
    left = sorted(of_name[name] for name in of_name.keys() - set(wanted))
    remarks = [f"skipped: {left[0]} has no image in {images}" + and_more(left)] if left else []
    return Pairing(folder=images, masks_folder=masks, images=found, masks=paths, remarks=remarks)


def _best_form(
    names: Sequence[str], masks: Container[str], forms: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], int]:
    """Return the ends of names by which most images have a mask, and their number."""
    best, most = forms[0], 0
    for form in forms:
        count = sum(_mask_name(name, form) in masks for name in names)
        if count > most:
            best, most = form, count
        if count == len(names):
            break
    return best, most


def _mask_name(name: str, form: tuple[str, str]) -> str:
    return name.removesuffix(form[0]) + form[1]


def _lossy(path: str) -> bool:
    return path.lower().endswith((".jpg", ".jpeg"))


def _stem(path: str, root: Path) -> str:
    return os.path.splitext(path)[0][len(str(root)) + 1 :]
