"""Read masks that are given as outlines: COCO's JSON and LabelMe's JSON."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcnn.data.arrays import MAX_PIXELS
from fastcnn.data.decode import TRANSPOSED
from fastcnn.data.sources.coco import Coco, find_coco, locate, read_coco_files
from fastcnn.data.sources.headers import Files, scan
from fastcnn.data.sources.label_files import BadLabels, LabelFiles, find_labels, listed_classes
from fastcnn.data.sources.labelme import NO_AREA, LabelMe, Shape, read_labelme
from fastcnn.data.sources.layout import PHASES, Phase
from fastcnn.data.sources.manifest import in_threads
from fastcnn.data.sources.masks.outlines import (
    Outlines,
    Polygons,
    Region,
    pixels_region,
    polygon_regions,
    runs_region,
)
from fastcnn.data.targets import IGNORE
from fastcnn.errors import ReadError, UserError

BACKGROUND = ("background", "_background_")
"""Names of class 0, in lower case; without one of them it is added."""
IGNORED = "__ignore__"
"""LabelMe's name of pixels that are excluded."""
ROUNDING_PX = 1
"""Tolerated difference of a resized image's sides."""
CIRCLE_CORNERS = 64
ID = (int, float, str)
"""Types of ids in JSON."""
NO_OUTLINES = "no outlines (segmentation); draw them, or train a detector on boxes, such as --arch yolo"


@dataclass(kw_only=True)
class Outlined:
    """Images of a phase with outlines."""

    files: Files
    """N images."""
    outlines: Outlines
    """N masks."""
    bad: set[int]
    """Images with an invalid mask."""
    compared: np.ndarray
    """Images of a stated size that shows whether outlines are for upright images, bool [N]."""
    remarks: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class OutlineSet:
    """A set of images with outlines."""

    parts: dict[Phase, Outlined]
    class_names: tuple[str, ...]


def read_outline_set(root: Path, bad: BadLabels, *, upright: bool) -> OutlineSet | None:
    """Read images with outlines in COCO's or LabelMe's JSON; None if there are none.

    Args:
        upright: images are turned upright by their EXIF orientation.

    Raises:
        UserError: a malformed COCO file, or one without outlines.
    """
    files = find_coco(root)
    if files:
        _check_package(root)
        return _read_coco_set(root, read_coco_files(files, outlines=True), bad, upright=upright)
    found = find_labels(root, "json", ".json", bad)
    read = {phase: list(in_threads(_read_labelme, own.labels)) for phase, own in found.items()}
    if not any(isinstance(content, LabelMe) for contents in read.values() for content in contents):
        return None
    _check_package(root)
    return _read_labelme_set(root, found, read, bad, upright=upright)


def _check_package(root: Path) -> None:
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError(f"--data {root}: drawing outlines needs a package: pip install faster-coco-eval")


# COCO


def _read_coco_set(root: Path, read: dict[Phase, Coco], bad: BadLabels, *, upright: bool) -> OutlineSet:
    categories = read["train"].categories
    class_names = _with_background(read["train"].path, categories.values())
    classes = {
        key: 0 if name.lower() in BACKGROUND else class_names.index(name) for key, name in categories.items()
    }
    parts = {}
    for phase in sorted(read, key=PHASES.index):
        coco = read[phase]
        if any(isinstance(a, dict) and a.get("segmentation") for a in coco.annotations):
            parts[phase] = _coco_part(root, coco, phase, classes, bad, upright=upright)
        elif phase != "test" or coco.annotations:
            raise UserError(f"{coco.path}: {NO_OUTLINES}")
    return OutlineSet(parts=parts, class_names=class_names)


def _coco_part(
    root: Path, coco: Coco, phase: Phase, classes: dict[Any, int], bad: BadLabels, *, upright: bool
) -> Outlined:
    located = locate(root, coco, phase)
    for (key, name), path in zip(coco.images.items(), located.paths):
        if path is None:
            bad.add(f"{coco.path}, image {key}", f"{name} is not in {located.looked[0]}")
    keys = [key for key, path in zip(coco.images, located.paths) if path is not None]
    files = scan(str(coco.path.resolve()), [path for path in located.paths if path], upright=upright)
    fit = _fit(files, np.array([coco.sizes[key] for key in keys], dtype=np.int64).reshape(-1, 2))
    part = _Drawing(files, fit, bad, [f"{coco.path}, image {key}" for key in keys], upright=upright)
    place = {key: i for i, key in enumerate(keys)}
    for number, annotation in enumerate(coco.annotations):
        fields = annotation if isinstance(annotation, dict) else {}
        where = f"{coco.path}, annotation {fields.get('id', f'at place {number}')}"
        key = fields.get("image_id")
        if not isinstance(key, ID) or key not in coco.images:
            bad.add(where, f"image {key}, which is not listed")
        elif key in place:
            part.add(place[key], where, partial(_coco_object, fields, classes))
    # The order in the file has no meaning; a crowd or a large object must not hide a smaller one on it.
    outlined = part.outlined(by_area=True)
    if located.guessed:
        outlined.remarks.append(
            f"images found in {located.looked[0]} by the last part of their names: {located.guessed:,}"
        )
    return outlined


Object = Polygons | Region | None
"""An object of an image; None if it has no pixels."""


def _coco_object(fields: dict[str, Any], classes: dict[Any, int], frame: tuple[int, int]) -> Object:
    """Return the object of an annotation; ValueError with the reason if it is invalid."""
    category, outline = fields.get("category_id"), fields.get("segmentation")
    label = classes.get(category) if isinstance(category, ID) else None
    if label is None:
        raise ValueError(f"category {category}, which is none of the {len(classes)}")
    if not outline:
        raise ValueError(NO_OUTLINES)
    if isinstance(outline, dict):
        try:
            height, width = (int(side) for side in outline["size"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("run lengths without size and counts") from None
        if (height, width) != frame:
            raise ValueError(f"run lengths for {width} x {height} pixels, but it has {frame[1]} x {frame[0]}")
        return runs_region(label, outline)
    if not isinstance(outline, list) or not all(isinstance(part, np.ndarray) for part in outline):
        raise ValueError("polygons that are not lists of numbers x, y, x, y, ...")
    return Polygons(label, outline)


# LabelMe


def _read_labelme(path: str | None) -> LabelMe | str | None:
    """Return a file's content, or why it cannot be read; None without a file."""
    try:
        return None if path is None else read_labelme(path)
    except OSError as error:
        return error.strerror or "cannot be read"
    except ReadError:
        raise
    except ValueError as error:
        return str(error)


def _read_labelme_set(
    root: Path,
    found: dict[Phase, LabelFiles],
    read: dict[Phase, list[LabelMe | str | None]],
    bad: BadLabels,
    *,
    upright: bool,
) -> OutlineSet:
    labels = {
        shape.label
        for contents in read.values()
        for content in contents
        if isinstance(content, LabelMe)
        for shape in content.shapes
        if shape.kind not in NO_AREA
    }
    class_names = _with_background(root, listed_classes(root) or sorted(labels - {""}))
    classes = (
        {name: i for i, name in enumerate(class_names)} | dict.fromkeys(BACKGROUND, 0) | {IGNORED: IGNORE}
    )
    parts = {}
    for phase in sorted(found, key=PHASES.index):
        own, contents = found[phase], read[phase]
        stated = [(c.height, c.width) if isinstance(c, LabelMe) else (0, 0) for c in contents]
        files = scan(f"{root.resolve()} {phase} outlines", own.images, upright=upright)
        fit = _fit(files, np.array(stated, dtype=np.int64).reshape(-1, 2))
        part = _Drawing(files, fit, bad, [str(path) for path in own.labels], upright=upright)
        without_area = 0
        for image, (content, path) in enumerate(zip(contents, own.labels)):
            if not isinstance(content, LabelMe):
                reason = content or "no JSON file beside it; label it, or remove it"
                part.add_bad(image, files.name(image) if path is None else path, reason)
                continue
            for number, shape in enumerate(content.shapes, 1):
                if shape.kind in NO_AREA:
                    without_area += 1
                    continue
                part.add(image, f"{path}, shape {number}", partial(_shape_object, shape, classes))
        parts[phase] = part.outlined(by_area=False)
        if without_area:
            parts[phase].remarks.append(f"points and lines skipped, which have no area: {without_area:,}")
    return OutlineSet(parts=parts, class_names=class_names)


def _shape_object(shape: Shape, classes: dict[str, int], frame: tuple[int, int]) -> Object:
    """Return the object of a shape; ValueError with the reason if it is invalid."""
    label, points = classes.get(shape.label), shape.points
    if label is None:
        raise ValueError(f"class {shape.label!r}, which is none of the {len(classes)}")
    if shape.kind in ("rectangle", "circle", "mask") and len(points) < 2:
        raise ValueError(f"a {shape.kind} of {len(points)} points")
    if shape.kind == "mask":
        try:
            with Image.open(io.BytesIO(base64.b64decode(shape.mask))) as image:
                pixels = np.asarray(image.convert("L")) > 0
        except (OSError, ValueError, Image.DecompressionBombError, SyntaxError) as error:
            raise ValueError("a mask that is no image") from error
        left, top = points.min(axis=0).round().astype(int).tolist()
        whole = np.zeros(frame, dtype=bool)
        inside = whole[max(top, 0) : top + len(pixels), max(left, 0) : left + pixels.shape[1]]
        if top < 0 or left < 0 or inside.shape != pixels.shape:
            raise ValueError(f"a mask that reaches over the border of {frame[1]} x {frame[0]} pixels")
        return pixels_region(label, pixels, (top, left))
    if shape.kind == "rectangle":
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif shape.kind == "circle":
        angles = np.linspace(0, 2 * np.pi, CIRCLE_CORNERS, endpoint=False)
        radius = np.hypot(*(points[1] - points[0]))
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = points.clip(0, frame[::-1])  # a circle may end at the border
    return Polygons(label, [points])


# Both


def _with_background(place: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return the background's name, then the other class names; UserError if there are too many."""
    names = dict.fromkeys(name for name in names if name != IGNORED)
    own = next((name for name in names if name.lower() in BACKGROUND), BACKGROUND[0])
    classes = (own, *(name for name in names if name.lower() not in BACKGROUND))
    if len(classes) > IGNORE:
        raise UserError(
            f"{place}: {len(classes)} classes with the background; masks have {IGNORE} at most: merge some"
        )
    return classes


@dataclass(kw_only=True)
class _Fit:
    """How outlines of a stated size fit their images."""

    frames: np.ndarray
    """Height and width in which the outlines lie, int64 [N, 2]."""
    turned: np.ndarray
    """Images whose outlines are for the pixels as stored, bool [N]."""
    misfits: np.ndarray
    """Images of another shape, bool [N]."""
    compared: np.ndarray
    """Images whose size shows that outlines are for the upright image, or that they are not, bool [N]."""


def _fit(files: Files, stated: np.ndarray) -> _Fit:
    """Compare the stated sizes, int64 [N, 2], with those of the images; 0 if not stated."""
    sizes = files.sizes.astype(np.int64)
    is_stated = stated.min(axis=1) > 0
    frames = np.where(is_stated[:, None], stated, sizes).clip(1)
    orientations = np.ones(len(files)) if files.orientations is None else files.orientations
    swaps = (orientations >= TRANSPOSED) & (sizes[:, 0] != sizes[:, 1])
    known = sizes.min(axis=1) > 0
    agree = _same_shape(frames, sizes) | ~known
    stored = ~agree & swaps & _same_shape(frames[:, ::-1], sizes)
    turned = stored
    if stored.any() and not (agree & swaps & is_stated & known).any():
        turned = (orientations > 1) & (agree | stored)
    return _Fit(
        frames=frames,
        turned=turned,
        misfits=(~agree & ~stored) | (frames.prod(axis=1, dtype=np.float64) > MAX_PIXELS),
        compared=swaps & is_stated & known,
    )


def _same_shape(stated: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return whether one factor for both sides leads from the stated to the real sizes, [N]."""
    factor = sizes.max(axis=1, keepdims=True) / stated.max(axis=1, keepdims=True)
    return (np.abs(stated * factor - sizes) <= ROUNDING_PX).all(axis=1)


class _Drawing:
    """Objects of the images of a phase, as they are read."""

    def __init__(
        self, files: Files, fit: _Fit, bad: BadLabels, places: Sequence[str], *, upright: bool
    ) -> None:
        self.files, self.fit, self.errors, self.bad = files, fit, bad, set[int]()
        self.objects: list[tuple[int, str, Object]] = []
        for i in np.flatnonzero(fit.misfits).tolist():
            (height, width), (h, w) = fit.frames[i].tolist(), files.sizes[i].tolist()
            reason = f"outlines are for {width} x {height} pixels, but {files.name(i)} has {w} x {h}"
            if not upright and (height, width) == (w, h):
                reason += "; omit --exif ignore if the image is upright by its EXIF orientation"
            self.add_bad(i, places[i], reason)

    def add(self, image: int, where: str, read: Callable[[tuple[int, int]], Object]) -> None:
        """Add an object, or its image to the bad ones if `read` raises ValueError."""
        if self.fit.misfits[image]:
            return
        height, width = self.fit.frames[image].tolist()
        try:
            self.objects.append((image, where, read((height, width))))
        except ValueError as error:
            self.add_bad(image, where, str(error))

    def add_bad(self, image: int, where: str, reason: str) -> None:
        """Add an error, and its image to the bad ones."""
        self.errors.add(where, reason)
        self.bad.add(image)

    def _regions(self, *, by_area: bool) -> list[list[Region]]:
        """Return the regions of each image in the order in which they are drawn."""
        polygons = [(image, item) for image, _, item in self.objects if isinstance(item, Polygons)]
        images = np.array([image for image, _ in polygons], dtype=np.int64)
        drawn = iter(polygon_regions([item for _, item in polygons], self.fit.frames[images]))
        regions: list[list[Region]] = [[] for _ in range(len(self.files))]
        for image, where, item in self.objects:
            region = next(drawn) if isinstance(item, Polygons) else item
            if isinstance(region, str):
                self.add_bad(image, where, region)
            elif region is not None:
                regions[image].append(region)
        if by_area:
            for own in regions:
                own.sort(key=lambda region: -region.area)
        return regions

    def outlined(self, *, by_area: bool) -> Outlined:
        """Return the images and their masks.

        Args:
            by_area: draw small objects last, instead of in the order of the file.
        """
        files, fit, regions = self.files, self.fit, self._regions(by_area=by_area)
        sizes = np.where((files.sizes > 0).all(axis=1, keepdims=True), files.sizes, fit.frames)
        orientations = np.ones(len(files), dtype=np.uint8)
        if files.orientations is not None:
            orientations[fit.turned] = files.orientations[fit.turned]
        swapped = np.where((orientations >= TRANSPOSED)[:, None], sizes[:, ::-1], sizes)
        scaled = ~fit.misfits & (np.abs(fit.frames - swapped) > ROUNDING_PX).any(axis=1)
        remarks = []
        if fit.turned.any():
            remarks.append(
                f"outlines turned upright by EXIF orientation: those of {fit.turned.sum():,} images"
            )
        if scaled.any():
            remarks.append(f"outlines scaled to the sizes of their images: those of {scaled.sum():,} images")
        return Outlined(
            files=files,
            outlines=Outlines.of(regions, fit.frames, sizes, orientations),
            bad=self.bad,
            compared=fit.compared,
            remarks=remarks,
        )
