"""Sources with masks: folders, Oxford-IIIT Pet, PASCAL VOC, the demo set.

Every mask is read once and the result cached, as headers are in `fastcnn.data.sources.headers`. So invalid
masks are known before the training starts.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fastcnn.config.settings import DataSettings
from fastcnn.data.decode import TRANSPOSED, DecodeError
from fastcnn.data.mask_files import COLOR_PROBLEM, MaskArrays, MaskFiles, Palette, colors_of
from fastcnn.data.sources.dataset import SYNTHETIC_SIZE, Source, Split
from fastcnn.data.sources.demo import CLASS_NAMES, ensure_demo
from fastcnn.data.sources.headers import Files, scan
from fastcnn.data.sources.label_files import (
    VOC_CLASSES,
    BadLabels,
    check_name,
    check_parts,
    make_source,
    open_voc,
)
from fastcnn.data.sources.layout import Phase
from fastcnn.data.sources.manifest import examine_once, file_stamps
from fastcnn.data.sources.masks.class_list import ClassList, find_class_list
from fastcnn.data.sources.masks.folders import MaskFolders, bases, find_masks, pair_files
from fastcnn.data.sources.masks.outline_sets import OutlineSet, read_outline_set
from fastcnn.data.sources.masks.values import (
    MAX_DRAWN,
    Census,
    MaskClasses,
    describe,
    drawn_census,
    found_classes,
    listed_classes,
    named_classes,
    numbered_classes,
)
from fastcnn.data.sources.torchvision import open_torchvision
from fastcnn.data.targets import IGNORE, Masks
from fastcnn.errors import UserError
from fastcnn.files import expand_user

MASKS_NAMED = ("demo", "synthetic", "oxford-iiit-pet", "voc2007", "voc2012")
SLOW_MASKS = 2_000
"""Number of masks above which their examination is announced."""
MAX_COLOR_MASKS = 200
"""Number of masks whose colors are listed if there is no palette."""
MAX_LISTED_COLORS = 32


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images and properties of their masks."""

    files: Files
    """N images."""
    stored: MaskFiles
    """N masks."""
    sizes: np.ndarray
    """Height and width of the masks, int32 [N, 2]; 0 if unreadable."""
    counts: np.ndarray
    """Number of pixels of each value in each mask, int32 [N, 256]."""
    solid: np.ndarray
    """Values that fill 3 x 3 pixels somewhere in a mask, bool [N, 256]."""
    problems: dict[int, str]
    """Reason for each unreadable mask."""

    @property
    def tells(self) -> np.ndarray:
        """Rotated images whose size shows that their masks are upright, bool [N]."""
        if self.files.orientations is None:
            return np.zeros(len(self.sizes), dtype=bool)
        swaps = (self.files.orientations >= TRANSPOSED) & (self.sizes[:, 0] != self.sizes[:, 1])
        return swaps & (self.sizes == self.files.sizes).all(axis=1)

    def census(self) -> Census:
        """Return the values of the masks that have the size of their images, or of images of unknown size."""
        known = (self.files.sizes > 0).all(axis=1)
        good = (self.sizes == self.files.sizes).all(axis=1) | ~known
        return Census(
            counts=self.counts[good].sum(axis=0, dtype=np.int64), solid=self.solid[good].any(axis=0)
        )


def mask_source(settings: DataSettings, *, seed: int) -> Source:
    """Open `--data` as a source whose targets are masks.

    Args:
        settings: `data` is a name in `MASKS_NAMED`, or a folder of images and masks; the settings of mask
            values apply to a folder's masks.
        seed: seed of the validation split.

    Raises:
        UserError: no such data, a folder with an unexpected layout, or invalid masks with
            `--bad-labels stop`.
    """
    data = settings.data
    root = check_name(data, MASKS_NAMED, settings.val_split)
    if data in MASKS_NAMED:
        _refuse_meanings(settings, "has its own classes")
    if data == "synthetic":
        return synthetic_mask_source()
    bad = BadLabels()
    if data in MASKS_NAMED:
        both, classes = _named(
            data, expand_user(settings.data_root, "--data-root"), upright=settings.exif == "upright"
        )
        splits = {phase: _good(pairs, classes, bad, advice=False) for phase, pairs in both.items()}
        remarks = bad.apply(settings.bad_labels)
        return make_source(data, splits, classes.names, settings=settings, seed=seed, remarks=remarks)
    found = find_masks(root)
    if found is not None:
        return _folder_source(root, found, settings, seed)
    for base in bases(root):
        outlined = read_outline_set(base, bad, upright=settings.exif == "upright")
        if outlined is not None:
            return _outline_source(root, outlined, settings, seed, bad)
    raise UserError(
        f"--data {data}: no images with masks; expected {root}/train/images and {root}/train/masks, or "
        f"images/train and masks/train, or train and train_masks, or a.jpg with a_mask.png beside it; "
        f"JPEGImages and SegmentationClass (VOC); annotations/*train*.json with outlines (COCO); or images "
        f"with LabelMe's JSON beside them: each with val beside train, or one set with --val-split 0.1"
    )


def _refuse_meanings(settings: DataSettings, why: str) -> None:
    """Raise UserError for a flag about values or colors, which the data does not have."""
    for flag, value in (("--mask-values", settings.mask_values), ("--mask-colors", settings.mask_colors)):
        if value is not None:
            raise UserError(f"{flag}: {settings.data} {why}; omit it")


def _folder_source(root: Path, found: MaskFolders, settings: DataSettings, seed: int) -> Source:
    phases = found.phases
    check_parts(root, phases, settings)
    listed = find_class_list([root, found.base, phases["train"].folder, phases["train"].masks_folder])
    palette = _palette(settings, listed)
    pairs = {
        phase: _examine(
            f"{pairing.folder.resolve()} {pairing.masks_folder.resolve()} {phase}",
            pairing.images,
            pairing.masks,
            palette,
            upright=settings.exif == "upright",
        )
        for phase, pairing in phases.items()
    }
    if palette is None:
        _check_colors(pairs["train"], f"--data {settings.data}", found.base)
    classes = _classes(pairs, listed, settings, palette)
    bad = BadLabels()
    splits = {phase: _good(part, classes, bad) for phase, part in pairs.items()}
    remarks = (
        *(remark for pairing in phases.values() for remark in pairing.remarks),
        *classes.remarks,
        *_orientation_remarks([(part.files, part.tells) for part in pairs.values()]),
        *bad.apply(settings.bad_labels),
        describe(classes, pairs["train"].census()),
    )
    return make_source(
        root.resolve().name,
        splits,
        classes.names,
        settings=settings,
        seed=seed,
        remarks=remarks,
    )


def _outline_source(
    root: Path, found: OutlineSet, settings: DataSettings, seed: int, bad: BadLabels
) -> Source:
    _refuse_meanings(settings, "has outlines with class names")
    parts, table = found.parts, np.arange(256, dtype=np.uint8)
    check_parts(root, parts, settings)
    splits: dict[Phase, Split] = {}
    for phase, part in parts.items():
        count = len(part.files)
        split = Split(np.zeros(count, dtype=np.int64), part.files, None, Masks(table, part.outlines))
        splits[phase] = split.take(np.setdiff1d(np.arange(count), list(part.bad)))
    train = splits["train"]
    assert isinstance(train.annotations, Masks)
    of = f"pixels of {MAX_DRAWN} training images" if len(train) > MAX_DRAWN else "training pixels"
    classes, census = numbered_classes(found.class_names, IGNORE), drawn_census(train.annotations, len(train))
    remarks = (
        *(remark for part in parts.values() for remark in part.remarks),
        *_orientation_remarks([(part.files, part.compared) for part in parts.values()]),
        *bad.apply(settings.bad_labels),
        describe(classes, census, of),
    )
    return make_source(
        root.resolve().name,
        splits,
        found.class_names,
        settings=settings,
        seed=seed,
        remarks=remarks,
    )


def _named(name: str, data_root: Path, *, upright: bool) -> tuple[dict[Phase, Pairs], MaskClasses]:
    """Return a named set's training and validation pairs, and its classes."""
    examine = partial(_examine, upright=upright)
    if name == "demo":
        root = ensure_demo()
        parts = [pair_files(root / phase, root / "masks" / phase) for phase in ("train", "val")]
        pairs = [examine(f"{part.folder}", part.images, part.masks) for part in parts]
        classes = numbered_classes(("background", *CLASS_NAMES), IGNORE)
    elif name == "oxford-iiit-pet":
        from torchvision.datasets import OxfordIIITPet

        pairs = []
        for part in ("trainval", "test"):
            data = open_torchvision(name, data_root, partial(OxfordIIITPet, data_root, split=part))
            images, masks = ([str(path) for path in paths] for paths in (data._images, data._segs))
            pairs.append(examine(f"{data_root.resolve()} {name} {part}", images, masks))
        # Trimap values: 1 pet, 2 background, 3 border.
        classes = MaskClasses(names=("background", "pet"), values=(2, 1), ignored=3)
    else:
        from torchvision.datasets import VOCSegmentation

        pairs = [
            examine(f"{data_root.resolve()} {name} {d.image_set}", d.images, d.masks)
            for d in open_voc(name, VOCSegmentation, data_root)
        ]
        classes = numbered_classes(("background", *VOC_CLASSES), IGNORE)
    return {"train": pairs[0], "val": pairs[1]}, classes


def _examine(
    key: str, images: Sequence[str], masks: Sequence[str], palette: Palette | None = None, *, upright: bool
) -> Pairs:
    """Read image headers and masks; unchanged files come from the cache under `key`."""
    stored = MaskFiles(paths=tuple(masks), palette=palette, upright=upright)
    meaning = f"values {upright} {palette.colors if palette else ''}"
    facts, problems = examine_once(
        f"{key} masks {hashlib.sha256(meaning.encode()).hexdigest()}",
        masks,
        file_stamps(masks),
        columns=2 + 256 + 256 // 32,
        examine=lambda i: examine_mask(stored, i),
        notice="examining {:,} masks, once",
        slow=SLOW_MASKS,
    )
    bits = np.ascontiguousarray(facts[:, 258:]).view(np.uint8)
    return Pairs(
        files=scan(f"{key} images", images, upright=upright),
        stored=stored,
        sizes=facts[:, :2],
        counts=facts[:, 2:258],
        solid=np.unpackbits(bits, axis=1).astype(bool),
        problems=problems,
    )


def examine_mask(stored: MaskFiles, index: int) -> tuple[int | str, ...]:
    """Return height and width of a mask, its `counts` and `solid` (as 8 numbers), and its problem."""
    try:
        mask = stored.read(index)
    except DecodeError as error:
        return *(0,) * 266, str(error)
    rows = (mask[:, :-2] == mask[:, 1:-1]) & (mask[:, 1:-1] == mask[:, 2:])
    columns = (mask[:-2] == mask[1:-1]) & (mask[1:-1] == mask[2:])
    inside = rows[:-2] & rows[1:-1] & rows[2:] & columns[:, 1:-1]
    counts = Image.fromarray(mask).histogram()
    solid = np.bincount(mask[1:-1, 1:-1][inside], minlength=256) > 0
    return *mask.shape, *counts, *np.packbits(solid).view(np.int32).tolist(), ""


def _palette(settings: DataSettings, listed: ClassList) -> Palette | None:
    """Return the colors of masks, if they are given."""
    if settings.mask_colors is not None:
        codes = tuple(int(color.removeprefix("#"), 16) for color in settings.mask_colors)
        if listed.names and len(listed.names) != len(codes):
            raise UserError(
                f"--mask-colors: {len(codes)} colors, but {len(listed.names)} classes in {listed.path}; "
                f"list as many"
            )
        return Palette(codes, "--mask-colors")
    if settings.mask_values is None and listed.colors:
        return Palette(listed.colors, str(listed.path))
    return None


def _check_colors(train: Pairs, data: str, base: Path) -> None:
    """Raise UserError if most training masks have colors, with the colors that were found."""
    colored = [i for i, problem in train.problems.items() if problem == COLOR_PROBLEM]
    if 2 * len(colored) <= len(train.stored.paths):
        return
    counts: Counter[int] = Counter()
    for i in colored[:MAX_COLOR_MASKS]:
        counts.update(colors_of(train.stored.paths[i]))
    if len(counts) > MAX_LISTED_COLORS:
        raise UserError(
            f"{data}: the masks have {len(counts):,} colors, as in photos, smoothed borders or JPEG; export "
            f"them as PNG with one color for each class, or with class numbers"
        )
    total = sum(counts.values())
    colors = [color for color, _ in counts.most_common()]
    shares = ", ".join(f"{color:06x} ({100 * counts[color] / total:.2g}%)" for color in colors)
    raise UserError(
        f"{data}: the masks have colors: {shares}; write --mask-colors "
        f"{' '.join(f'{color:06x}' for color in colors)} for classes in this order, or lines `NAME R G B` in "
        f"{base / 'classes.txt'}"
    )


def _classes(
    pairs: dict[Phase, Pairs], listed: ClassList, settings: DataSettings, palette: Palette | None
) -> MaskClasses:
    """Return the classes that the settings, a class list or else the training masks show."""
    data, ignored, names = f"--data {settings.data}", settings.ignore_index, listed.names
    train = pairs["train"].census()
    if palette is not None:
        names = names or tuple(f"class {i} ({color:06x})" for i, color in enumerate(palette.colors))
        return numbered_classes(names, ignored)
    values = settings.mask_values or listed.values
    if values:
        origin = "--mask-values" if settings.mask_values else str(listed.path)
        every = Census.of([part.census() for part in pairs.values()])
        return listed_classes(values, names, ignored, every, origin)
    _check_mixed(pairs["train"], data)
    if names:
        return named_classes(names, ignored, train, data)
    if not train.counts.any():  # all masks are invalid, which is reported later
        return numbered_classes([f"class {i}" for i in range(IGNORE)], ignored)
    return found_classes(ignored, train, data)


def _check_mixed(train: Pairs, data: str) -> None:
    """Raise UserError if some masks are of 0 and 1, and others of 0 and 255."""
    present = train.counts > 0
    ones, full = present[:, 1], present[:, 255]
    if train.census().present != [0, 1, 255] or (ones & full).any():
        return
    first = [train.stored.paths[int(found.argmax())] for found in (ones, full)]
    raise UserError(
        f"{data}: {first[0]} has 0 and 1, but {first[1]} has 0 and 255; save all with the same two values, "
        f"or write --mask-values 0 1 if 255 marks pixels to ignore"
    )


def _good(pairs: Pairs, classes: MaskClasses, bad: BadLabels, *, advice: bool = True) -> Split:
    """Return the images with valid masks, and unreadable images; add invalid masks to `bad`.

    Args:
        advice: advise on `--mask-values`.
    """
    strange = (pairs.counts > 0) & ~classes.allowed
    other_size = (pairs.sizes != pairs.files.sizes).any(axis=1)
    suspect = (other_size | strange.any(axis=1)) & (pairs.files.sizes > 0).all(axis=1)
    for i in np.flatnonzero(suspect).tolist():
        path, problem = pairs.stored.paths[i], pairs.problems.get(i)
        if problem == os.strerror(errno.ENOENT):
            bad.add(pairs.files.name(i), f"no mask {path}")
        elif problem:
            bad.add(path, problem)
        elif other_size[i]:
            bad.add(path, _other_size(pairs, i))
        else:
            bad.add(path, _strange_value(int(strange[i].argmax()), classes, advice=advice))
    masks = Masks(classes.table, pairs.stored)
    split = Split(np.zeros(len(suspect), dtype=np.int64), pairs.files, None, masks)
    return split.take(np.flatnonzero(~suspect)) if suspect.any() else split


def _strange_value(value: int, classes: MaskClasses, *, advice: bool) -> str:
    count, values = len(classes.values), classes.values
    if classes.numbered:
        reason = f"class {value}, but there are {count} (0 to {count - 1})"
    else:
        reason = f"value {value}, but classes have the values {', '.join(map(str, values))}"
    if advice and (not classes.numbered or classes.listed):
        longer = sorted((*values, value)) if list(values) == sorted(values) else (*values, value)
        reason += f"; if it is a class, write --mask-values {' '.join(map(str, longer))}"
    return reason


def _other_size(pairs: Pairs, i: int) -> str:
    (height, width), (h, w) = pairs.sizes[i].tolist(), pairs.files.sizes[i].tolist()
    reason = f"{width} x {height} pixels, but its image has {w} x {h}"
    orientations = pairs.files.orientations
    if orientations is not None and orientations[i] >= TRANSPOSED and (height, width) == (w, h):
        reason += " when turned upright; write --exif ignore if all masks are for images as stored"
    elif not pairs.stored.upright and (height, width) == (w, h):
        reason += "; omit --exif ignore if the image is upright by its EXIF orientation"
    return reason


def _orientation_remarks(parts: Sequence[tuple[Files, np.ndarray]]) -> list[str]:
    """Return a remark on rotated images if no size shows whether masks are for upright images.

    Args:
        parts: images, and which of them have a size that shows it, bool [N].
    """
    names = [
        files.name(i)
        for files, _ in parts
        if files.orientations is not None
        for i in np.flatnonzero(files.orientations > 1).tolist()
    ]
    if not names or any(tells.any() for _, tells in parts):
        return []
    return [
        f"warning: {len(names):,} images are turned upright by EXIF orientation, such as {names[0]}; sizes "
        f"do not show whether their masks are upright: check with fastcnn preview, or write --exif ignore"
    ]


def synthetic_mask_source(train: int = 12_800, val: int = 1_280, classes: int = 21) -> Source:
    """Return 48 masks of random blocks, repeated; the images are made by the synthetic loader."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, classes, (48, 8, 8), dtype=np.uint8)
    masks = list(blocks.repeat(SYNTHETIC_SIZE // 8, axis=1).repeat(SYNTHETIC_SIZE // 8, axis=2))
    table = np.arange(256, dtype=np.uint8)

    def split(count: int) -> Split:
        arrays = [masks[i % len(masks)] for i in range(count)]
        return Split(np.zeros(count, dtype=np.int64), annotations=Masks(table, MaskArrays(arrays)))

    return Source(
        name="synthetic",
        train=split(train),
        val=split(val),
        class_names=tuple(f"class {i}" for i in range(classes)),
    )
