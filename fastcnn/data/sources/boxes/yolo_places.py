"""Places of images and label files in YOLO's sets: data.yaml, lists, or the folders' names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastcnn.config.yaml_file import parse_yaml
from fastcnn.data.reading import entries_of
from fastcnn.data.sources.label_files import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    BadLabels,
    LabelFiles,
    find_labels,
    find_pairs,
    match_labels,
)
from fastcnn.data.sources.layout import PHASE_WORDS, Phase, check_unique, child
from fastcnn.data.sources.text import lines_of, read_text_any
from fastcnn.data.sources.walk import IMAGE_SUFFIXES, image_files
from fastcnn.errors import UserError

YAML_SUFFIXES = (".yaml", ".yml")
NAME_FILES = ("classes.txt", "obj.names", "classes.names", "labels.txt", "_darknet.labels")
"""Files with a class name a line, of YOLO's many tools."""
LISTS = ("train.txt", "val.txt", "valid.txt", "test.txt")
"""Darknet's lists of images."""
OTHER_TEXTS = frozenset((*NAME_FILES, "readme.txt", "license.txt", *LISTS))
"""Text files beside label files."""


def read_description(root: Path, file: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the file that describes a set, and its content with all scalars as strings.

    It is `file`, else data.yaml, another YAML file with names, Darknet's obj.data, or lists as train.txt.
    Without any of them the content is empty.

    Raises:
        UserError: not YAML, or `file` describes no set.
    """
    own = file or child(root, ("data.yaml", "data.yml", "dataset.yaml"))
    others = sorted(
        p for p in map(Path, entries_of(root)) if p.suffix.lower() in YAML_SUFFIXES and p.is_file()
    )
    for path in others if own is None else [own]:
        try:
            content = parse_yaml(read_text_any(path), strings=True)
        except UserError:  # not a text
            raise
        except ValueError as error:
            if own is None:  # it may be of another program
                continue
            raise UserError(f"{path}: not YAML ({error})") from error
        if isinstance(content, dict) and (path == own or "names" in content):
            return path, content
    if file is not None:
        raise UserError(f"{file}: not YOLO's; write `train:`, `val:` and `names:`")
    return _darknet(root)


def _darknet(root: Path) -> tuple[Path, dict[str, Any]]:
    """Return Darknet's obj.data, `train = data/train.txt` a line, or else the lists beside it."""
    path = child(root, ("obj.data",))
    if path is not None:
        pairs = [line.split("=", 1) for line in lines_of(path) if "=" in line]
        return path, {key.strip(): os.path.basename(value.strip()) for key, value in pairs}
    lists = filter(None, (child(root, (name,)) for name in LISTS))
    return root, {path.stem: path.name for path in lists if _lists_images(path)}


def _lists_images(path: Path) -> bool:
    first = next(filter(None, map(str.strip, lines_of(path))), "")
    return first.lower().endswith(IMAGE_SUFFIXES)


def described_images(path: Path, content: dict[str, Any], bad: BadLabels) -> dict[Phase, LabelFiles]:
    """Return the images that a description names by phase; none if its places do not exist."""
    if missing_places(path, content):
        return {}
    found: dict[Phase, LabelFiles] = {}
    for phase, _, entries in _entries(content):
        places = [_resolve(path, content, entry) for entry in entries]
        files = [own for place in places if place is not None for own in _at(place, _folder(path), bad)]
        if files:
            found[phase] = LabelFiles(
                [image for own in files for image in own.images],
                [label for own in files for label in own.labels],
                [label for own in files for label in own.left if _is_label(label)],
                files[0].folder,
            )
    return found if "train" in found else {}


def missing_places(path: Path, content: dict[str, Any]) -> list[str]:
    """Return the training and validation entries of a description that do not exist."""
    return [
        f"`{key}: {entry}`"
        for phase, key, entries in _entries(content)
        for entry in entries
        if phase != "test" and _resolve(path, content, entry) is None
    ]


def _entries(content: dict[str, Any]) -> Iterator[tuple[Phase, str, list[str]]]:
    """Yield phase, key and entries of each phase in a description."""
    seen = set()
    for key, value in content.items():
        phase = PHASE_WORDS.get(key.lower())
        if phase is not None and phase not in seen and value:
            seen.add(phase)
            yield phase, key, [str(entry) for entry in (value if isinstance(value, list) else [value])]


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _resolve(path: Path, content: dict[str, Any], entry: str) -> Path | None:
    """Return the path of an entry of a description; None if it does not exist.

    Within the folder comes first: exports write `../train/images` for what lies beside data.yaml.
    """
    folder, base = _folder(path), str(content.get("path", "")).replace("\\", "/")
    entry = entry.replace("\\", "/")
    inner = entry
    while inner.startswith(("./", "../")):
        inner = inner.partition("/")[2]
    bases = [folder / base, folder, Path(base)] if base else [folder]
    candidates = (place / name for name in (inner, entry) for place in bases)
    return next((place for place in candidates if os.path.exists(place)), None)  # False for any bad name


def _at(place: Path, root: Path, bad: BadLabels) -> list[LabelFiles]:
    """Return the images of an entry of a description: a folder, a list of images or an image."""
    if place.is_dir():
        pair = _pair_of(place)
        return [_match(image_files(pair[0]), pair, bad)]
    listed = [str(place)] if place.suffix.lower() in IMAGE_SUFFIXES else _listed_images(place, root)
    folders: dict[Path, list[str]] = {}
    for image in listed:
        folders.setdefault(Path(image).parent, []).append(image)
    matched = [_match(images, (folder, _labels_of(folder)), bad) for folder, images in folders.items()]
    return [files._replace(left=[]) for files in matched]  # those of images that are not listed


def _listed_images(file: Path, root: Path) -> list[str]:
    """Return the images of a list; leading folders of a path that does not exist are dropped."""
    found = []
    for number, line in enumerate(lines_of(file), 1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        parts = name.removeprefix("./").split("/")
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        candidates = (place / tail for tail in (name, *tails) for place in (file.parent, root))
        path = next((path for path in candidates if os.path.isfile(path)), None)  # False for any bad name
        if path is None:
            raise UserError(f"{file}, line {number}: {name} is not there; correct the list, or remove it")
        found.append(str(path))
    return found


def _pair_of(folder: Path) -> tuple[Path, Path]:
    """Return the folders of images and labels of an entry of a description."""
    images, labels = child(folder, IMAGE_FOLDERS), child(folder, LABEL_FOLDERS["labels"])
    if images is not None and labels is not None:
        return images, labels
    return folder, _labels_of(folder)


def _labels_of(folder: Path) -> Path:
    """Return the folder of the label files of a folder of images, which may be the same.

    The last `images` of the path is replaced by `labels`, as in YOLO's tools.
    """
    for place in (folder, *folder.parents):
        if place.name.lower() in IMAGE_FOLDERS:
            labels = child(place.parent, LABEL_FOLDERS["labels"])
            for name in folder.relative_to(place).parts:
                labels = labels and child(labels, (name,))
            if labels is not None:
                return labels
    return folder


def images_by_layout(root: Path, bad: BadLabels) -> dict[Phase, LabelFiles]:
    """Return images and label files by the folders' names; also of label folders that are empty."""
    found = find_labels(root, "labels", ".txt", bad)
    if not found:
        pairs = next(find_pairs(root, "labels"), {})
        check_unique(root, (folder for pair in pairs.values() for folder in pair))
        found = {phase: _match(image_files(pair[0]), pair, bad) for phase, pair in pairs.items()}
    return {
        phase: files._replace(left=[path for path in files.left if _is_label(path)])
        for phase, files in found.items()
    }


def _match(images: Sequence[str], folders: tuple[Path, Path], bad: BadLabels) -> LabelFiles:
    return match_labels(images, folders, image_files(folders[1], (".txt",)), bad)


def _is_label(path: str) -> bool:
    return os.path.basename(path).lower() not in OTHER_TEXTS
