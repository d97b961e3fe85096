"""COCO's JSON: reading, and where its images lie."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastcnn.data.reading import entries_of, open_regular, patiently, read_file
from fastcnn.data.sources.label_files import IMAGE_FOLDERS, plain
from fastcnn.data.sources.layout import PHASE_WORDS, Phase, check_unique, child, folders, phase_of, phases
from fastcnn.data.sources.text import decode_text, stated_side
from fastcnn.data.sources.walk import image_files
from fastcnn.errors import ReadError, UserError

ANNOTATION_FOLDERS = ("annotations", "annotation")
KEYS = (b'"images"', b'"annotations"', b'"categories"')


class Coco(NamedTuple):
    """A COCO file of instances (Lin et al. 2014; cocodataset.org/#format-data)."""

    path: Path
    images: dict[Any, str]
    """File names by image id."""
    categories: dict[Any, str]
    """Names by category id, in the order of the ids."""
    annotations: list[Any]
    sizes: dict[Any, tuple[int, int]]
    """Height and width by image id, as stated; 0 if not."""


def read_coco(path: Path, *, outlines: bool = False) -> Coco:
    """Read a COCO file; UserError if it is malformed.

    Args:
        outlines: keep the segmentations, most of the file's bytes, with polygons as arrays [P, 2].
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; correct the path") from error
    try:
        hook = _with_arrays if outlines else _without_outlines
        content = json.loads(decode_text(data), object_hook=hook)
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        sizes = {
            image["id"]: (stated_side(image.get("height")), stated_side(image.get("width")))
            for image in content["images"]
        }
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        categories = {key: names[key] for key in sorted(names)}
        annotations = list(content["annotations"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    except KeyError as error:
        raise UserError(f"{path}: something has no {error}; see cocodataset.org/#format-data") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: not as COCO has it ({error}); see cocodataset.org/#format-data") from error
    if len(images) < len(content["images"]):
        raise UserError(f"{path}: two images have the same id; give each its own")
    return Coco(path, images, categories, annotations, sizes)


def read_coco_files(files: Mapping[Phase, Path], *, outlines: bool = False) -> dict[Phase, Coco]:
    """Read the COCO files of a set; UserError if one is malformed or has other categories than training."""
    read = {phase: read_coco(path, outlines=outlines) for phase, path in files.items()}
    categories = read["train"].categories
    if not categories:
        raise UserError(f"{files['train']}: no categories; list the classes there")
    for coco in read.values():
        for key, name in coco.categories.items():
            if categories.get(key, name) != name:
                raise UserError(
                    f"{coco.path}: category {key} is {name!r}, but {categories[key]!r} in {files['train']}"
                )
    return read


def _with_arrays(record: dict[str, Any]) -> dict[str, Any]:
    """Turn polygons into arrays, a tenth of the size of lists; malformed ones stay, to be reported."""
    outline = record.get("segmentation")
    if outline and isinstance(outline, list):
        parts = outline if isinstance(outline[0], list) else [outline]  # one without its own brackets
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            record["segmentation"] = [np.array(part, dtype=np.float64).reshape(-1, 2) for part in parts]
    return record


def _without_outlines(record: dict[str, Any]) -> dict[str, Any]:
    """Drop an outline; if it is a polygon without a box, its bounds become the box."""
    outline = record.pop("segmentation", None)
    if outline and isinstance(outline, list) and not record.get("bbox"):
        try:
            points = np.concatenate([np.reshape(part, (-1, 2)) for part in outline]).astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            return record
        low, high = points.min(axis=0), points.max(axis=0)
        record["bbox"] = [*low.tolist(), *(high - low).tolist()]
    return record


def find_coco(root: Path) -> dict[Phase, Path]:
    """Return the COCO files of a folder by phase; one file without a phase counts as training.

    They lie in `annotations/`, in the folders of the phases, or in the folder itself. None without a training
    file.

    Raises:
        UserError: two files of one phase, or two of its folders.
    """
    annotations = child(root, ANNOTATION_FOLDERS)
    if annotations is not None and annotations.is_dir():
        found = _by_phase([path for path in _json_files(annotations) if not _is_other(path)])
        if found:
            return found
    beside: dict[Phase, Path] = {}
    for phase, folder in phases(root).items():
        paths = [path for path in _json_files(folder) if _has_keys(path)]
        if paths:
            beside[phase] = _only(paths)
    if "train" in beside:
        check_unique(root, (path.parent for path in beside.values()))
        return beside
    return _by_phase([path for path in _json_files(root) if _has_keys(path)])


def _by_phase(paths: Sequence[Path]) -> dict[Phase, Path]:
    """Sort files by the phase in their names; none without a training file."""
    of_phase: dict[Phase | None, list[Path]] = {}
    for path in paths:
        of_phase.setdefault(_named_phase(path), []).append(path)
    whole = of_phase.pop(None, [])
    if not of_phase:
        of_phase = {"train": whole}
    found: dict[Phase, Path] = {}
    for phase, same in of_phase.items():
        if phase is not None and same and (phase != "test" or _has_keys(_only(same))):
            found[phase] = _only(same)
    return found if "train" in found else {}


def _named_phase(path: Path) -> Phase | None:
    """Return the only phase among the words of a file's name."""
    words = {PHASE_WORDS[word] for word in re.findall(r"[a-z]+", path.stem.lower()) if word in PHASE_WORDS}
    return words.pop() if len(words) == 1 else None


def _only(paths: Sequence[Path]) -> Path:
    """Return the file of instances among some COCO files; UserError for two of them."""
    instances = [path for path in paths if path.name.startswith("instances")] or list(paths)
    if len(instances) > 1:
        raise UserError(
            f"{instances[0]}: {instances[1].name} is beside it; keep one of them, or name it with --data"
        )
    return instances[0]


def _json_files(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in entries_of(folder) if _is_json(entry))


def _is_json(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(".json") and not entry.name.startswith(".") and entry.is_file()


def _has_keys(path: Path) -> bool:
    """Return whether a file has the words of a COCO file, without parsing it."""
    return _contains(path, KEYS)


def _is_other(path: Path) -> bool:
    """Return whether a file is LabelMe's, one image's outlines."""
    return _contains(path, (b'"shapes"',)) and not _has_keys(path)


def _contains(path: Path, words: Sequence[bytes]) -> bool:
    try:
        return patiently(lambda: _find_all(path, words), path)
    except ReadError:
        raise
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def _find_all(path: Path, words: Sequence[bytes]) -> bool:
    file, _ = open_regular(path)
    try:
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
            return all(data.find(word) >= 0 for word in words)
    finally:
        os.close(file)


class Located(NamedTuple):
    """Paths of the images of a COCO file."""

    paths: list[str | None]
    """Path of each image; None if it is not there."""
    looked: list[Path]
    """Folders in which images were looked for, the most likely first."""
    guessed: int
    """Images found by the end of their names only."""


def locate(root: Path, coco: Coco, phase: Phase) -> Located:
    """Find the images of a COCO file in the folders where they usually lie.

    A name is a path within a folder, in any case and with slashes of any system. Otherwise its last part
    counts, if one image alone has it: leading folders may be those of another machine. Folders of another
    phase than the one that the file names are left out of that.
    """
    own = phase_of(coco.path.parent.name) or _named_phase(coco.path)
    looked = _image_folders(root, coco.path, own or phase)
    names = [name.replace("\\", "/").removeprefix("./") for name in coco.images.values()]
    wanted = set(names)
    known: dict[str, str] = {}
    for folder in looked:
        for path in image_files(folder):
            known.setdefault(path[len(str(folder)) + 1 :], path)
        if wanted <= known.keys():
            return Located([known[name] for name in names], looked, 0)

    @functools.cache
    def fits(inner: str) -> bool:
        return all(phase_of(part) in (None, own) for part in inner.split("/"))

    alike: dict[str, str] = {}
    ends: dict[str, set[str]] = {}
    for name, path in known.items():
        alike.setdefault(plain(name), path)
        if Path(path).is_relative_to(looked[0]) and (own is None or fits(os.path.dirname(name))):
            ends.setdefault(_end(name), set()).add(path)
    counts = Counter(map(_end, names))
    paths: list[str | None] = []
    guessed = 0
    for name in names:
        found = known.get(name) or alike.get(plain(name))
        same = ends.get(_end(name), set())
        if found is None and len(same) == counts[_end(name)] == 1:
            found = next(iter(same))
            guessed += 1
        paths.append(found)
    return Located(paths, looked, guessed)


def _end(name: str) -> str:
    return plain(name.rpartition("/")[2])


def _image_folders(root: Path, file: Path, phase: Phase) -> list[Path]:
    """Return the folders where images of a COCO file may lie, the most likely first."""
    if phase_of(file.parent.name) is not None:  # beside the images of its phase
        images = child(file.parent, IMAGE_FOLDERS)
        return [images, file.parent] if images is not None and images.is_dir() else [file.parent]
    images = child(root, IMAGE_FOLDERS)
    images = images if images is not None and images.is_dir() else None
    places = [root] if images is None else [root, images]
    words = set(re.findall(r"\w+", file.stem.lower().replace("_", " ")))
    own = [
        folder
        for place in places
        for folder in folders(place)
        if phase_of(folder.name) == phase or folder.name.lower() in words
    ]
    own.sort(key=lambda folder: folder.name.lower() not in words)
    return [*own, *reversed(places)]
