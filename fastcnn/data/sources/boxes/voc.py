"""Read boxes of PASCAL VOC's XML, one file per image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from fastcnn.data.sources.boxes.rows import BoxSet, Rows, read_bytes, with_boxes
from fastcnn.data.sources.label_files import BadLabels, LabelFiles, find_labels, listed_classes, plain
from fastcnn.data.sources.layout import Phase, child, phase_of
from fastcnn.data.sources.manifest import in_threads
from fastcnn.data.sources.text import lines_of, stated_side

SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """One object of an XML file."""

    name: str
    box: tuple[float, ...]
    """The numbers of `SIDES`; none if they are malformed."""
    difficult: bool


class VocFile(NamedTuple):
    """One XML file."""

    objects: list[VocObject]
    size: tuple[int, int] = (0, 0)
    """Height and width of the image; 0 if not stated."""
    problem: str = ""
    """Why the file cannot be read."""


def read_voc_set(root: Path, file: Path | None, bad: BadLabels) -> BoxSet | None:
    """Read a folder in VOC's layout, or of images and XML files side by side; None if there are none."""
    found = {} if file is not None else find_labels(root, "xml", ".xml", bad)
    if not found:
        return None
    if list(found) == ["train"]:
        found = _by_image_sets(root, found["train"], bad) or found
    files = {phase: _parse_all(own.labels) for phase, own in found.items()}
    names = {item.name for parsed in files.values() for parts in parsed for item in parts.objects}
    class_names = listed_classes(root) or tuple(sorted(names - {""}))
    parts = {
        phase: with_boxes(
            own, phase, _rows(files[phase], own.labels, class_names), [parsed.size for parsed in files[phase]]
        )
        for phase, own in found.items()
    }
    return BoxSet(parts=parts, class_names=class_names)


def read_voc(paths: Sequence[str | None], class_names: Sequence[str]) -> Rows:
    """Read PASCAL VOC's XML files.

    Pixels are counted from 1, and a box includes its last pixel (development kit of 2012, section 3.5);
    `difficult` objects are crowds.

    Args:
        paths: files of N images; None for an image without boxes.
    """
    return _rows(_parse_all(paths), paths, class_names)


def _rows(files: Sequence[VocFile], paths: Sequence[str | None], class_names: Sequence[str]) -> Rows:
    rows = Rows(lambda image, number: f"{paths[image]}" + (f", object {number}" if number else ""))
    index = {name: float(i) for i, name in enumerate(class_names)}
    for image, file in enumerate(files):
        if file.problem:
            rows.add_unread(image, file.problem)
        for number, item in enumerate(file.objects, 1):
            if not item.box:
                rows.add_broken(image, number, "no bndbox of four numbers")
            elif item.name not in index:
                rows.add_unnamed(image, number, item.name, len(index))
            else:
                left, top, right, bottom = item.box
                box = (left - 1, top - 1, right, bottom)
                rows.values.append((image, number, index[item.name], *box, item.difficult))
    return rows


def _parse_all(paths: Sequence[str | None]) -> list[VocFile]:
    return [_parse(content) for content in in_threads(read_bytes, paths)]


def _parse(content: bytes | OSError) -> VocFile:
    if isinstance(content, OSError):
        return VocFile([], problem=content.strerror or "cannot be read")
    if not content:
        return VocFile([])
    if b"<!ENTITY" in content.replace(b"\0", b""):  # also in UTF-16; a few entities expand without end
        return VocFile([], problem="it declares entities; write their text instead")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        return VocFile([], problem=f"not XML ({error})")
    objects = []
    for item in root.iter("object"):
        box: tuple[float, ...] = ()
        with contextlib.suppress(ValueError):
            box = tuple(float(item.findtext(f"bndbox/{side}", "")) for side in SIDES)
        difficult = item.findtext("difficult", "0").strip() == "1"
        objects.append(VocObject(item.findtext("name", "").strip(), box, difficult))
    height, width = (stated_side(root.findtext(f"size/{side}", "").strip()) for side in ("height", "width"))
    return VocFile(objects, (height, width))


def _by_image_sets(root: Path, whole: LabelFiles, bad: BadLabels) -> dict[Phase, LabelFiles]:
    """Return the images of the lists in `ImageSets/Main` by phase; none without a training list."""
    folder = child(root, ("ImageSets",))
    if folder is None:
        return {}
    folder = child(folder, ("Main",)) or folder
    label_of = dict(zip(whole.images, whole.labels))
    found: dict[Phase, LabelFiles] = {}
    for name in ("train", "training", "trainval", "val", "valid", "validation", "test"):
        path, phase = child(folder, (f"{name}.txt",)), phase_of(name)
        if path is not None and phase is not None and phase not in found:
            images = _listed(path, whole.images, bad)
            found[phase] = LabelFiles(images, [label_of[image] for image in images], [], whole.folder)
    return found if "train" in found else {}


def _listed(file: Path, images: Sequence[str], bad: BadLabels) -> list[str]:
    """Return the images that a list names by stem or file name, at the beginning of each line."""
    of_stem = {plain(Path(path).stem): path for path in reversed(images)}
    found = []
    for number, line in enumerate(lines_of(file), 1):
        if not line.strip():
            continue
        names = [plain(os.path.basename(name)) for name in (line.strip(), line.split()[0])]
        stems = [*names, *(os.path.splitext(name)[0] for name in names)]
        path = next((of_stem[stem] for stem in stems if stem in of_stem), None)
        if path is None:
            bad.add(f"{file}, line {number}", f"{line.strip()} has no image")
        else:
            found.append(path)
    return found
