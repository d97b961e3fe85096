"""Dispatch of depthwise passes to Triton or PyTorch, by measured tables, one for each GPU.

A table is a JSON file named after the GPU: {"gpu": "NVIDIA H200", "layers": [...]}. Each of `layers` has the
fields of `Layer`, the batch size and the microseconds of both sides. The package's tables are in its folder
`gpus`. Measurements on this machine, by `accelerate` with a sample, are stored in $FASTCNN_KERNELS_CACHE, by
default ~/.cache/fastcnn/kernels, and take precedence. A layer without an entry runs on Triton.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastcnn_kernels.support import warn_once

SHIPPED = Path(__file__).parent / "gpus"


class Layer(NamedTuple):
    """One pass of a depthwise layer: the key of a table."""

    kind: str
    """forward, input_grad or weight_grad"""
    dtype: str
    """bfloat16, float16 or float32"""
    kernel: int
    stride: int
    channels: int
    height: int
    width: int
    """Height and width are those of the layer's input."""
    padding_height: int
    padding_width: int
    """Padding is that of each side."""


Times = dict[Layer, dict[int, tuple[float, float]]]
"""Layer -> batch size -> microseconds of Triton and of PyTorch."""


def cache_folder() -> Path:
    """$FASTCNN_KERNELS_CACHE if set, else $XDG_CACHE_HOME/fastcnn/kernels, else ~/.cache/fastcnn/kernels.

    For a user without a home it is in the folder of temporary files.
    """
    override = os.environ.get("FASTCNN_KERNELS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return (Path(override) if override else base / "fastcnn" / "kernels").expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "fastcnn" / "kernels"


def wins(
    kind: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    input_size: tuple[int, ...],
    kernel: int,
    stride: int,
    padding: tuple[int, int],
) -> bool:
    """True if this pass of a layer runs on Triton: no slower than PyTorch in the tables, or not in them.

    Args:
        kind: forward, input_grad or weight_grad.
        input_size: [N, C, H, W] of the layer's input. The measured batch size nearest in ratio decides.
    """
    batch, channels, height, width = input_size
    name = str(dtype).removeprefix("torch.")
    layer = Layer(kind, name, kernel, stride, channels, height, width, *padding)
    measured = times(_gpu(device)).get(layer)
    if not measured:
        return True
    triton, pytorch = measured[min(measured, key=lambda n: abs(math.log(n / batch)))]
    return triton <= pytorch


def record(gpu: str, rows: Iterable[tuple[Layer, int, float, float]]) -> None:
    """Add rows of (layer, batch, microseconds of Triton, of PyTorch) to the tables of this machine."""
    path = cache_folder() / file_name(gpu)
    kept = read(path)
    for layer, batch, triton, pytorch in rows:
        for known in (times(gpu), kept):
            known.setdefault(layer, {})[batch] = (triton, pytorch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_text(json.dumps(table(gpu, kept), indent=1))
            os.replace(whole, path)
    except OSError as error:
        warn_once(f"{path.parent}: {error.strerror}; measurements are made again the next time")


def table(gpu: str, known: Times) -> dict[str, Any]:
    """Content of a table's file."""
    return {
        "gpu": gpu,
        "layers": [
            {**layer._asdict(), "batch": batch, "triton_us": triton, "pytorch_us": pytorch}
            for layer, batches in known.items()
            for batch, (triton, pytorch) in batches.items()
        ],
    }


@functools.cache
def times(gpu: str) -> Times:
    """Entries of all tables of a GPU; this machine's measurements take precedence."""
    found = read(SHIPPED / file_name(gpu))
    for layer, batches in read(cache_folder() / file_name(gpu)).items():
        found[layer] = {**found.get(layer, {}), **batches}
    return found


def read(path: Path) -> Times:
    """Read a table; a missing file is empty, and a damaged one is ignored with a warning."""
    found: Times = {}
    try:
        for row in json.loads(path.read_text())["layers"]:
            layer, batch = Layer(*(row[field] for field in Layer._fields)), row["batch"]
            if not isinstance(batch, int) or batch < 1:
                raise ValueError(f"batch {batch!r}")
            found.setdefault(layer, {})[batch] = (float(row["triton_us"]), float(row["pytorch_us"]))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, LookupError, TypeError) as error:
        warn_once(f"{path}: not a table of measurements ({error}); it is ignored: remove it to measure again")
        return {}
    return found


def file_name(gpu: str) -> str:
    return "-".join(gpu.lower().split()) + ".json"


@functools.cache
def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
