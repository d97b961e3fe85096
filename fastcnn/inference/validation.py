"""The images that a trained network is judged by: those of its training's data, or of other data."""

from __future__ import annotations

import dataclasses

import torch

from fastcnn.config import Config, to_plain
from fastcnn.config.auto import merge_resumed_config
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import Loader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.errors import UserError
from fastcnn.inference.trained import Trained
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, on_every_rank
from fastcnn.setup.observe import observe_data
from fastcnn.setup.pixels import resolve_levels


def data_settings(trained: Trained, flags: Config) -> Config:
    """Return the settings of a trained network, with the flags of data and loading that the user wrote."""
    saved = to_plain(trained.config)
    merged, _ = merge_resumed_config(flags, saved, (), same_ranks=True, device=saved["device"])
    return dataclasses.replace(merged, arch=trained.config.arch)


def open_validation(trained: Trained, config: Config, ranks: Ranks) -> Source:
    """Open the data of `config` as the network sees it. All ranks call it.

    Args:
        config: of `data_settings`.

    Raises:
        UserError: no such data, or its classes are not the network's.
    """
    source = observe_data(config, ranks)
    if source.multi_label != trained.multi_label:
        kinds = {True: "several labels", False: "one label"}
        raise UserError(
            f"--data {config.data}: its images have {kinds[source.multi_label]} each, those of "
            f"{trained.path} {kinds[trained.multi_label]}; use such data"
        )
    named = trained.class_names[: len(source.class_names)]
    if source.class_names != named and source.name != "synthetic":
        raise UserError(f"--data {config.data}: its classes are not those of {trained.path}; use such data")
    source = source.with_channels(trained.channels).with_classes(len(trained.class_names))
    _, _, source = resolve_levels(config, source)
    return source


def evaluation_loader(
    split: Split, trained: Trained, config: Config, *, ranks: Ranks, device: torch.device, phase: str
) -> Loader:
    """Return this rank's loader of all images of a split, in their order, as validated. All ranks call it.

    Args:
        phase: "validation" or "test", for messages.
    """
    workers = machine.cores_per_process(ranks) if config.workers == "auto" else int(config.workers)
    sampler = ShardedSampler(
        count=len(split),
        batch_size=min(int(config.batch_size), len(split)),
        rank=ranks.rank,
        world_size=ranks.world_size,
        train=False,
    )
    sampler.check()

    def make() -> Loader:
        bad = BadFiles(split, phase, config.max_bad_fraction, alone=ranks.world_size == 1)
        bad.check_all()
        return MAKERS["torch"](
            LoaderArgs(
                split=split,
                transform=trained.transform,
                sampler=sampler,
                device=device,
                workers=workers,
                bad=bad,
            )
        )

    return on_every_rank(make)
