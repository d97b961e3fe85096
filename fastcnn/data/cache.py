"""Cache of reproducible files: the demo set, image headers, shard indices. Torch-free."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastcnn import files
from fastcnn.errors import UserError, WriteError


def cache_root() -> Path:
    """Return the cache folder, which need not exist.

    $FASTCNN_CACHE if set, else $XDG_CACHE_HOME/fastcnn, else ~/.cache/fastcnn; for a user without a home, a
    folder of temporary files that belongs to the user.

    Raises:
        UserError: a "~" of $FASTCNN_CACHE or $XDG_CACHE_HOME stands for no folder.
    """
    for name, folder in (("FASTCNN_CACHE", "."), ("XDG_CACHE_HOME", "fastcnn")):
        if value := os.environ.get(name):
            return files.expand_user(value, name) / folder
    try:
        return Path("~/.cache/fastcnn").expanduser()
    except RuntimeError:
        return _without_home()


@functools.cache
def _without_home() -> Path:
    path = Path(tempfile.gettempdir()) / f"fastcnn-{os.getuid() if hasattr(os, 'getuid') else 0}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise files.failure(path, "the cache", error) from error
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise UserError(f"{path}: the cache without a home folder, but of another user; set FASTCNN_CACHE")
    print(f"warning: no home folder: the cache is {path}; FASTCNN_CACHE sets another", file=sys.stderr)
    return path


def keep(path: Path, consequence: str, **arrays: Any) -> None:
    """Write arrays to an .npz file atomically.

    Args:
        consequence: end of the warning that is printed if the file cannot be written.
    """
    try:
        files.make_folder(path.parent, "the cache's folder")
        with files.writing(path, "a cache's file", shared=True) as file:
            np.savez(file, **arrays)
    except WriteError as error:
        print(f"warning: {error}; until then {consequence}", file=sys.stderr)
