"""The folder of a run: its name, the checkpoint to resume, its config.yaml."""

from __future__ import annotations

import dataclasses
import errno
import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fastcnn import files
from fastcnn.config import FIELDS, Config, to_plain, to_yaml
from fastcnn.data.sources.dataset import NAMED, Source
from fastcnn.engine.checkpointer import LAST
from fastcnn.errors import UserError, WriteError
from fastcnn.models.saved import NETWORK
from fastcnn.setup.run_lock import RunLock


def data_name(data: str) -> str:
    """Return a short name of `--data` for folders."""
    return data if data in NAMED else files.expand_user(data, "--data").resolve().name


def choose_folder(config: Config, lock: RunLock | None = None) -> tuple[Path, Path | None]:
    """Return the run's folder and the checkpoint to resume, if any.

    A folder that exists is locked before its checkpoint is looked at, if the run will write into it.

    Raises:
        UserError: the folder holds another run, or is in use by one, or the checkpoint does not exist.
    """
    given = files.expand_user(config.output_dir, "--output-dir") if config.output_dir != "auto" else None
    writes = not (config.test_only or config.preview_schedule)

    def hold(folder: Path) -> None:
        if lock is not None and writes and folder.is_dir():
            with files.of_flag(f"--output-dir {folder}"):
                lock.take(folder)

    if config.resume == "auto":
        folder = given or _numbered(config, newest=True)
        hold(folder)
        return folder, folder / LAST if (folder / LAST).is_file() else None
    path: Path | None = None
    if config.resume is not None:
        path = files.expand_user(config.resume, "--resume")
        path = path / LAST if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"--resume {config.resume}: no such checkpoint; use the path of a {LAST}")
    folder = given or (path.parent if path is not None else _numbered(config, newest=False))
    hold(folder)
    if (folder / LAST).exists() and (path is None or folder.resolve() != path.parent.resolve()):
        raise UserError(
            f"--output-dir {folder}: holds a run already; add --resume to continue it, or use another"
        )
    return folder, path


def check_resumable(content: dict[str, Any], config: Config, source: Source, path: Path) -> None:
    """Raise UserError if a checkpoint belongs to another network, optimizer or other classes."""
    for name in (*NETWORK, "opt", "model_ema", "backbone_lr_scale", "layer_decay"):
        then, now = content["config"][name], to_plain(config)[name]
        if then != now:
            raise UserError(f"--resume {path}: its {name} is {then}, this run's is {now}; use the same")
    if content["multi_label"] != source.multi_label:
        kinds = {True: "several labels", False: "one label"}
        raise UserError(
            f"--resume {path}: its images have {kinds[not source.multi_label]} each, those of --data "
            f"{config.data} {kinds[source.multi_label]}; use the same"
        )
    if content["class_names"] != list(source.class_names):
        raise UserError(f"--resume {path}: its classes are not those of --data {config.data}; use the same")


def claim_folder(folder: Path, config: Config, lock: RunLock) -> Path:
    """Create the run's folder, lock it, and save the settings in it.

    Returns:
        The folder; with an automatic name, the next free one if another run has created it since.

    Raises:
        UserError: the folder of a new run is not writable, or another run has begun in it since then.
        WriteError: there is no room for its files, or the folder of a resumed run is not writable.
    """
    chosen_under_lock = lock.folder is not None
    new = config.output_dir == "auto" and config.resume is None
    with files.of_flag(f"--output-dir {folder}") if config.resume is None else nullcontext():
        while True:
            try:
                files.make_folder(folder, "the run's folder", new=new)
                break
            except WriteError as error:
                if not new or error.code != errno.EEXIST:
                    raise
                folder = _numbered(config, newest=False)
        lock.take(folder)
        if not chosen_under_lock and (folder / LAST).exists():
            raise UserError(f"--output-dir {folder}: another run has begun in it; start again")
        write_config(folder, config)
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Save the settings for `--config`, with `--lr` in place of `--lr-base`.

    Raises:
        WriteError: the file cannot be written.
    """
    omitted = "resume", "lr_base", "lr_base_size", "lr_base_scale"
    defaults: dict[str, Any] = {name: FIELDS[name].default for name in omitted}
    text = to_yaml(dataclasses.replace(config, **defaults))
    files.write_text(folder / "config.yaml", text, "the settings")


def _numbered(config: Config, *, newest: bool) -> Path:
    """Return runs/ARCH-DATA, or with -2, -3, ...: the first free name, or the last one in use."""
    arch = config.arch.replace("/", "-").replace(":", "-")
    base = Path("runs") / f"{arch}-{data_name(config.data)}"
    last: Path | None = None
    for number in itertools.count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not path.exists():
            return last if newest and last is not None else path
        last = path
    raise AssertionError("count() is endless")
