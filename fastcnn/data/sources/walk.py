"""List the image files of folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastcnn.data.reading import entries_of, patiently, read_error
from fastcnn.data.sources.layout import is_leftover
from fastcnn.data.sources.names import Names

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif", ".hif", ".jp2", ".dcm", ".dicom", ".npy"),
)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Files within F folders."""

    paths: Names
    """N paths, folder by folder."""
    counts: np.ndarray
    """Number of files within each folder, int64 [F]."""
    remarks: tuple[str, ...] = ()
    """Messages about links and folders that were passed over."""


def list_images(roots: Sequence[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Listing:
    """List the files with these suffixes within folders, recursive and sorted, without leftovers.

    Each real folder is listed once, in its own place if that lies within the roots. Links to other folders
    are followed; a link to a listed folder, or to one that contains it, is passed over with a remark.

    Raises:
        ReadError: a folder that cannot be read.
    """
    walk = _Walk(suffixes)
    for number, root in enumerate(roots):
        walk.begin(number, root)
    walk.follow_links()
    counts = np.zeros(len(roots), dtype=np.int64)
    texts: list[bytes] = []
    for (number, _), (text, count) in sorted(walk.found.items()):
        texts.append(text)
        counts[number] += count
    paths = Names.split(b"\0".join(texts), int(counts.sum()))
    return Listing(paths=paths, counts=counts, remarks=walk.remarks())


def image_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Names:
    """Return the paths of a folder's files with these suffixes, in the order of `list_images`."""
    return list_images([folder], suffixes).paths


def and_more(names: Sequence[str]) -> str:
    """Return the number of names, as a suffix to the first one; "" for a single name."""
    return f" ({len(names)} in all)" if len(names) > 1 else ""


class _Folder(NamedTuple):
    depth: int
    root: int
    """Number of the root that it belongs to."""
    place: tuple[str, ...]
    """Names of the folders from the root to this one."""
    path: str


class _Walk:
    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.suffixes = suffixes
        self.found: dict[tuple[int, tuple[str, ...]], tuple[bytes, int]] = {}
        """Paths, separated by zero bytes, and their number, by root and place."""
        self.listed: dict[tuple[int, int] | str, str] = {}
        """Paths of the listed folders, by identity."""
        self.above: set[str] = set()
        """Real paths of folders that contain listed ones."""
        self.links: list[_Folder] = []
        """Links to folders that wait to be followed, so that an image stays in its own folder."""
        self.skipped: dict[str, list[str]] = {}
        """Remarks by kind."""

    def begin(self, root: int, path: Path) -> None:
        """List a root; a link waits."""
        top = _Folder(0, root, (), str(path))
        self._enter(os.path.join(os.path.realpath(path.parent), path.name))
        if path.is_symlink():
            self.links.append(top)
        else:
            self._list_tree(top)

    def follow_links(self) -> None:
        """List what links lead to, outer links first; skip listed folders and those that contain a link."""
        while self.links:
            links, self.links = sorted(self.links), []
            for link in links:
                target = os.path.realpath(link.path)
                known = self.listed.get(_identity(target))
                if known is not None:
                    self._skip("listed", f"{link.path} links to {known}, which is listed already")
                elif target in self.above:
                    self._skip("loop", f"{link.path} links to {target}, which contains it")
                else:
                    self._enter(target)
                    self._list_tree(link)

    def remarks(self) -> tuple[str, ...]:
        return tuple(f"skipped: {found[0]}{and_more(found)}" for found in self.skipped.values())

    def _skip(self, kind: str, remark: str) -> None:
        self.skipped.setdefault(kind, []).append(remark)

    def _skip_special(self, entry: os.DirEntry[str]) -> None:
        """Remark on a pipe, socket or device with the suffix of an image."""
        if entry.name.lower().endswith(self.suffixes) and not entry.name.startswith("."):
            self._skip("special", f"{entry.path} is not a regular file")

    def _enter(self, real: str) -> None:
        parent = os.path.dirname(real)
        while parent not in self.above:  # ends at the root, which is its own parent
            self.above.add(parent)
            parent = os.path.dirname(parent)

    def _list_tree(self, top: _Folder) -> None:
        """List a folder and those within it; links wait."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                identity = _identity(folder.path)
                if identity in self.listed:
                    self._skip("same", f"{folder.path} is the same folder as {self.listed[identity]}")
                    continue
                self.listed[identity] = folder.path
                waiting += self._list_folder(folder, entries_of(folder.path))
            except OSError as error:
                raise read_error(folder.path, error.errno) from error

    def _list_folder(self, folder: _Folder, listed: list[os.DirEntry[str]]) -> list[_Folder]:
        """Record the images of a folder; return the folders within it."""
        names = [entry.name for entry in listed if entry.is_file(follow_symlinks=False)]
        others = listed if len(names) < len(listed) else []
        inner: list[_Folder] = []
        for entry in others:
            link = entry.is_symlink()
            if link and not _is_folder(entry):
                if _is_special(entry):
                    self._skip_special(entry)
                    continue
                names.append(entry.name)
                if not (entry.name.lower().endswith(self.suffixes) or os.path.exists(entry.path)):
                    self._skip("broken", f"{entry.path} links to {os.readlink(entry.path)}, which is missing")
            elif link or entry.is_dir(follow_symlinks=False):
                if is_leftover(entry.name):
                    self._skip("leftover", f"{entry.path} is of an operating system or a tool")
                else:
                    found = _Folder(folder.depth + 1, folder.root, (*folder.place, entry.name), entry.path)
                    (self.links if link else inner).append(found)
            elif not entry.is_file(follow_symlinks=False):
                self._skip_special(entry)
        suffixes = self.suffixes
        names = [name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
        if names:
            parent = os.path.join(folder.path, "")
            text = parent + f"\0{parent}".join(sorted(names))
            self.found[folder.root, folder.place] = text.encode("utf-8", "surrogateescape"), len(names)
        return sorted(inner, reverse=True)


def _is_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a link to itself
        return False


def _is_special(link: os.DirEntry[str]) -> bool:
    """Return whether a link leads to something other than a file or folder."""
    try:
        return not stat.S_ISREG(link.stat().st_mode)
    except OSError:  # a broken link, or one to itself
        return False


def _identity(path: str) -> tuple[int, int] | str:
    """Return device and inode of a folder, or its real path where a file system has no inodes."""
    status = patiently(lambda: os.stat(path), path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
