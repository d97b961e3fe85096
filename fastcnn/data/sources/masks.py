"""Sources with masks: folders, Oxford-IIIT Pet, PASCAL VOC, the demo set.

Every mask is read once and the result cached, as headers are in `fastcnn.data.sources.headers`. So invalid
masks are known before the training starts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.decode import DecodeError
from fastcnn.data.sources.dataset import SYNTHETIC_SIZE, Source, Split
from fastcnn.data.sources.demo import CLASS_NAMES, ensure_demo
from fastcnn.data.sources.headers import Files, scan
from fastcnn.data.sources.label_files import (
    VOC_CLASSES,
    BadLabels,
    check_name,
    find_folders,
    make_source,
    open_voc,
    read_class_names,
)
from fastcnn.data.sources.layout import Phase
from fastcnn.data.sources.manifest import examine_once, file_stamps
from fastcnn.data.sources.torchvision import open_torchvision
from fastcnn.data.sources.walk import and_more, image_files
from fastcnn.data.targets import IGNORE, Masks, read_mask
from fastcnn.errors import UserError

MASKS_NAMED = ("demo", "synthetic", "oxford-iiit-pet", "voc2007", "voc2012")
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
"""Not .jpg: lossy compression changes class numbers."""
SLOW_MASKS = 2_000
"""Number of masks above which their examination is announced."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images and properties of their masks."""

    files: Files
    """N images."""
    masks: tuple[str, ...]
    """N paths."""
    sizes: np.ndarray
    """Height and width of the masks, int32 [N, 2]; 0 if unreadable."""
    present: np.ndarray
    """Values present in each mask, bool [N, 256]."""
    problems: dict[int, str]
    """Reason for each unreadable mask."""


def mask_source(settings: DataSettings, *, seed: int) -> Source:
    """Open `--data` as a source whose targets are masks.

    Args:
        settings: `data` is a name in `MASKS_NAMED`, or a folder of images and masks of the same names;
            `ignore_index` applies to a folder's masks.
        seed: seed of the validation split.

    Raises:
        UserError: no such data, a folder with an unexpected layout, or invalid masks with
            `--bad-labels stop`.
    """
    data, ignore_index = settings.data, settings.ignore_index
    root = check_name(data, MASKS_NAMED, settings.val_split)
    if data == "synthetic":
        return synthetic_mask_source()
    bad = BadLabels()
    if data in MASKS_NAMED:
        pairs, class_names, table, ignored = _named(data, Path(settings.data_root))
        remarks: list[str] = []
        phases: Iterable[Phase] = ("train", "val")
    else:
        folders = find_folders(root, "masks", settings)
        if not folders:
            raise UserError(
                f"--data {data}: no images with masks; expected {root}/train/images and {root}/train/masks, "
                f"or {root}/images/train and {root}/masks/train, each with val beside train, "
                f"or {root}/images and {root}/masks with --val-split 0.1"
            )
        matched = [_match(images, masks) for images, masks in folders.values()]
        phases = folders
        pairs = [found for found, _ in matched]
        remarks = [remark for _, found in matched for remark in found]
        class_names = _class_names(root, pairs[0], ignore_index)
        table, ignored = _table(range(len(class_names)), ignore_index), ignore_index
    splits = [_good(found, table, ignored, bad) for found in pairs]
    name = data if data in MASKS_NAMED else root.resolve().name
    return make_source(
        name,
        dict(zip(phases, splits)),
        class_names,
        settings=settings,
        seed=seed,
        remarks=(*remarks, *bad.apply(settings.bad_labels)),
    )


def _named(name: str, data_root: Path) -> tuple[list[Pairs], tuple[str, ...], np.ndarray, int]:
    """Return a named set's training and validation pairs, classes, table and ignored value."""
    if name == "demo":
        root = ensure_demo()
        pairs = [_match(root / phase, root / "masks" / phase)[0] for phase in ("train", "val")]
        return pairs, ("background", *CLASS_NAMES), _table(range(1 + len(CLASS_NAMES)), IGNORE), IGNORE
    key = f"{data_root.resolve()} {name}"
    if name == "oxford-iiit-pet":
        from torchvision.datasets import OxfordIIITPet

        pairs = []
        for part in ("trainval", "test"):
            data = open_torchvision(name, data_root, partial(OxfordIIITPet, data_root, split=part))
            images, masks = ([str(path) for path in paths] for paths in (data._images, data._segs))
            pairs.append(_examine(f"{key} {part}", images, masks))
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[[2, 1]] = 0, 1  # trimap values: 1 pet, 2 background, 3 border
        return pairs, ("background", "pet"), table, 3
    from torchvision.datasets import VOCSegmentation

    pairs = [
        _examine(f"{key} {d.image_set}", d.images, d.masks)
        for d in open_voc(name, VOCSegmentation, data_root)
    ]
    class_names = ("background", *VOC_CLASSES)
    return pairs, class_names, _table(range(len(class_names)), IGNORE), IGNORE


def _table(classes: Sequence[int], ignored: int) -> np.ndarray:
    """Return the table of a mask whose values are class numbers, except an ignored one."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[classes] = classes
    if 0 <= ignored < len(table):
        table[ignored] = IGNORE
    return table


def _match(images: Path, masks: Path) -> tuple[Pairs, tuple[str, ...]]:
    """Pair the images of a folder with the masks of the same names; return pairs and remarks."""
    of_name = {_stem(path, masks): path for path in reversed(image_files(masks, MASK_SUFFIXES))}
    paths = image_files(images)
    names = [_stem(path, images) for path in paths]
    found = [of_name.get(name) or str(masks / f"{name}.png") for name in names]
    left = sorted(of_name[name] for name in of_name.keys() - set(names))
    remarks = (f"skipped: {left[0]} has no image in {images}" + and_more(left),) if left else ()
    return _examine(f"{images.resolve()} {masks.resolve()}", paths, found), remarks


def _stem(path: str, root: Path) -> str:
    return os.path.splitext(path)[0][len(str(root)) + 1 :]


def _examine(key: str, images: Sequence[str], masks: Sequence[str]) -> Pairs:
    """Read image headers and masks; unchanged files come from the cache under `key`."""
    files = scan(f"{key} images", images)
    facts, problems = examine_once(
        f"{key} masks",
        masks,
        file_stamps(masks),
        columns=2 + 256 // 32,
        examine=lambda i: examine_mask(masks[i]),
        notice="examining {:,} masks, once",
        slow=SLOW_MASKS,
    )
    bits = np.ascontiguousarray(facts[:, 2:]).view(np.uint8)
    return Pairs(
        files=files,
        masks=tuple(masks),
        sizes=facts[:, :2],
        present=np.unpackbits(bits, axis=1).astype(bool),
        problems=problems,
    )


def examine_mask(path: str) -> tuple[int | str, ...]:
    """Return height and width of a mask, its values as 256 bits in 8 numbers, and its problem."""
    try:
        mask = read_mask(path)
    except DecodeError as error:
        return *(0,) * 10, str(error)
    present = np.array(Image.fromarray(mask).histogram()) > 0
    return *mask.shape, *np.packbits(present).view(np.int32).tolist(), ""


def _class_names(root: Path, train: Pairs, ignored: int) -> tuple[str, ...]:
    """Read classes.txt, else number the classes up to the largest value of the training masks."""
    listed = read_class_names(root / "classes.txt")
    if len(listed) > IGNORE:
        raise UserError(f"{root / 'classes.txt'}: {len(listed)} classes; masks can have {IGNORE} at most")
    known = (train.files.sizes > 0).all(axis=1)
    good = (train.sizes == train.files.sizes).all(axis=1) | ~known
    if listed:
        return listed
    if not good.any():  # reported later; until then no class is out of range
        return tuple(f"class {i}" for i in range(IGNORE))
    values = np.flatnonzero(train.present[good].any(axis=0))
    values = values[values != ignored]
    if values.max(initial=0) == 0:
        raise UserError(
            f"--data {root}: the training masks have one class only, beside {ignored}, which is ignored; "
            f"number the classes from 0, or name another value with --ignore-index"
        )
    if values[-1] >= IGNORE:
        path = train.masks[int(np.flatnonzero(good & train.present[:, values[-1]])[0])]
        raise UserError(f"{path}: class {values[-1]}; use numbers up to {IGNORE - 1}")
    return tuple(f"class {i}" for i in range(values[-1] + 1))


def _good(pairs: Pairs, table: np.ndarray, ignored: int, bad: BadLabels) -> Split:
    """Return the images with valid masks, and unreadable images; add invalid masks to `bad`."""
    classes = np.flatnonzero(table != IGNORE)
    strange = pairs.present.copy()
    strange[:, classes] = False
    if 0 <= ignored < strange.shape[1]:
        strange[:, ignored] = False
    other_size = (pairs.sizes != pairs.files.sizes).any(axis=1)
    suspect = (other_size | strange.any(axis=1)) & (pairs.files.sizes > 0).all(axis=1)
    for i in np.flatnonzero(suspect).tolist():
        problem = pairs.problems.get(i)
        if problem == os.strerror(errno.ENOENT):
            bad.add(pairs.files.name(i), f"no mask {pairs.masks[i]}")
        elif problem:
            bad.add(pairs.masks[i], problem)
        elif other_size[i]:
            (height, width), (h, w) = pairs.sizes[i].tolist(), pairs.files.sizes[i].tolist()
            bad.add(pairs.masks[i], f"{width} x {height} pixels, but its image has {w} x {h}")
        else:
            value, last = strange[i].argmax(), classes[-1]
            bad.add(pairs.masks[i], f"class {value}, but there are {len(classes)} ({classes[0]} to {last})")
    split = Split(np.zeros(len(pairs.masks), dtype=np.int64), pairs.files, None, Masks(table, pairs.masks))
    return split.take(np.flatnonzero(~suspect)) if suspect.any() else split


def synthetic_mask_source(train: int = 12_800, val: int = 1_280, classes: int = 21) -> Source:
    """Return 48 masks of random blocks, repeated; the images are made by the synthetic loader."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, classes, (48, 8, 8), dtype=np.uint8)
    masks = list(blocks.repeat(SYNTHETIC_SIZE // 8, axis=1).repeat(SYNTHETIC_SIZE // 8, axis=2))
    table = _table(range(classes), IGNORE)

    def split(count: int) -> Split:
        arrays = [masks[i % len(masks)] for i in range(count)]
        return Split(np.zeros(count, dtype=np.int64), annotations=Masks(table, arrays=arrays))

    return Source(
        name="synthetic",
        train=split(train),
        val=split(val),
        class_names=tuple(f"class {i}" for i in range(classes)),
    )
