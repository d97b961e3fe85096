"""Cache of reproducible files: the demo set, image headers, shard indices. Torch-free."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def cache_root() -> Path:
    """Return the cache folder, which need not exist.

    $FASTCNN_CACHE if set, else $XDG_CACHE_HOME/fastcnn, else ~/.cache/fastcnn.
    """
    override = os.environ.get("FASTCNN_CACHE")
    path = Path(override) if override else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastcnn"
    return path.expanduser()


def keep(path: Path, consequence: str, **arrays: Any) -> None:
    """Write arrays to an .npz file atomically.

    Args:
        consequence: end of the warning that is printed if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez(file, **arrays)
        os.replace(file.name, path)
    except OSError as error:
        print(f"warning: {path.parent}: {error.strerror}; {consequence}", file=sys.stderr)
