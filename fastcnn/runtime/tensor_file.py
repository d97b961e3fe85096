"""Files of `torch.save`, read without running code from them and within the memory of their size."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_VALUES = 5_000_000
"""Max values in a file, each counted as often as it is referred to."""


def read_tensor_file(path: Path) -> Any:
    """Read tensors and plain types from a file of `torch.save`, on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content would take far more memory than the file has bytes.
        Exception: foreign bytes; an unpickler raises anything.
    """
    check_regular(path)
    if zipfile.is_zipfile(path):
        _check_records(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("cut") from error  # torch sought a place before the file's beginning
    _check_values(content, path.stat().st_size)
    return content


def check_regular(path: Path) -> None:
    """Raise OSError for a missing file, a folder, or a pipe or device, which may block or never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def _check_records(path: Path) -> None:
    """Raise ValueError for compressed records, and for a pickle that could reserve memory by a number alone.

    `torch.save` compresses nothing. Of the types that torch allows, `bytearray(N)` fills N bytes.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed records")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("records that overlap")
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if any(b"bytearray" in archive.read(record) for record in pickles):
            raise ValueError("a bytearray")


def _check_values(content: Any, file_size: int) -> None:
    """Raise ValueError for references without end, and tensors of more bytes than the file."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count + len(waiting) > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set):
            waiting.extend(value)
        elif isinstance(value, Tensor):
            _check_tensor(value, file_size)
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("a number of more than 64 bits")


def _check_tensor(value: Tensor, file_size: int) -> None:
    """Raise ValueError for a tensor with more elements than bytes in the file, as by strides of 0."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        raise ValueError("a tensor that is not dense")
    stored = value.untyped_storage().nbytes()
    if stored > file_size or value.numel() * value.element_size() > stored:
        raise ValueError("a tensor larger than the file")
