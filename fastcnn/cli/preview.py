"""`fastcnn preview`: draw training images as they are augmented.

fastcnn preview --data photos --aa ra --color-jitter 0.4 --output preview.png
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcnn import files
from fastcnn.config import FIELDS, Config, flag
from fastcnn.data.batch import Batch, ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import ImageLoader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS, why_not
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.transforms.mixing import Mixing, mix_of, mixed
from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.setup.pixels import resolve_normalization
from fastcnn.setup.plan import resolved
from fastcnn.setup.transforms import transform_of
from fastcnn.tasks.build import task_for
from fastcnn.tasks.gallery import rgb
from fastcnn.viz.pictures import grid

ROWS, EPOCHS = 8, 7
ALWAYS = ("train_crop", "hflip")
"""Settings that are always in the caption."""
OFTEN = (
    *("scale", "ratio", "crop_padding", "pad_mode", "crop_pct", "crop_mode", "hflip_mode"),
    *("aa", "color_jitter", "grayscale_prob", "lighting", "lighting_pca", "rotate", "reprob", "cutout"),
    *("mixup", "cutmix", "mixup_prob"),
)
"""Settings in the caption if they differ from their defaults."""


def preview(config: Config, output: Path) -> None:
    """Draw eight training images: as in validation, then as in the first seven epochs of a training.

    The loader is that of the training. Images are evenly spaced over the data. Mixup and CutMix mix them with
    each other.

    Args:
        config: settings of a training; a loader at "auto" becomes torch.
        output: picture file; its suffix sets the format.

    Raises:
        UserError: no such data, settings or loader, or a file that cannot be written.
    """
    user_config, output = config, files.expand_user(output, "--output")
    ranks, device = Ranks(), choose_device(config.device, Ranks())
    backend = "torch" if config.data_backend == "auto" else config.data_backend
    config = dataclasses.replace(
        config, data_backend=backend, batch_size=1
    )  # skips the search for the largest batch
    config, reasons, source = resolved(config, ranks, device)
    if source.name == "synthetic" or backend == "synthetic":
        raise UserError("fastcnn preview: synthetic images are not loaded; use another --data or loader")
    config, _, source = resolve_normalization(config, source.with_channels(int(config.in_chans)), None)
    reason = why_not(
        backend, source, channels=int(config.in_chans), workers=int(config.workers), local_world_size=1
    )
    if reason:
        raise UserError(f"--data-backend {backend}: {reason}")

    columns = _load(config, _sample(config, source), transform_of(config, source, reasons), device)
    task = task_for(config, source)
    pictures = [
        [
            task.draw_truth(rgb(image), target.cpu().numpy(), source.class_names)
            for image, target in zip(column.images, column.targets)
        ]
        for column in columns
    ]
    headings = ["validation", *(f"epoch {epoch + 1}" for epoch in range(EPOCHS))]
    picture = grid(list(zip(*pictures)), headings, caption(config, user_config))
    try:
        with files.of_flag("--output"):
            files.make_folder(output.parent, "the folder")
            files.save_picture(picture, output, "the picture")
    except UserError:
        raise
    except ValueError as error:  # a suffix that names no format
        raise UserError(f"--output {output}: {error}; use another file, such as preview.png") from error


def _sample(config: Config, source: Source) -> Split:
    """Return decodable training images, evenly spaced over the split."""
    good = np.array([i for i in range(len(source.train)) if i not in source.train.problems])
    if len(good) == 0:
        raise UserError(f"--data {config.data}: no training image can be decoded")
    return source.train.take(good[np.linspace(0, len(good) - 1, min(ROWS, len(good))).astype(np.int64)])


def _load(config: Config, images: Split, transform: Transform, device: torch.device) -> list[Batch]:
    """Return a batch of all images as in validation, and one for each epoch."""
    count = len(images)
    val_transform = dataclasses.replace(transform, size=int(config.val_img_size), progressive=False)

    def loader(*, train: bool) -> ImageLoader:
        sampler = ShardedSampler(
            count=count, batch_size=count, rank=0, world_size=1, train=train, seed=config.seed
        )
        return MAKERS[config.data_backend](  # type: ignore[index]
            LoaderArgs(
                split=images,
                transform=transform if train else val_transform,
                sampler=sampler,
                device=device,
                workers=int(config.workers),
                bad=BadFiles(images, "training", max_fraction=1),
            )
        )

    val, train = loader(train=False), loader(train=True)
    try:
        columns = [_in_order(next(iter(val)), np.arange(count))]
        for epoch in range(EPOCHS):
            train.set_epoch(epoch)
            (batch,) = train
            columns.append(_in_order(_mixed(batch, config, epoch), train.sampler.order(epoch)))
    finally:
        val.close()
        train.close()
    return columns


def caption(config: Config, user_config: Config) -> str:
    """Return the settings that shape the images, in a line.

    Args:
        config: without "auto".
        user_config: the settings before "auto" was resolved.
    """
    names = [
        *ALWAYS,
        *(name for name in OFTEN if getattr(user_config, name) not in (FIELDS[name].default, "auto")),
    ]
    words = [f"{flag(name)} {_shown(getattr(config, name))}" for name in names]
    return f"{config.data}, {config.img_size} px: {' '.join(words)}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in_order(batch: Batch, order: np.ndarray) -> Batch:
    """Sort a batch by the numbers of its samples."""
    place = torch.from_numpy(np.argsort(order)).to(batch.images.device)
    return Batch(batch.images[place], batch.targets[place], batch.mask[place])


def _mixed(batch: Batch, config: Config, epoch: int) -> Batch:
    """Mix a batch as the training graph does."""
    settings = Mixing.of(config)
    if settings is None or not settings.goes_on(epoch):
        return batch
    size = batch.images.shape[-1]
    mix: Tensor = torch.from_numpy(mix_of(settings, seed=config.seed, step=epoch, rank=0, part=0, size=size))
    images = mixed(batch.images.float(), mix.to(batch.images.device)).round().to(torch.uint8)
    return batch._replace(images=images)
