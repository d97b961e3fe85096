"""Sources with boxes: folders in YOLO's layout, COCO's JSON, PASCAL VOC, the demo set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fastcnn.config.settings import DataSettings
from fastcnn.data.sources.box_files import Coco, Rows, checked, coco_rows, read_coco, read_voc, read_yolo
from fastcnn.data.sources.dataset import SYNTHETIC_SIZE, Source, Split
from fastcnn.data.sources.demo import CLASS_NAMES, ensure_demo
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.label_files import (
    VAL,
    VOC_CLASSES,
    BadLabels,
    check_name,
    find_folders,
    make_source,
    open_voc,
    read_class_names,
)
from fastcnn.data.sources.layout import Phase
from fastcnn.data.sources.splits import check_shares
from fastcnn.data.sources.walk import and_more, image_files
from fastcnn.data.targets import Boxes
from fastcnn.errors import UserError

BOXES_NAMED = ("demo", "synthetic", "voc2007", "voc2012")
ROBOFLOW = "_annotations.coco.json"


def box_source(settings: DataSettings, *, seed: int) -> Source:
    """Open `--data` as a source whose targets are boxes.

    Args:
        settings: `data` is a name in `BOXES_NAMED`, or a folder in the layout of YOLO or COCO.
        seed: seed of the validation split.

    Raises:
        UserError: no such data, a folder with an unexpected layout, or invalid boxes with
            `--bad-labels stop`.
    """
    data = settings.data
    root = check_name(data, BOXES_NAMED, settings.val_split)
    if data == "synthetic":
        return synthetic_box_source()
    bad = BadLabels()
    remarks: tuple[str, ...] = ()
    name = data
    phases: Iterable[Phase] = ("train", "val")
    if data == "demo":
        splits, class_names = _demo(bad), CLASS_NAMES
    elif data in BOXES_NAMED:
        splits, class_names = _voc(data, Path(settings.data_root), bad), VOC_CLASSES
    else:
        name = root.resolve().name
        coco = _coco_files(root)
        if coco:
            val = str(coco[1].relative_to(root)) if len(coco) > 1 else ""
            check_shares(settings, val=val)
            splits, class_names = _coco(root, coco, bad)
        else:
            folders = find_folders(root, "labels", settings)
            if not folders:
                raise UserError(
                    f"--data {data}: no images with boxes; expected YOLO's {root}/images/train and "
                    f"{root}/labels/train, or {root}/train/images and {root}/train/labels, each with val "
                    f"beside train, or {root}/images and {root}/labels with --val-split 0.1; or COCO's "
                    f"{root}/annotations/*train*.json and *val*.json, or {root}/train/{ROBOFLOW}"
                )
            class_names = _yolo_names(root)
            splits, remarks = _yolo(folders.values(), len(class_names), bad)
            phases = folders
    return make_source(
        name,
        dict(zip(phases, splits)),
        class_names,
        settings=settings,
        seed=seed,
        remarks=remarks + bad.apply(settings.bad_labels),
    )


def _split(key: str, images: Sequence[str], rows: Rows, num_classes: int, bad: BadLabels) -> Split:
    """Return the images with their valid boxes; headers are cached under `key`."""
    files = scan(key, images)
    boxes = checked(rows, files.sizes, num_classes, bad)
    split = Split(np.zeros(len(images), dtype=np.int64), files, annotations=boxes)
    if rows.unread:
        split = split.take(np.setdiff1d(np.arange(len(images)), list(rows.unread)))
    return split


def _yolo(
    folders: Iterable[tuple[Path, Path]], num_classes: int, bad: BadLabels
) -> tuple[list[Split], tuple[str, ...]]:
    splits, remarks = [], []
    for images, labels in folders:
        found = image_files(images)
        names = [os.path.splitext(path)[0][len(str(images)) :] + ".txt" for path in found]
        present = {path[len(str(labels)) :] for path in image_files(labels, (".txt",))} - {"/classes.txt"}
        rows = read_yolo([f"{labels}{name}" if name in present else None for name in names])
        splits.append(_split(f"{images.resolve()} {labels.resolve()}", found, rows, num_classes, bad))
        left = sorted(present - set(names))
        if left:
            remarks.append(f"skipped: {labels}{left[0]} has no image in {images}" + and_more(left))
    return splits, tuple(remarks)


def _yolo_names(root: Path) -> tuple[str, ...]:
    """Read the class names from data.yaml, another YAML file or classes.txt."""
    own = root / "data.yaml"
    for path in [own] if own.is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            if set(names) != set(range(len(names))):
                raise UserError(f"{path}: names must be numbered from 0 on, without gaps")
            names = [names[i] for i in range(len(names))]
        if isinstance(names, list) and names:
            return tuple(str(name) for name in names)
    listed = read_class_names(root / "classes.txt") or read_class_names(root / "labels" / "classes.txt")
    if not listed:
        raise UserError(f"--data {root}: no class names; add {own} with `names: [cat, dog]`, or classes.txt")
    return listed


def _coco_files(root: Path) -> list[Path]:
    """Return COCO's training file and, if present, its validation file; none without a training file."""
    if (root / "train" / ROBOFLOW).is_file():
        val = [root / name / ROBOFLOW for name in VAL]
        return [root / "train" / ROBOFLOW, *[path for path in val if path.is_file()][:1]]
    found = sorted((root / "annotations").glob("*.json"))
    phases = [
        [path for path in found if "train" in path.name],
        [path for path in found if "val" in path.name and "train" not in path.name],
    ]
    files = []
    for paths in phases:
        paths = [path for path in paths if path.name.startswith("instances")] or paths
        if len(paths) > 1:
            raise UserError(f"{paths[0]}: {paths[1].name} is beside it; keep one of them")
        files += paths
    return files if phases[0] else []


def _coco(root: Path, paths: list[Path], bad: BadLabels) -> tuple[list[Split], tuple[str, ...]]:
    files = [read_coco(path) for path in paths]
    categories = files[0].categories
    if not categories:
        raise UserError(f"{paths[0]}: no categories; list the classes there")
    for key, name in files[-1].categories.items():
        if categories.get(key, name) != name:
            raise UserError(f"{paths[-1]}: category {key} is {name!r}, but {categories[key]!r} in {paths[0]}")
    classes = {key: i for i, key in enumerate(categories)}
    splits = [_coco_split(root, coco, phase, classes, bad) for coco, phase in zip(files, ("train", "val"))]
    return splits, tuple(categories.values())


def _coco_split(root: Path, coco: Coco, phase: str, classes: dict[Any, int], bad: BadLabels) -> Split:
    if coco.path.name == ROBOFLOW:
        folders = [coco.path.parent]
    else:
        folders = [
            *sorted(root.glob(f"{phase}*")),
            *sorted(root.glob(f"images/{phase}*")),
            root / "images",
            root,
        ]
        folders = [folder for folder in folders if folder.is_dir()]
    paths = _locate(folders, list(coco.images.values()))
    for (key, name), path in zip(coco.images.items(), paths):
        if path is None:
            bad.add(f"{coco.path}, image {key}", f"{name} is not in {folders[0]}")
    places = iter(range(len(paths)))
    index = {key: None if path is None else next(places) for key, path in zip(coco.images, paths)}
    found = [path for path in paths if path is not None]
    return _split(str(coco.path.resolve()), found, coco_rows(coco, index, classes), len(classes), bad)


def _locate(folders: Sequence[Path], names: Sequence[str]) -> list[str | None]:
    """Return the path of each file in the first folder that has it, else None."""
    places: dict[str, str] = {}
    wanted = set(names)
    for folder in folders:
        if not wanted:
            break
        for path in image_files(folder):
            name = path[len(str(folder)) + 1 :]
            if name in wanted:
                places[name] = path
        wanted -= places.keys()
    return [places.get(name) for name in names]


def _voc(name: str, data_root: Path, bad: BadLabels) -> list[Split]:
    from torchvision.datasets import VOCDetection

    return [
        _split(
            f"{data_root.resolve()} {name} {found.image_set} boxes",
            found.images,
            read_voc(found.annotations, VOC_CLASSES),
            len(VOC_CLASSES),
            bad,
        )
        for found in open_voc(name, VOCDetection, data_root)
    ]


def _demo(bad: BadLabels) -> list[Split]:
    root = ensure_demo()
    index = json.loads((root / "boxes.json").read_text(encoding="utf-8"))

    def split(phase: str) -> Split:
        names = [name for name in index if name.startswith(f"{phase}/")]
        rows = Rows(lambda image, _: f"{root / 'boxes.json'}, {names[image]}")
        rows.values = [(i, 0, index[name]["label"], *index[name]["box"], 0) for i, name in enumerate(names)]
        paths = [str(root / name) for name in names]
        return _split(f"{root} {phase} boxes", paths, rows, len(CLASS_NAMES), bad)

    return [split("train"), split("val")]


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
