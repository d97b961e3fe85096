"""`Trained`: a network out of a checkpoint with everything that its use needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fastcnn.config import Config, LossSettings
from fastcnn.config.auto import from_saved
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine import checkpoint
from fastcnn.engine.state import Normalized
from fastcnn.tasks.base import Task
from fastcnn.tasks.build import build_task
from fastcnn.viz.pictures import printable


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network and the settings under which it sees images."""

    path: Path
    """Its file, for messages."""
    network: nn.Module
    """For normalized images, in evaluation mode, on the CPU."""
    config: Config
    """Settings of its training, without "auto"."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    """One printable name per class; "class 7" for those that its data did not name."""
    multi_label: bool
    """An image may have several classes, or none."""

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.config.val_img_size)

    @property
    def channels(self) -> int:
        return int(self.config.in_chans)

    @property
    def exif(self) -> Literal["upright", "ignore"]:
        """Treatment of the EXIF orientation of images."""
        return self.config.exif

    @property
    def levels(self) -> tuple[float, float] | Literal["auto"]:
        """Values that become 0 and 255 in images of more than 8 bits; "auto": those of each file."""
        return self.config.levels

    def build_task(self) -> Task:
        """Build the task that turns the network's outputs into predictions."""
        loss = LossSettings(cls_loss=self.config.cls_loss, focal_gamma=self.config.focal_gamma)
        return build_task(self.config.arch, loss, len(self.class_names), multi_label=self.multi_label)

    def normalized(self, device: torch.device) -> nn.Module:
        """Return the network with its normalization, for uint8 images [N, C, H, W] on a device."""
        return Normalized(self.network, self.mean, self.std).to(device).eval()

    @property
    def transform(self) -> Transform:
        """Transform of the validation."""
        config = self.config
        return Transform(
            size=self.size,
            channels=self.channels,
            train_crop=config.train_crop,  # type: ignore[arg-type]
            crop_pct=config.crop_pct,
            crop_mode="border" if config.crop_mode == "border" else "center",  # auto: of older checkpoints
            dct_scaling=config.dct_scaling,
        )


def open_trained(path: Path, source_flag: str, arch: str | None = None) -> Trained:
    """Open a checkpoint for use.

    Args:
        source_flag: beginning of messages about the file, such as "fastcnn predict".
        arch: MODULE:FACTORY, to use a network of that name out of the checkpoint.

    Raises:
        UserError: no such checkpoint, a damaged one, or a network from a package that is not installed.
    """
    content = checkpoint.load(path, source_flag, arch)
    return Trained(
        path=path,
        network=checkpoint.build_saved(content),
        config=from_saved(content["config"]),
        mean=tuple(content["mean"]),
        std=tuple(content["std"]),
        class_names=complete_names(content["class_names"], content["num_classes"]),
        multi_label=content["multi_label"],
    )


def complete_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return a printable name for each of `count` classes, of which the last ones may have none."""
    return (*map(printable, names), *(f"class {i}" for i in range(len(names), count)))
