"""Resolve the settings that map stored values to normalized ones: levels, mean and deviation."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastcnn.config import Config
from fastcnn.data.arrays import FULL
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.pixels import has_wide, measure_levels, measure_normalization, with_levels
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import from_main

NO_EFFECT = "warning: --levels has no effect here: no image has more than 8 bits"
Resolved = tuple[Config, dict[str, str], Source]
"""Settings, the reasons of those that were measured, and the data with both."""


def resolve_levels(config: Config, source: Source) -> Resolved:
    """Choose the levels of images of more than 8 bits. All ranks call it."""
    if not has_wide(source):
        idle = config.levels not in ("auto", FULL)  # full: of a checkpoint from before there were levels
        remarks = (*source.remarks, NO_EFFECT) if idle else source.remarks
        return config, {}, dataclasses.replace(source, remarks=remarks)
    if config.levels != "auto":
        return config, {}, with_levels(source, config.levels)
    levels, why = from_main(lambda: measure_levels(source.train))
    if levels is None:
        return config, {}, source
    return dataclasses.replace(config, levels=levels), {"levels": why}, with_levels(source, levels)


def resolve_normalization(config: Config, source: Source, checkpoint: dict[str, Any] | None) -> Resolved:
    """Set mean and deviation: given, of the checkpoint, measured, or the data set's own. All ranks call it.

    Raises:
        UserError: another number of values than channels, or no image to measure.
    """
    if checkpoint is not None:
        source = dataclasses.replace(source, mean=tuple(checkpoint["mean"]), std=tuple(checkpoint["std"]))
    reasons: dict[str, str] = {}
    unknown = source.channels not in (1, 3) and source.name != "synthetic" and checkpoint is None
    wanted = [
        name
        for name in ("mean", "std")
        if getattr(config, name) == "data" or (unknown and getattr(config, name) == "auto")
    ]
    if wanted:
        mean, std, count = from_main(lambda: measure_normalization(source.train, source.channels))
        if not count:
            raise UserError(f"--{wanted[0]} data: no training image can be decoded; use numbers")
        measured: dict[str, Any] = {"mean": mean, "std": std}
        config = dataclasses.replace(config, **{name: measured[name] for name in wanted})
        reasons = dict.fromkeys(wanted, f"measured on {count:,} training images")
    given = {name: _per_channel(name, config, source) for name in ("mean", "std")}
    return config, reasons, dataclasses.replace(source, **{k: v for k, v in given.items() if v})  # type: ignore[arg-type]


def _per_channel(name: str, config: Config, source: Source) -> tuple[float, ...]:
    """Return a given mean or deviation for each channel, () if it is not given."""
    values = getattr(config, name)
    if isinstance(values, str):
        return ()
    if len(values) not in (1, source.channels):
        raise UserError(
            f"--{name} {' '.join(f'{v:g}' for v in values)}: {len(values)} numbers, but --in-chans "
            f"is {source.channels}; use a number for each channel"
        )
    return values * source.channels if len(values) == 1 else values
