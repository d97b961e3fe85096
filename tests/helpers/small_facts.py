"""Settings resolved for photos on a GPU, or for a changed environment."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastcnn.config import Config
from fastcnn.config.auto import Environment, resolve

PHOTOS_ON_A_GPU = Environment(
    data_name="photos",
    train_images=100_000,
    num_classes=100,
    channels=3,
    native_size=None,
    mirror=True,
    model_size=224,
    fixed_size=False,
    minimum_size=1,
    size_multiple=1,
    strides=(4, 8, 16, 32),
    device="cuda",
    bf16_gpu=True,
    has_dali=True,
    has_triton=True,
    has_compiler=True,
    world_size=1,
    cores=8,
)


def facts(**changes: Any) -> Environment:
    return dataclasses.replace(PHOTOS_ON_A_GPU, **changes)


def resolved(config: Config | None = None, **changes: Any) -> Config:
    return resolve(config or Config(), facts(**changes))[0]
