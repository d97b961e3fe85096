"""List the image files of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastcnn.data.sources.layout import is_leftover

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif", ".jp2"),  # not decoded, but reported
)


def image_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Return the paths of a folder's files with these suffixes, recursive and sorted, without leftovers."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_leftover(name))
        found += [
            os.path.join(parent, name)
            for name in sorted(names)
            if name.lower().endswith(suffixes) and not is_leftover(name)
        ]
    return found


def and_more(names: Sequence[str]) -> str:
    """Return the number of names, as a suffix to the first one; "" for a single name."""
    return f" ({len(names)} in all)" if len(names) > 1 else ""
