"""Observe the checkpoint, the data and the machine that a run's settings depend on."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastcnn.config import FIELDS, Config, task_of
from fastcnn.config.auto import Environment, ignored_on_resume, merge_resumed_config
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.sources.dataset import DOWNLOADED, Source
from fastcnn.data.sources.open import open_data
from fastcnn.data.sources.shards import REMOTE
from fastcnn.engine import checkpoint
from fastcnn.errors import UserError
from fastcnn.models.parts import image_sizes, map_strides
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, from_main, local_main_first, read_once_per_node
from fastcnn.setup.run_folder import choose_folder
from fastcnn.setup.run_lock import RunLock


@dataclass(frozen=True, kw_only=True)
class Start:
    """Starting point of a run: its folder, and the checkpoint to resume."""

    folder: Path
    config: Config
    """The user's settings; when resuming, those of the checkpoint with the user's overrides."""
    kept: dict[str, str] = field(default_factory=dict)
    """Reasons of the settings that were "auto" in the checkpoint and stay."""
    checkpoint: dict[str, Any] | None = None
    checkpoint_path: Path | None = None
    ignored: list[str] = field(default_factory=list)
    """Lines about settings without effect on a resumed run."""


def observe_start(config: Config, ranks: Ranks, device: torch.device, lock: RunLock | None = None) -> Start:
    """Find the run's folder and read the checkpoint to resume, if any. All ranks call it.

    Args:
        lock: receives the lock of the folder, on rank 0.

    Raises:
        UserError: the folder holds another run, or the checkpoint cannot be read.
    """
    folder, path = from_main(lambda: choose_folder(config, lock))
    if path is None:
        return Start(folder=folder, config=config)
    content = local_main_first(lambda: checkpoint.load(path, arch=config.arch), ranks)
    if config.weights not in (None, content["config"]["weights"]):
        raise UserError(f"--weights {config.weights}: the run continues with the weights of {path}; omit it")
    same_ranks = len(content["ranks"]) == ranks.world_size
    merged, kept = merge_resumed_config(
        config, content["config"], content["chosen"], same_ranks=same_ranks, device=device.type
    )
    check_download(config, merged, f"--resume {path}")
    ignored = ignored_on_resume(config, merged)
    dtype = merged.amp_dtype
    if "amp_dtype" in kept and not from_main(lambda: machine.is_native(dtype, device)):
        merged = dataclasses.replace(merged, amp_dtype="auto")  # chosen on another processor
        del kept["amp_dtype"]
    return Start(
        folder=folder, config=merged, kept=kept, checkpoint=content, checkpoint_path=path, ignored=ignored
    )


def resume_flags(config: Config) -> str:
    """Return the flags, with a space before each, that a run needs again when it is resumed.

    A checkpoint alone leads neither to an import nor to a download into another folder.
    """
    code = f" --arch {config.arch}" if ":" in config.arch else ""
    own_root = _downloads(config) and config.data_root != FIELDS["data_root"].default
    return code + (f" --data-root {shlex.quote(config.data_root)}" if own_root else "")


def _downloads(config: Config) -> bool:
    return config.data.startswith(REMOTE) or config.data in DOWNLOADED


def check_download(config: Config, merged: Config, source_flag: str) -> None:
    """Raise UserError if images would be downloaded to a folder that the checkpoint alone names.

    Args:
        config: the user's settings.
        merged: those of the checkpoint, with the user's overrides.
        source_flag: beginning of the message, with the checkpoint.
    """
    if _downloads(merged) and merged.data_root != config.data_root:
        raise UserError(
            f"{source_flag}: {merged.data} was in {merged.data_root}, and missing files are downloaded; "
            f"add --data-root {shlex.quote(merged.data_root)}, or another folder"
        )


def observe_data(config: Config, ranks: Ranks) -> Source:
    """Open the data, once on each node. All ranks call it."""
    return read_once_per_node(lambda: open_data(config, task=task_of(config.arch), seed=config.seed), ranks)


def observe_environment(config: Config, source: Source, ranks: Ranks, device: torch.device) -> Environment:
    """Return everything that the choices for "auto" depend on."""
    sizes = image_sizes(config.arch)
    return Environment(
        data_name=source.name,
        train_images=len(source.train),
        num_classes=len(source.class_names),
        channels=source.channels,
        native_size=source.native_size,
        mirror=source.mirror,
        model_size=sizes.default_image_size,
        fixed_size=sizes.fixed_image_size,
        minimum_size=sizes.minimum_image_size,
        size_multiple=sizes.image_size_multiple,
        strides=map_strides(config.arch) if task_of(config.arch) == "detection" else (),
        device=device.type,  # type: ignore[arg-type]
        bf16_gpu=device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0),
        has_dali=has_dali(),
        has_triton=importlib.util.find_spec("triton") is not None,
        has_compiler=machine.has_compiler(),
        world_size=ranks.world_size,
        cores=machine.cores_per_process(ranks),
        multi_label=source.multi_label,
    )
