"""Open `--data` as a source with the targets of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastcnn.data.sources.dataset import (
    NAMED,
    Source,
)
from fastcnn.data.sources.demo import ensure_demo
from fastcnn.data.sources.folder import (
    read_folder,
)
from fastcnn.data.sources.torchvision import synthetic_source, torchvision_source
from fastcnn.data.targets import IGNORE
from fastcnn.errors import UserError


def open_data(
    task: str,
    data: str,
    data_root: str,
    val_split: float | None,
    seed: int,
    ignore_index: int = IGNORE,
    bad_labels: Literal["stop", "skip"] = "stop",
) -> Source:
    """`--data` to a source with the targets of a task.

    Args:
        task: "classification", "segmentation" or "detection".
        data, data_root, val_split, seed: as of `open_source`.
        ignore_index, bad_labels: as of `fastcnn.data.sources.masks.mask_source`.

    Raises:
        UserError: no such data, or data that is not laid out for the task.
    """
    told = data, data_root, val_split, seed
    if task == "segmentation":
        from fastcnn.data.sources.masks import mask_source

        return mask_source(*told, ignore_index, bad_labels)
    if task == "detection":
        from fastcnn.data.sources.boxes import box_source

        return box_source(*told, bad_labels)
    return open_source(*told)


def open_source(data: str, data_root: str, val_split: float | None, seed: int) -> Source:
    """`--data` to a source.

    Args:
        data: a name in `NAMED`, the path of an image folder, or shards (`fastcnn.data.sources.shards`).
        data_root: where torchvision's data sets are, or are downloaded to.
        val_split: share of a folder without val/ to validate on.
        seed: of that share's choice.

    Raises:
        ValueError: no such data, or a folder that is not laid out as it should be; the message says what
            to write instead.
    """
    from fastcnn.data.sources.shards import is_shards, read_shards

    if val_split is not None and data in NAMED:
        raise UserError(f"--val-split: {data} has its own validation images; leave it out")
    if data == "demo":
        root = ensure_demo()
        return read_folder(root, None, seed, name="demo")
    if data == "synthetic":
        return synthetic_source()
    if data in NAMED:
        return torchvision_source(data, Path(data_root))
    if is_shards(data):
        return read_shards(data, Path(data_root), val_split, seed)
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(
            f"--data {data}: no such folder; write an image folder's path or one of {', '.join(NAMED)}"
        )
    if not path.is_dir():
        raise UserError(f"--data {data}: a file; write the folder that holds train/ and val/")
    return read_folder(path, val_split, seed)
