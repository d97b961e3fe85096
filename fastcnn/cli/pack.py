"""`fastcnn pack`: shrink the images of a data set and pack them into WebDataset shards.

fastcnn pack photos shards --max-size 500 --quality 90
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from fastcnn import files
from fastcnn.config import FIELDS, Config, flag
from fastcnn.config.settings import DataSettings, task_of
from fastcnn.data.pack import PackSettings
from fastcnn.data.pack import pack as write
from fastcnn.data.sources.open import open_data
from fastcnn.errors import UserError
from fastcnn.runtime.distributed import Ranks
from fastcnn.runtime.machine import cores_per_process
from fastcnn.setup.pixels import resolve_levels

OWN = {field.name for field in dataclasses.fields(DataSettings)} | {"seed", "workers", "read_timeout"}
"""Settings of a training that matter here."""


def pack(config: Config, shards: Path, settings: PackSettings) -> int:
    """Pack `--data` into a folder of shards, and print what was written.

    Args:
        config: settings of a training; those that say how the data is read, and the threads.

    Returns:
        The number of undecodable images; they are named on stderr and left out.

    Raises:
        UserError: no such data, data without classes, or a folder with another content.
    """
    shards = files.expand_user(shards, "SHARDS")
    _check(config, shards)
    source = open_data(config, task="classification", seed=config.seed)
    config, reasons, source = resolve_levels(config, source)
    for remark in (
        *source.remarks,
        *(f"--levels {_shown(config.levels)}: {why}" for why in reasons.values()),
    ):
        print(remark, file=sys.stderr)
    workers = cores_per_process(Ranks()) if config.workers == "auto" else max(1, config.workers)
    try:
        bad = write(source, config.data, shards, settings, workers=workers)
    except KeyboardInterrupt:
        print(f"fastcnn pack: stopped; the same command completes {shards}", file=sys.stderr)
        raise
    for line in bad:
        print(f"warning: undecodable image, left out: {line}", file=sys.stderr)
    found = {"train": source.train, "val": source.val, "test": source.test}
    counts = ", ".join(f"{name} {len(split):,}" for name, split in found.items() if split)
    tars = sorted(shards.glob("*.tar"))
    size = sum(tar.stat().st_size for tar in tars) / 1e6
    left_out = f", {len(bad):,} left out" if bad else ""
    print(f"wrote {shards}: {counts} images{left_out}, {len(tars)} shards, {size:,.1f} MB")
    return len(bad)


def _shown(levels: object) -> str:
    return " ".join(f"{level:g}" for level in levels) if isinstance(levels, tuple) else str(levels)


def _check(config: Config, shards: Path) -> None:
    if task_of(config.arch) != "classification":
        raise UserError(f"--arch {config.arch}: masks and boxes are not packed; train on their folders")
    others = [n for n, field in FIELDS.items() if n not in OWN and getattr(config, n) != field.default]
    if others:
        raise UserError(f"{flag(others[0])} does not change a pack; omit it")
    data = files.expand_user(config.data, "--data")
    if data.is_dir() and shards.resolve().is_relative_to(data.resolve()):
        raise UserError(f"{shards}: lies in {config.data}, whose images are packed; use a folder beside it")
