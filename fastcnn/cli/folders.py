"""Folders of results, under the first free name."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

from fastcnn import files
from fastcnn.errors import WriteError


def new_folder(name: str) -> Path:
    """Create the folder `name`, or name-2, name-3, ...: the first free name."""
    for number in itertools.count(1):
        folder = Path(name if number == 1 else f"{name}-{number}")
        try:
            files.make_folder(folder, "the folder", new=True)
        except WriteError as error:
            if error.code == errno.EEXIST:
                continue
            raise WriteError(f"{error}, or name another with --output-dir", error.code) from error
        return folder
    raise AssertionError("count() is endless")
