"""`fastcnn predict`: print and draw the predictions for each image.

fastcnn predict runs/yolo-demo/best.pt photos/
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastcnn import files
from fastcnn.config import Config
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import ImageLoader, LoaderArgs
from fastcnn.data.loaders.cached import free_memory
from fastcnn.data.loaders.registry import MAKERS
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.headers import scan
from fastcnn.data.sources.walk import image_files
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError, WriteError
from fastcnn.inference.trained import Trained, open_trained
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.runtime.machine import is_out_of_memory
from fastcnn.tasks.base import Task
from fastcnn.tasks.gallery import rgb
from fastcnn.tasks.multilabel import MultiLabelClassification

BYTES = 5
"""Bytes of a pixel's channel: as loaded, and normalized."""


class Loading(NamedTuple):
    """Settings of loading and computing."""

    batch_size: int
    workers: int
    """Loader threads."""
    device: str
    """Value of `--device`."""


def predict(
    path: Path,
    images: Path,
    *,
    output: Path | None,
    loading: Loading,
    threshold: float | None = None,
    arch: str | None = None,
) -> int:
    """Draw the predictions for each image into a folder, and print a line for each.

    Args:
        path: checkpoint.
        images: an image, or a folder of them.
        output: folder of the pictures; None: predictions, then predictions-2, ...
        threshold: minimum probability of the shown labels, 0 to 1; for a network of several labels an image.
        arch: MODULE:FACTORY, to use a network of that name out of the checkpoint.

    Returns:
        The number of undecodable images; they are named on stderr.

    Raises:
        UserError: no such checkpoint, no images, or an output folder that is read-only or holds such
            pictures.
    """
    output = None if output is None else files.expand_user(output, "--output-dir")
    trained = open_trained(path, "fastcnn predict", arch)
    task = _task(trained, threshold)
    where = choose_device(loading.device, Ranks())
    root, names = _names(images)
    _check_free(output, names)
    split = _open(root, names, trained.config)
    bad = BadFiles(split, "given", max_fraction=1, quiet=True)
    if len(bad) == len(split):
        raise UserError(f"{images}: no image can be decoded ({bad.line(0)}); use another folder")
    _check_memory(trained, min(loading.batch_size, len(split)))
    loader = _loader(split, trained.transform, bad, loading, where)
    model = trained.normalized(where)
    folder = _new_folder() if output is None else output
    try:
        _predict_batches(loader, model, task, trained.class_names, names=names, folder=folder)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{path}: not enough memory on {where.type}: use a smaller --batch-size"
            ) from error
        raise
    finally:
        loader.close()
    lines = [f"warning: undecodable image: {line}" for line in bad.lines()]
    print(*lines, f"wrote {folder}", sep="\n", file=sys.stderr)
    return len(bad)


def _loader(
    split: Split, transform: Transform, bad: BadFiles, loading: Loading, device: torch.device
) -> ImageLoader:
    """Return a loader of all images in their order, as validated."""
    batch_size = min(loading.batch_size, len(split))
    sampler = ShardedSampler(count=len(split), batch_size=batch_size, rank=0, world_size=1, train=False)
    return MAKERS["torch"](
        LoaderArgs(
            split=split,
            transform=transform,
            sampler=sampler,
            device=device,
            workers=loading.workers,
            bad=bad,
        )
    )


def _open(root: Path, names: Sequence[str], config: Config) -> Split:
    """Return the images, decoded by the settings of a checkpoint."""
    paths, upright = [str(root / name) for name in names], config.exif == "upright"
    files = scan(f"predict {root.resolve()}", paths, upright=upright)
    if config.levels != "auto":
        files = dataclasses.replace(files, levels=config.levels)
    return Split(np.zeros(len(names), dtype=np.int64), files)


@torch.inference_mode()
def _predict_batches(
    loader: ImageLoader,
    model: nn.Module,
    task: Task,
    class_names: Sequence[str],
    *,
    names: list[str],
    folder: Path,
) -> None:
    """Print and draw the predictions for all decodable images; `names` in the loader's order."""
    remaining = iter(names)
    for batch in loader:
        predictions = task.predict(model(batch.images))
        of_batch = itertools.islice(remaining, len(predictions))
        for name, prediction, pixels, real in zip(of_batch, predictions, batch.images, batch.mask.tolist()):
            if real:
                print(f"{name}: {task.format_prediction(prediction, class_names)}", flush=True)
                _save(task.draw(rgb(pixels), prediction, class_names), folder / f"{name}.png")


def _check_memory(trained: Trained, batch_size: int) -> None:
    """Raise UserError if a batch of images of the checkpoint's size does not fit into memory."""
    size, channels = trained.size, trained.channels
    shape = batch_size, channels, size, size
    needed = BYTES * math.prod(shape) + 2 * _largest_output(trained.network, shape)
    if needed > free_memory():
        raise UserError(
            f"{batch_size} images of {channels} x {size} x {size}, the checkpoint's size, take at least "
            f"{needed / 1e9:.1f} GB; use a smaller --batch-size, or another checkpoint"
        )


def _largest_output(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the bytes of a layer's largest output, found on shapes alone; 0 if the network needs data."""
    largest = 0

    def look(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    handles = [module.register_forward_hook(look) for module in network.modules()]
    try:
        torch.func.functional_call(network, empty, torch.empty(shape, device="meta"))
    except Exception:  # a network may raise anything
        return 0
    finally:
        for handle in handles:
            handle.remove()
    return largest


def _check_free(output: Path | None, names: list[str]) -> None:
    """Raise UserError if the folder holds a picture of one of these names."""
    existing = [name for name in names if output is not None and (output / f"{name}.png").exists()]
    if existing:
        raise UserError(f"--output-dir {output}: holds {existing[0]}.png already; use another folder")


def _task(trained: Trained, threshold: float | None) -> Task:
    """Return the task of a trained network; UserError for a threshold without effect."""
    task = trained.build_task()
    if threshold is not None:
        if not isinstance(task, MultiLabelClassification):
            raise UserError("--threshold: for networks of several labels an image, and this is none; omit it")
        task.threshold = threshold
    return task


def _names(images: Path) -> tuple[Path, list[str]]:
    """Return a folder and the relative paths of its images."""
    if images.is_file():
        return images.parent, [images.name]
    if not images.is_dir():
        raise UserError(f"{images}: no such file or folder; use an image or a folder of images")
    names = [str(Path(name).relative_to(images)) for name in image_files(images)]
    if not names:
        raise UserError(f"{images}: no images in it; use another folder")
    return images, names


def _new_folder() -> Path:
    """Create predictions, or predictions-2, -3, ...: the first free name."""
    for number in itertools.count(1):
        folder = Path("predictions" if number == 1 else f"predictions-{number}")
        try:
            files.make_folder(folder, "the folder", new=True)
        except WriteError as error:
            if error.code == errno.EEXIST:
                continue
            raise WriteError(f"{error}, or name another with --output-dir", error.code) from error
        return folder
    raise AssertionError("count() is endless")


def _save(picture: Image.Image, path: Path) -> None:
    with files.of_flag("--output-dir"):
        files.make_folder(path.parent, "the folder")
        files.save_picture(picture, path, "the picture")
