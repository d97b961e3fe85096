"""Where fastcnn keeps what it can make again: the demo set, image headers, indices of shards. Torch-free."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def cache_root() -> Path:
    """$FASTCNN_CACHE if set, else $XDG_CACHE_HOME/fastcnn, else ~/.cache/fastcnn. It need not exist."""
    told = os.environ.get("FASTCNN_CACHE")
    path = Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastcnn"
    return path.expanduser()


def keep(path: Path, consequence: str, **arrays: Any) -> None:
    """Writes arrays to an .npz file that holds the old or the new ones at any instant.

    Args:
        consequence: what a person has to expect where it cannot be written; said in a warning.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.savez(file, **arrays)
        os.replace(file.name, path)
    except OSError as error:
        print(f"warning: {path.parent}: {error.strerror}; {consequence}", file=sys.stderr)
