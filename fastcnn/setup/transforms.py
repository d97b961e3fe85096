"""Build the image transform from the settings."""

from __future__ import annotations

from collections.abc import Collection

from fastcnn.config import Config
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.sample import some_images
from fastcnn.data.transforms.augment import Augment
from fastcnn.data.transforms.color import IMAGENET_COMPONENTS, principal_components
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import from_main

COLOR_SAMPLE = 2000
"""Number of training images for the principal components of `--lighting-pca data`."""


def _augment(config: Config, source: Source) -> Augment:
    """Return the augmentation of training images."""
    components = IMAGENET_COMPONENTS
    if config.lighting > 0 and config.lighting_pca == "data" and config.data_backend != "synthetic":
        components = from_main(
            lambda: principal_components(some_images(source.train, COLOR_SAMPLE, config.seed))
        )
    return Augment(
        aa=config.aa,
        color_jitter=config.color_jitter,
        grayscale_prob=config.grayscale_prob,
        lighting=config.lighting,
        lighting_components=tuple(tuple(row) for row in components.tolist()),
        rotate=config.rotate,
        reprob=config.reprob,
        cutout=config.cutout,
        fill=tuple(round(255 * value) for value in source.mean),
    )


def transform_of(config: Config, source: Source, chosen: Collection[str]) -> Transform:
    """Return the transform of a run's images, from settings without "auto". All ranks call it.

    Args:
        chosen: settings that were "auto".
    """
    return Transform(
        size=int(config.img_size),
        channels=int(config.in_chans),
        train_crop=config.train_crop,  # type: ignore[arg-type]
        scale=config.scale,  # type: ignore[arg-type]
        ratio=config.ratio,
        # None: an eighth of the size, which follows progressive resizing.
        crop_padding=None if "crop_padding" in chosen else int(config.crop_padding),
        pad_mode=config.pad_mode,
        hflip=float(config.hflip),
        hflip_mode=config.hflip_mode,
        augment=_augment(config, source),
        dct_scaling=config.dct_scaling,
        progressive=config.progressive is not None,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,  # type: ignore[arg-type]
    )
