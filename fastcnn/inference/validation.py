"""The images that a trained network is judged by: those of its training's data, or of other data."""

from __future__ import annotations

import dataclasses

import torch

from fastcnn.config import FIELDS, Config, to_plain
from fastcnn.config.auto import merge_resumed_config
from fastcnn.data.batch import ShardedSampler
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import ImageLoader, LoaderArgs
from fastcnn.data.loaders.registry import MAKERS
from fastcnn.data.sources.dataset import DOWNLOADED, NAMED, Source, Split
from fastcnn.data.sources.splits import WHOLE
from fastcnn.errors import UserError
from fastcnn.inference.classes import with_numbers_of
from fastcnn.inference.trained import Trained
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, on_every_rank
from fastcnn.setup.observe import check_download, observe_data
from fastcnn.setup.pixels import resolve_levels

LAYOUT = (
    *("val_split", "test_split", "split_seed", "group_by"),
    *("labels", "file_column", "label_column", "split_column"),
)
"""Settings that describe one data set, and no other."""


def data_settings(trained: Trained, flags: Config, source_flag: str = "fastcnn") -> Config:
    """Return the settings of a trained network, with the flags of data and loading that the user wrote.

    Other data than that of the training is read without the splits and tables of the latter.

    Args:
        source_flag: beginning of messages about the checkpoint.

    Raises:
        UserError: images would be downloaded to a folder that the checkpoint alone names.
    """
    saved = to_plain(trained.config)
    written = {"data"} & flags.written or flags.data != FIELDS["data"].default
    if written and flags.data != saved["data"]:
        saved |= {name: FIELDS[name].default for name in LAYOUT}
    merged, _ = merge_resumed_config(flags, saved, (), same_ranks=True, device=saved["device"])
    check_download(flags, merged, f"{source_flag} {trained.path}")
    return dataclasses.replace(merged, arch=trained.config.arch)


def open_judged(config: Config, ranks: Ranks) -> Source:
    """Open data that may have no validation part; then all images are validated. All ranks call it."""
    named = config.data in NAMED or config.data in DOWNLOADED
    if not named and config.val_split is None and config.test_split is None:
        config = dataclasses.replace(config, val_split=WHOLE)
    return observe_data(config, ranks)


def open_validation(trained: Trained, config: Config, ranks: Ranks) -> Source:
    """Open the data of `config` as the network sees it (`open_judged`, `fit_source`). All ranks call it.

    Args:
        config: of `data_settings`.

    Raises:
        UserError: no such data, or its classes are not the network's.
    """
    return fit_source(trained, config, open_judged(config, ranks))


def fit_source(trained: Trained, config: Config, source: Source) -> Source:
    """Return data as a network sees it: its classes by name, its channels and levels. All ranks call it.

    Raises:
        UserError: the data is not for the network.
    """
    if source.multi_label != trained.multi_label:
        kinds = {True: "several labels", False: "one label"}
        raise UserError(
            f"--data {config.data}: its images have {kinds[source.multi_label]} each, those of "
            f"{trained.path} {kinds[trained.multi_label]}; use such data"
        )
    if source.name == "synthetic":
        source = source.with_classes(len(trained.class_names))
    else:
        source = with_numbers_of(source, trained.class_names, data=config.data, file=trained.path)
    source = source.with_channels(trained.channels)
    _, _, source = resolve_levels(config, source)
    return source


def evaluation_loader(
    split: Split, trained: Trained, config: Config, *, ranks: Ranks, device: torch.device, phase: str
) -> ImageLoader:
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

    def make() -> ImageLoader:
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
