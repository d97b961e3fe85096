"""Find the images that a table names, with or without suffix and folders, in any case."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fastcnn.data.sources.layout import Phase, phase_of
from fastcnn.data.sources.walk import IMAGE_SUFFIXES


class FileIndex:
    """The images of a folder by their names.

    Args:
        root: the folder.
        paths: paths of its images.
        preferred: phase whose folder decides between images of the same name.
    """

    def __init__(self, root: Path, paths: Sequence[str], preferred: Phase | None = None) -> None:
        self.root = root
        self.paths = paths
        self.preferred = preferred
        self._prefix = os.path.join(root, "")
        self._relative = [self.relative(path) for path in paths]
        self._by_end: dict[tuple[int | None, bool], dict[str, list[int]]] = {}

    def find(self, cell: Any) -> tuple[str, str]:
        """Return the path of the image that a cell names, or "" and the reason for none.

        A name matches a file if one is the end of the other's path: `a.jpg` and `/elsewhere/train/a.jpg`
        match `train/a.jpg`, `val/a.jpg` does not. Names without suffix match files with any.
        """
        name = as_name(cell)
        if not name:
            return "", "no file name"
        exact = self._exact.get(name)
        if exact is not None:
            return self.paths[exact], ""
        parts = [part for part in _folded(name).split("/") if part not in ("", ".", "..")]
        found = self._matches(parts, stems=False) or self._matches(parts, stems=True)
        if len(found) > 1 and self.preferred is not None:
            found = [i for i in found if phase_of_path(self._relative[i]) == self.preferred] or found
        if len(found) > 1:
            first, second = (self._relative[i] for i in found[:2])
            return "", f"{name} may be {first} or {second} (name its folder too)"
        if found:
            return self.paths[found[0]], ""
        if os.path.isabs(name) and os.path.isfile(name):
            return name, ""
        return "", f"{name} is not in {self.root}"

    def relative(self, path: str) -> str:
        """Return the path of an image within the folder, with "/"."""
        return path.removeprefix(self._prefix).replace(os.sep, "/")

    def _matches(self, parts: Sequence[str], *, stems: bool) -> list[int]:
        """Return the files whose paths end with `parts`, else those with whose path `parts` end."""
        depth = len(parts)
        if depth == 0:
            return []
        found = self._ends(depth, stems=stems).get("/".join(parts), [])
        if found:
            return [i for i in found if self._relative[i].count("/") == depth - 1] or found
        shorter = ("/".join(parts[-count:]) for count in range(depth - 1, 0, -1))
        return next(filter(None, (self._ends(None, stems=stems).get(end) for end in shorter)), [])

    def _ends(self, depth: int | None, *, stems: bool) -> dict[str, list[int]]:
        """Return the files by the last `depth` parts of their paths, or by whole paths.

        Args:
            stems: leave suffixes out.
        """
        key = depth, stems
        if key not in self._by_end:
            found: dict[str, list[int]] = {}
            for i, path in enumerate(self._stems if stems else self._folded):
                parts = path.split("/")
                if depth is None or len(parts) >= depth:
                    found.setdefault("/".join(parts[-depth:] if depth else parts), []).append(i)
            self._by_end[key] = found
        return self._by_end[key]

    @cached_property
    def _exact(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self._relative)}

    @cached_property
    def _folded(self) -> list[str]:
        return [_folded(name) for name in self._relative]

    @cached_property
    def _stems(self) -> list[str]:
        return [name.rpartition(".")[0] for name in self._folded]


def as_name(cell: Any) -> str:
    """Return the file name or number in a cell, with "/" between folders; "" without one."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if not isinstance(cell, (str, int)) or isinstance(cell, bool):
        return ""
    return str(cell).strip().replace("\\", "/").removeprefix("./")


def phase_of_path(path: str) -> Phase | None:
    """Return the phase of the first folder that names one, in a path with "/"."""
    return next(filter(None, map(phase_of, path.split("/")[:-1])), None)


def is_image_name(cell: Any) -> bool:
    """Return whether a cell has the suffix of an image."""
    return isinstance(cell, str) and cell.lower().endswith(IMAGE_SUFFIXES)


def _folded(name: str) -> str:
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
