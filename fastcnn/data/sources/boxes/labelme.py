"""Read boxes of LabelMe's JSON, one file per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcnn.data.sources.boxes.rows import BoxSet, Rows, with_boxes
from fastcnn.data.sources.label_files import BadLabels, find_labels, listed_classes
from fastcnn.data.sources.labelme import NO_AREA, LabelMe, bounds, read_labelme
from fastcnn.data.sources.manifest import in_threads
from fastcnn.errors import ReadError

NO_CLASSES = ("__ignore__", "_background_")
"""First lines of LabelMe's labels.txt."""


def read_labelme_set(root: Path, file: Path | None, bad: BadLabels) -> BoxSet | None:
    """Read images with LabelMe's files beside them, or in a folder of their own; None if there are none.

    Each shape becomes the box around it; points and lines are skipped.
    """
    found = {} if file is not None else find_labels(root, "json", ".json", bad)
    files = {phase: list(in_threads(_read, own.labels)) for phase, own in found.items()}
    read = [content for contents in files.values() for content in contents if isinstance(content, LabelMe)]
    if not read:
        return None
    names = {shape.label for content in read for shape in content.shapes if shape.kind not in NO_AREA}
    listed = tuple(name for name in listed_classes(root) if name not in NO_CLASSES)
    class_names = listed or tuple(sorted(names - {""}))
    parts = {}
    for phase, own in found.items():
        sizes = [(c.height, c.width) if isinstance(c, LabelMe) else (0, 0) for c in files[phase]]
        parts[phase] = with_boxes(own, phase, _rows(files[phase], own.labels, class_names), sizes)
    return BoxSet(parts=parts, class_names=class_names)


def _read(path: str | None) -> LabelMe | str | None:
    """Return a file's content, or why it cannot be read; None without a file."""
    if path is None:
        return None
    try:
        return read_labelme(path)
    except OSError as error:
        return error.strerror or "cannot be read"
    except ReadError:
        raise
    except ValueError as error:
        return str(error)


def _rows(
    files: Sequence[LabelMe | str | None], paths: Sequence[str | None], class_names: Sequence[str]
) -> Rows:
    rows = Rows(lambda image, number: f"{paths[image]}" + (f", shape {number}" if number else ""))
    index = {name: float(i) for i, name in enumerate(class_names)}
    without_area = 0
    for image, file in enumerate(files):
        if isinstance(file, str):
            rows.add_unread(image, file)
        for number, shape in enumerate(file.shapes if isinstance(file, LabelMe) else (), 1):
            box = bounds(shape)
            if shape.kind in NO_AREA:
                without_area += 1
            elif box is None:
                rows.add_broken(image, number, f"a {shape.kind} of {len(shape.points)} points")
            elif shape.label not in index:
                rows.add_unnamed(image, number, shape.label, len(index))
            else:
                rows.values.append((image, number, index[shape.label], *box, 0))
    if without_area:
        rows.remarks.append(f"points and lines skipped, which have no area: {without_area:,}")
    return rows
