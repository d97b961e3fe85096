"""Where fastcnn keeps what it can make again: the demo set, image headers, indices of shards. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$FASTCNN_CACHE if set, else $XDG_CACHE_HOME/fastcnn, else ~/.cache/fastcnn. It need not exist."""
    told = os.environ.get("FASTCNN_CACHE")
    path = Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastcnn"
    return path.expanduser()
