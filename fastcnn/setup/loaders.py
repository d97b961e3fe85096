"""`fastcnn.loaders`: the training and validation loaders alone, for a training loop of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastcnn.config import FIELDS, Config
from fastcnn.config.parse import from_settings
from fastcnn.data.batch import Batch
from fastcnn.data.loaders.autoselect import choose_backend
from fastcnn.data.loaders.base import Loader
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.sources.dataset import Source
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine.state import Normalized
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks, choose_device, from_main, on_every_rank
from fastcnn.setup.pixels import resolve_normalization
from fastcnn.setup.plan import resolved
from fastcnn.setup.transforms import transform_of

IN_THE_STEP = {
    "mixup": "torchvision.transforms.v2.MixUp",
    "cutmix": "torchvision.transforms.v2.CutMix",
    "progressive": "other loaders for each size",
}
"""Settings that the loop of a training applies, and what replaces them in another loop."""


class EpochLoader:
    """Batches of one phase: each iteration is one epoch. It has a length, the number of batches.

    The training order and its crops are functions of the seed and the epoch. Iterating again begins the next
    epoch; `set_epoch` chooses another.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.epoch = 0
        self._resumes = True  # at the position of the loader

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same on every rank."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if not self._resumes:
            self.set_epoch(self.epoch + 1)
        self._resumes = False
        yield from self.loader

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch, counted from 0, with the next iteration."""
        self.load_state_dict({"epoch": epoch, "consumed": 0})

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, the same on every rank."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position with the next iteration."""
        self.epoch = int(state["epoch"])
        self.loader.load_state_dict(state)
        self._resumes = True

    def close(self) -> None:
        """Stop threads and processes; a later iteration restarts them."""
        self.loader.close()


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """The loaders of this process, and what a loop needs to know of the data."""

    train: EpochLoader
    val: EpochLoader
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of values from 0 to 1."""
    std: tuple[float, ...]
    config: Config
    """Settings without "auto"; those of the training itself are as given."""
    device: torch.device
    """Device of the batches."""

    def normalized(self, network: nn.Module) -> nn.Module:
        """Return a network on the loaders' device that takes their uint8 images; it normalizes them first."""
        return Normalized(network, self.mean, self.std).to(self.device)

    def close(self) -> None:
        """Stop threads and processes."""
        self.train.close()
        self.val.close()

    def __enter__(self) -> Loaders:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_loaders(settings: Mapping[str, Any]) -> Loaders:
    """Open the loaders for these settings; see `fastcnn.loaders`. All ranks call it."""
    config = from_settings(settings, "loaders()")
    for name, instead in IN_THE_STEP.items():
        if getattr(config, name) != FIELDS[name].default:
            raise UserError(
                f"loaders(): {name} is applied by the training step, not by loaders; use {instead}"
            )
    ranks = Ranks.from_environment()
    if ranks.world_size > 1 and not dist.is_initialized():
        raise UserError(
            "loaders(): several processes, and no process group; "
            "call torch.distributed.init_process_group() first"
        )
    device = choose_device(config.device, ranks)
    if config.batch_size == "max" or (config.batch_size == "auto" and device.type == "cuda"):
        raise UserError("loaders(): batch_size: its limit depends on your network; use a number")
    config, reasons, source = resolved(config, ranks, device)
    source = source.with_channels(int(config.in_chans)).with_classes(int(config.num_classes))
    config, measured, source = resolve_normalization(config, source, None)
    transform = transform_of(config, source, reasons | measured)
    if config.data_backend == "auto":
        config = _with_fastest_backend(config, source, transform, ranks, device)
    train, val = on_every_rank(
        lambda: build_loaders(
            source,
            transform,
            config,
            ranks=ranks,
            device=device,
            seed=config.seed,
            val_size=int(config.val_img_size),
        )
    )
    return Loaders(
        train=EpochLoader(train),
        val=EpochLoader(val),
        class_names=source.class_names,
        mean=source.mean,
        std=source.std,
        config=config,
        device=device,
    )


def _with_fastest_backend(
    config: Config, source: Source, transform: Transform, ranks: Ranks, device: torch.device
) -> Config:
    backend, _ = from_main(lambda: choose_backend(source, transform, config, device=device, ranks=ranks))
    return dataclasses.replace(config, data_backend=backend)
