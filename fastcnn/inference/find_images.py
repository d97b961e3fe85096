"""Find the images of a command line: files, folders, globs, and - for an image from stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastcnn.data.sources.walk import image_files
from fastcnn.errors import UserError

MAX_STDIN = 1 << 30
"""Maximum bytes of an image from stdin."""


class NamedImage(NamedTuple):
    """An image to predict."""

    name: str
    """Path below the folder that contains all images, or stdin."""
    image: str | bytes
    """Path or encoded bytes."""


def find_images(words: Sequence[str]) -> list[NamedImage]:
    """Return the images of a command line, each once.

    Args:
        words: files, folders (with the images in and below them), globs, or - for one image from stdin.

    Raises:
        UserError: a word that is none of these, or a folder without images.
    """
    if "-" in words:
        if len(words) > 1:
            raise UserError("-: an image from stdin, and others beside it; use the one or the others")
        return [NamedImage("stdin", _from_stdin())]
    places = [place for word in words for place in _places(word)]
    if len(places) == 1 and os.path.isdir(places[0]):
        root = places[0]
    else:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(place)) for place in places])
    paths = [path for place in places for path in _images_in(place)]
    return _named(paths, root)


def _named(paths: Iterable[str], root: str) -> list[NamedImage]:
    names = {os.path.relpath(path, root): path for path in paths}
    return [NamedImage(name, path) for name, path in names.items()]


def _places(word: str) -> list[str]:
    """Return the file or folder of a word, or those that match it."""
    if os.path.exists(word):
        return [word]
    if not glob.has_magic(word):
        raise UserError(f"{word}: no such file or folder; use an image or a folder of images")
    found = sorted(glob.glob(word, recursive=True))
    if not found:
        raise UserError(f"{word}: no file matches; use an image, a folder or another pattern")
    return found


def _images_in(place: str) -> list[str]:
    if not os.path.isdir(place):
        return [place]
    paths = list(image_files(Path(place)))
    if not paths:
        raise UserError(f"{place}: no images in it; use another folder")
    return paths


def _from_stdin() -> bytes:
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if not data:
        raise UserError("-: nothing arrives on stdin; pipe an image into the command")
    if len(data) > MAX_STDIN:
        raise UserError("-: more than 1 GiB arrives on stdin; use the path of an image")
    return data
