"""Sources with boxes: folders of label files in any usual format, PASCAL VOC, the demo set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.boxes.coco import read_coco_set
from fastcnn.data.sources.boxes.labelme import read_labelme_set
from fastcnn.data.sources.boxes.rows import BoxSet, LabeledImages, Rows, checked
from fastcnn.data.sources.boxes.sizes import fit_to_images
from fastcnn.data.sources.boxes.table import read_csv_set
from fastcnn.data.sources.boxes.voc import read_voc, read_voc_set
from fastcnn.data.sources.boxes.yolo import read_yolo_set
from fastcnn.data.sources.boxes.yolo_places import YAML_SUFFIXES
from fastcnn.data.sources.coco import ANNOTATION_FOLDERS
from fastcnn.data.sources.dataset import SYNTHETIC_SIZE, Source, Split
from fastcnn.data.sources.demo import CLASS_NAMES, ensure_demo
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.label_files import (
    PHASE_NAMES,
    VOC_CLASSES,
    BadLabels,
    check_name,
    check_parts,
    make_source,
    open_voc,
    plain,
)
from fastcnn.data.sources.layout import PHASES, Phase, folders, phase_of
from fastcnn.data.sources.walk import and_more
from fastcnn.data.targets import Boxes
from fastcnn.errors import UserError
from fastcnn.files import expand_user

BOXES_NAMED = ("demo", "synthetic", "voc2007", "voc2012")
Reader = Callable[[Path, Path | None, BadLabels], BoxSet | None]
"""Read the set in a folder, or the one that a file describes; None if it is not of the reader's format."""
READERS: tuple[Reader, ...] = (read_coco_set, read_labelme_set, read_voc_set, read_csv_set, read_yolo_set)
OF_FILE: dict[str, Reader] = {".json": read_coco_set, **dict.fromkeys(YAML_SUFFIXES, read_yolo_set)}
"""Readers of a file as `--data`."""


def box_source(settings: DataSettings, *, seed: int) -> Source:
    """Open `--data` as a source whose targets are boxes.

    Args:
        settings: `data` is a name in `BOXES_NAMED`, a folder that `READERS` know, or a file of `OF_FILE`.
        seed: seed of the validation split.

    Raises:
        UserError: no such data, a folder with an unexpected layout, no boxes, or invalid boxes with
            `--bad-labels stop`.
    """
    data = settings.data
    path = check_name(data, BOXES_NAMED, settings.val_split, suffixes=tuple(OF_FILE))
    if data == "synthetic":
        return synthetic_box_source()
    bad = BadLabels()
    root, found = _open(path, settings, bad)
    check_parts(path, found.parts, settings)
    splits: dict[Phase, Split] = {}
    remarks = [*found.remarks, *_alike(found.class_names)]
    for phase, part in sorted(found.parts.items(), key=lambda item: PHASES.index(item[0])):
        splits[phase], said = _split(part, PHASE_NAMES[phase], len(found.class_names), settings, bad)
        remarks += said
    remarks = [*bad.apply(settings.bad_labels), *remarks]
    if len(splits["train"]) and not _countable(splits["train"]):
        raise UserError(_no_boxes(data, found.parts["train"], splits["train"]))
    held_out = "val" in splits or settings.val_split is not None
    if "test" in splits and held_out and not _countable(splits["test"]):
        del splits["test"]
        remarks.append("the test images are not used")
    source = make_source(
        data if data in BOXES_NAMED else root.resolve().name,
        splits,
        found.class_names,
        settings=settings,
        seed=seed,
        remarks=tuple(remarks),
    )
    if not _countable(source.train):
        raise UserError(
            f"--data {data}: no box is left for training; split off less, or use another --split-seed"
        )
    return source


def _open(path: Path, settings: DataSettings, bad: BadLabels) -> tuple[Path, BoxSet]:
    """Return the set of `--data`, and its folder."""
    if settings.data == "demo":
        return path, _demo()
    if settings.data in BOXES_NAMED:
        return path, _voc(settings.data, expand_user(settings.data_root, "--data-root"))
    return _read(path, bad)


def _read(path: Path, bad: BadLabels) -> tuple[Path, BoxSet]:
    """Return the set of a folder or file, and its folder."""
    if path.is_file():
        root = path.parent.parent if path.parent.name.lower() in ANNOTATION_FOLDERS else path.parent
        found = OF_FILE[path.suffix.lower()](root, path, bad)
        if found is not None:
            return root, found
        raise UserError(f"--data {path}: no images with boxes in {root}; correct the places in the file")
    for root in _wrapped(path):
        for read in READERS:
            found = read(root, None, bad)
            if found is not None and root != path:
                found.remarks = (f"--data {path}: reading {root}", *found.remarks)
            if found is not None:
                return root, found
    raise UserError(
        f"--data {path}: no images with boxes; expected {path}/train/images and {path}/train/labels (YOLO's "
        f"texts), or images/train and labels/train, or texts beside the images; annotations/*train*.json "
        f"(COCO); JPEGImages and Annotations (VOC); images with LabelMe's JSON or VOC's XML beside them; or "
        f"train/_annotations.csv: each with val beside train, or one set with --val-split 0.1"
    )


def _wrapped(path: Path) -> Iterator[Path]:
    """Yield a folder, the only folder within it, and the only one within that."""
    for _ in range(3):
        yield path
        inner = folders(path)
        if len(inner) != 1 or phase_of(inner[0].name) is not None:
            return
        path = inner[0]


def _split(
    labeled: LabeledImages, role: str, num_classes: int, settings: DataSettings, bad: BadLabels
) -> tuple[Split, list[str]]:
    """Return the images with their valid boxes, and remarks."""
    upright = settings.exif == "upright"
    files = scan(labeled.key, labeled.images, upright=upright)
    rows, table = labeled.rows, labeled.rows.table
    remarks = [f"{labeled.looked}: {remark}" for remark in rows.remarks]
    remarks += fit_to_images(labeled, table, files, bad, upright=upright)
    boxes, duplicates = checked(rows, table, files.sizes, num_classes, bad)
    split = Split(np.zeros(len(files), dtype=np.int64), files, annotations=boxes)
    if rows.unread:
        split = split.take(np.setdiff1d(np.arange(len(files)), list(rows.unread)))
    if duplicates:
        remarks.append(f"{labeled.looked}: duplicate boxes dropped: {duplicates:,}")
    if not upright:
        turned = scan(labeled.key, labeled.images).orientations
        if turned is not None:
            remarks.append(
                f"warning: --exif ignore: {(turned > 1).sum():,} {role} images are stored rotated, and most "
                f"labeling tools show them upright; omit it unless their boxes are for the stored images"
            )
    return split, remarks + _about_missing(labeled, role, boxes)


def _about_missing(labeled: LabeledImages, role: str, boxes: Boxes) -> list[str]:
    """Return remarks on images without boxes and on label files without images."""
    missing, left, count = list(labeled.unlabeled), list(labeled.left), len(labeled.images)
    remarks = []
    if left and 2 * len(missing) > count:
        remarks.append(
            f"warning: {len(missing):,} of {count:,} {role} images have no label file, such as "
            f"{labeled.images[missing[0]]}, and {len(left):,} label files have no image, such as {left[0]}: "
            f"are the names the same?"
        )
    elif left:
        remarks.append(f"skipped: {left[0]} has no image" + and_more(left))
    bare = int((np.diff(boxes.first) == 0).sum())
    if count and bare == count:
        remarks.append(
            f"warning: the {role} images have no boxes; labels were looked for in {labeled.looked}"
        )
    elif bare:
        without = f", {len(missing):,} of them without a label file" if missing else ""
        remarks.append(f"{bare:,} of {count:,} {role} images have no boxes{without}")
    return remarks


def _alike(class_names: Sequence[str]) -> list[str]:
    """Return a warning if two classes differ in case or spaces only."""
    known: dict[str, str] = {}
    for name in class_names:
        other = known.setdefault("".join(plain(name).split()), name)
        if other != name:
            return [f"warning: classes {other!r} and {name!r} differ in case or spaces only"]
    return []


def _countable(split: Split) -> bool:
    """Return whether a split has boxes other than crowds."""
    assert isinstance(split.annotations, Boxes)
    return bool((split.annotations.values[:, 5] == 0).any())


def _no_boxes(data: str, labeled: LabeledImages, split: Split) -> str:
    assert isinstance(split.annotations, Boxes)
    message = f"--data {data}: the {len(split):,} training images have no boxes"
    if len(split.annotations.values):
        return f"{message} but those of crowds and difficult objects, which are not learned; label others"
    message += f"; labels were looked for in {labeled.looked}"
    if labeled.left and labeled.unlabeled:
        image = labeled.images[labeled.unlabeled[0]]
        return f"{message}, but their names differ, such as {image} and {labeled.left[0]}; rename them"
    if len(labeled.unlabeled) == len(labeled.images):
        return f"{message}, where no image has a label file; add them, named as the images"
    return f"{message}, where the files list none; label the images"


def _voc(name: str, data_root: Path) -> BoxSet:
    from torchvision.datasets import VOCDetection

    parts = {}
    for phase, found in zip(("train", "val"), open_voc(name, VOCDetection, data_root)):
        parts[phase] = LabeledImages(
            key=f"{data_root.resolve()} {name} {found.image_set} boxes",
            images=found.images,
            rows=read_voc(found.annotations, VOC_CLASSES),
            looked=str(data_root),
        )
    return BoxSet(parts=parts, class_names=VOC_CLASSES)  # type: ignore[arg-type]


def _demo() -> BoxSet:
    root = ensure_demo()
    index = json.loads((root / "boxes.json").read_text(encoding="utf-8"))

    def part(phase: str) -> LabeledImages:
        names = [name for name in index if name.startswith(f"{phase}/")]
        rows = Rows(lambda image, _: f"{root / 'boxes.json'}, {names[image]}")
        rows.values = [(i, 0, index[name]["label"], *index[name]["box"], 0) for i, name in enumerate(names)]
        paths = [str(root / name) for name in names]
        return LabeledImages(key=f"{root} {phase} boxes", images=paths, rows=rows, looked=str(root))

    return BoxSet(parts={"train": part("train"), "val": part("val")}, class_names=CLASS_NAMES)


def synthetic_box_source(train: int = 12_800, val: int = 1_280, classes: int = 80) -> Source:
    """Return up to 8 random boxes per image; the images are made by the synthetic loader."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        first = np.concatenate([[0], rng.integers(0, 9, count).cumsum()])
        low = rng.uniform(0, SYNTHETIC_SIZE * 3 / 4, (first[-1], 2))
        high = low + rng.uniform(SYNTHETIC_SIZE / 16, SYNTHETIC_SIZE / 4, low.shape)
        values = np.column_stack([rng.integers(0, classes, len(low)), low, high, np.zeros(len(low))])
        boxes = Boxes(first, values.astype(np.float32))
        return Split(np.zeros(count, dtype=np.int64), annotations=boxes)

    return Source(
        name="synthetic",
        train=split(train),
        val=split(val),
        class_names=tuple(f"class {i}" for i in range(classes)),
    )
