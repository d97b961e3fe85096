"""Checkpoints to explain: opened already, or by their path."""

from __future__ import annotations

from pathlib import Path

from fastcnn.errors import UserError
from fastcnn.inference.exported import is_exported
from fastcnn.inference.trained import Trained, open_trained


def opened(network: Trained | str | Path, arch: str | None = None) -> Trained:
    """Return a checkpoint, opened if it is a path.

    Raises:
        UserError: no such checkpoint, or an exported file, whose layers cannot be seen.
    """
    if isinstance(network, Trained):
        return network
    path = Path(network)
    if is_exported(path):
        raise UserError(f"{path}: an exported file does not show its layers; use the checkpoint")
    return open_trained(path, "fastcnn explain", arch)
