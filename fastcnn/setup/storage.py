"""Room for the checkpoints of a run, compared with the free space before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from fastcnn import files
from fastcnn.engine.checkpointer import AVERAGE, BEST, LAST, Checkpointer
from fastcnn.engine.state import TrainState
from fastcnn.errors import WriteError

OPTIMIZER_SLOTS = 2
"""Assumed tensors per parameter of an optimizer that makes them at its first step: two moments."""


def check_room(run: Checkpointer) -> str | None:
    """Compare the room for checkpoints with the free space of the run's folder.

    A save writes the new checkpoint while `last.pt` and an older `best.pt` are there.

    Returns:
        A warning if a later save may not fit; None if there is room.

    Raises:
        WriteError: not even the next checkpoint fits.
    """
    free, size, folder = files.free_bytes(run.folder), checkpoint_bytes(run), run.folder
    if free is None:
        return None
    if free < size:
        raise WriteError(
            f"cannot write checkpoints to {folder}: one takes about {files.in_units(size)}, and "
            f"{files.in_units(free)} are free; make room there, or use another --output-dir"
        )
    names = LAST, BEST, *([AVERAGE] if run.config.average_last else [])
    needed = (len(names) + 1) * size - _size_on_disk(folder / name for name in names)
    if free >= needed:
        return None
    return (
        f"warning: {folder}: checkpoints may take {files.in_units(needed)} more, and {files.in_units(free)} "
        "are free; make room there"
    )


def checkpoint_bytes(run: Checkpointer) -> int:
    """Return the approximate size of a checkpoint in bytes."""
    state = run.state
    model = _bytes(state.network.state_dict().values())
    ema = _bytes(state.ema.average.values()) if state.ema is not None else 0
    buffers = _bytes(buffer for buffer in state.network.buffers() if buffer.is_floating_point())
    averaged = model if run.config.average_last else 0
    return model + ema + averaged + run.ranks.world_size * buffers + _optimizer_bytes(state)


def _optimizer_bytes(state: TrainState) -> int:
    moments = _bytes(
        value
        for slots in state.optimizer.state.values()
        for value in slots.values()
        if isinstance(value, Tensor)
    )
    trained = _bytes(p for p in state.network.parameters() if p.requires_grad)
    return moments or OPTIMIZER_SLOTS * trained


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size_on_disk(paths: Iterable[Path]) -> int:
    """Return the bytes of the files that exist; names of one file count once."""
    found = [path.stat() for path in paths if path.exists()]
    return sum({status.st_ino: status.st_size for status in found}.values())
