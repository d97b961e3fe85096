"""Open `--data` as a source with the targets of a task."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from fastcnn.config.settings import DataSettings, TaskName, flag
from fastcnn.data.reading import read_error
from fastcnn.data.sources.census import with_census
from fastcnn.data.sources.dataset import NAMED, Source
from fastcnn.data.sources.demo import ensure_demo
from fastcnn.data.sources.folder import read_folder
from fastcnn.data.sources.pixels import with_channels_of_files
from fastcnn.data.sources.splits import split_off
from fastcnn.data.sources.torchvision import synthetic_source, torchvision_source
from fastcnn.errors import UserError
from fastcnn.files import expand_user


def open_data(settings: DataSettings, *, task: TaskName, seed: int) -> Source:
    """Open `--data` as a source with the targets of a task.

    Args:
        seed: seed of the validation split.

    Raises:
        UserError: no such data, or data that is not laid out for the task.
        ReadError: a file or folder that cannot be read.
    """
    try:
        source = _open_for(settings, task, seed)
        if settings.data == "synthetic":
            return source
        return with_census(with_channels_of_files(source), f"{os.path.abspath(settings.data)} {task}")
    except OSError as error:
        raise read_error(error.filename or settings.data, error.errno) from error


def _open_for(settings: DataSettings, task: TaskName, seed: int) -> Source:
    if task == "segmentation":
        from fastcnn.data.sources.masks.source import mask_source

        return mask_source(settings, seed=seed)
    if task == "detection":
        from fastcnn.data.sources.boxes.source import box_source

        return box_source(settings, seed=seed)
    return open_source(settings, seed=seed)


def open_source(settings: DataSettings, *, seed: int) -> Source:
    """Open `--data` as a source of labeled images.

    Args:
        settings: `data` is a name in `NAMED`, an image folder or shards (`fastcnn.data.sources.shards`).
        seed: seed of the validation split.

    Raises:
        UserError: no such data, or a folder with an unexpected layout; the message names the remedy.
    """
    from fastcnn.data.sources.shards import is_shards, read_shards

    data = settings.data
    if settings.labels is not None and (data in NAMED or is_shards(data)):
        raise UserError(f"--labels: {data} has its own labels; omit it, or use the folder of the images")
    if settings.val_split is not None and data in NAMED:
        raise UserError(f"--val-split: {data} has its own validation images; omit it")
    if data == "demo":
        root = ensure_demo()
        return read_folder(root, settings, seed, name="demo")
    if data in NAMED:
        source = (
            synthetic_source()
            if data == "synthetic"
            else torchvision_source(data, expand_user(settings.data_root, "--data-root"))
        )
        splits = split_off(source.train, settings, seed, val=source.val)
        return dataclasses.replace(source, train=splits.train, test=splits.test)
    if is_shards(data):
        return read_shards(settings, seed)
    path = expand_user(data, "--data")
    if not path.exists():
        raise UserError(
            f"--data {data}: no such folder; use an image folder's path or one of {', '.join(NAMED)}"
        )
    if not path.is_dir():
        raise UserError(f"--data {data}: a file; use the folder that holds train/ and val/")
    return _read_images(path, settings, seed)


def _read_images(path: Path, settings: DataSettings, seed: int) -> Source:
    """Read a folder of images with their labels: in a table, in metadata, or by class folders."""
    from fastcnn.data.sources.tables.source import read_labels_file, read_metadata

    if settings.labels is not None:
        return read_labels_file(path, settings, seed)
    found = read_metadata(path, settings, seed)
    if isinstance(found, Source):
        return found
    for name in ("label_column", "file_column", "split_column"):
        if getattr(settings, name) is not None:
            raise UserError(f"{flag(name)}: {path} has no table of labels; name one by --labels FILE")
    source = read_folder(path, settings, seed)
    return dataclasses.replace(source, remarks=(*found, *source.remarks))
