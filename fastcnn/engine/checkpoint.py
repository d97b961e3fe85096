"""Checkpoints: written atomically, of tensors and plain types only, complete enough for an exact resume.

python -c "import torch; print(torch.load('runs/resnet50-demo/last.pt').keys())"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcnn import files
from fastcnn.config import Config, to_plain
from fastcnn.data.sources.dataset import Source
from fastcnn.engine.state import TrainState
from fastcnn.errors import UserError
from fastcnn.models import saved
from fastcnn.models.create import build_network
from fastcnn.optim.build import load_optimizer
from fastcnn.runtime.tensor_file import read_tensor_file
from fastcnn.tasks.metrics import Metrics
from fastcnn.version import __version__

LOAD = "fastcnn.load"


def save(path: Path, content: dict[str, Any], best: Path | None = None) -> None:
    """Write a checkpoint atomically: at any instant `path` holds either the old or the new one.

    A best checkpoint is written to `best` first, so that `path` never refers to a missing one.

    Raises:
        WriteError: it cannot be written; both files are as before.
    """
    with files.writing(path, "the checkpoint", durable=True, twin=best) as file:
        torch.save(content, file)


def load(path: Path, source_flag: str = "--resume", arch: str | None = None) -> dict[str, Any]:
    """Read a checkpoint on the CPU, and check all of its content (`fastcnn.models.saved`).

    Args:
        arch: name of a network that the user wrote. A checkpoint's MODULE:FACTORY is imported only if it is
            the same.

    Raises:
        UserError: it is missing, not from fastcnn, damaged, or names code that the user did not.
    """
    try:
        content = read_tensor_file(path)
    except OSError as error:
        raise UserError(f"{source_flag} {path}: {error.strerror}; use the path of a checkpoint") from error
    except Exception as error:  # an unpickler raises any error on foreign bytes
        raise UserError(f"{source_flag} {path}: not a checkpoint that torch.load can read") from error
    if not isinstance(content, dict) or content.get("format") != saved.FORMAT:
        raise UserError(f"{source_flag} {path}: not a fastcnn checkpoint of format {saved.FORMAT}")
    try:
        saved.check_content(content)
    except ValueError as error:
        raise UserError(f"{source_flag} {path}: damaged or incomplete: {error}; use another") from error
    advice = f'pass arch="{content["arch"]}"' if source_flag == LOAD else f"add --arch {content['arch']}"
    try:
        saved.check_trusted(content["arch"], arch, advice)
    except ValueError as error:
        raise UserError(f"{source_flag} {path}: {error}") from error
    try:
        saved.check_network(content)
    except UserError:  # no such network here
        raise
    except ValueError as error:
        raise UserError(f"{source_flag} {path}: damaged or incomplete: {error}; use another") from error
    return content


def load_network(path: str | Path, arch: str | None = None) -> nn.Module:
    """Return the network of a checkpoint, on the CPU, in evaluation mode, with the validated weights.

    Args:
        arch: MODULE:FACTORY, to use a network of that name; see `load`.

    Raises:
        UserError: as `load`, or the network is from a package that is not installed.
    """
    return build_saved(load(Path(path), LOAD, arch))


def build_saved(content: dict[str, Any]) -> nn.Module:
    """Return the network of a loaded checkpoint, as `load_network`."""
    network = build_network(saved.network_settings(content))
    try:
        saved.check_states(content, network.state_dict())
    except ValueError as error:
        raise UserError(f"the checkpoint does not fit its network: {error}; use another") from error
    network.load_state_dict(content["weights"])
    return network.eval()


def pack(
    config: Config, source: Source, state: TrainState, *, ranks: list[Any], progress: dict[str, Any]
) -> dict[str, Any]:
    """Return the whole content of a checkpoint, in tensors and plain types.

    Args:
        ranks: batch norm statistics, random states and sums of the current epoch, for each rank.
        progress: settings that were "auto", best metrics, average of the last epochs, position of the loader
            and everything that determines the order of the samples.
    """
    return {
        "format": saved.FORMAT,
        "fastcnn": __version__,
        "arch": config.arch,
        "num_classes": config.num_classes,
        "in_chans": config.in_chans,
        "img_size": config.img_size,
        "val_img_size": config.val_img_size,
        "class_names": list(source.class_names),
        "multi_label": source.multi_label,
        "mean": list(source.mean),
        "std": list(source.std),
        "config": to_plain(config),
        "ranks": ranks,
        "steps_per_epoch": state.schedule.steps_per_epoch,
        **progress,
        **pack_state(state),
    }


def pack_state(state: TrainState) -> dict[str, Any]:
    """Return the part of the state that is the same on every rank.

    "weights" are the validated ones: the moving average if there is one.
    """
    model = state.network.state_dict()
    return {
        "model": model,
        "weights": {**model, **(state.ema.average if state.ema is not None else {})},
        "ema": state.ema.state_dict() if state.ema is not None else None,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "epoch": state.epoch,
    }


def unpack_weights(state: TrainState, content: dict[str, Any]) -> None:
    """Load a checkpoint's weights, and their moving average, into the state.

    Raises:
        UserError: they belong to another network.
    """
    try:
        saved.check_states({"average": {"weights": {}}, "ranks": [], **content}, state.network.state_dict())
    except ValueError as error:
        raise UserError(f"--resume: the checkpoint does not fit its network: {error}; use another") from error
    state.network.load_state_dict(content["model"])
    if state.ema is not None:
        state.ema.load_state_dict(content["ema"])


def unpack_progress(state: TrainState, content: dict[str, Any]) -> None:
    """Load the optimizer, the scaler and the counters into the state; keep its hyperparameters."""
    load_optimizer(state.optimizer, content["optimizer"])
    if state.recorded is not None:
        state.recorded.reset()  # it captured the optimizer's former tensors
    if content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])
    state.step, state.epoch = content["step"], content["epoch"]


def buffers(state: TrainState) -> list[dict[str, torch.Tensor]]:
    """Copy the network's floating-point buffers and their moving averages to the CPU.

    They differ between ranks until a validation.
    """
    names = [name for name, b in state.network.named_buffers() if b.is_floating_point()]
    sources = [dict(state.network.named_buffers()), state.ema.average if state.ema is not None else {}]
    return [{name: s[name].to("cpu", copy=True) for name in names if name in s} for s in sources]


@torch.no_grad()
def restore_buffers(state: TrainState, values_of: list[dict[str, torch.Tensor]]) -> None:
    targets = [dict(state.network.named_buffers()), state.ema.average if state.ema is not None else {}]
    for target, values in zip(targets, values_of):
        for name, value in values.items():
            target[name].copy_(value)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the random states of a step (dropout, stochastic depth); they differ between ranks."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def check_metrics(content: dict[str, Any], metrics: Metrics, best_metric: str) -> None:
    """Raise UserError if a checkpoint's metrics are not those of the task."""
    shape = metrics.state().shape
    if any(rank["metrics"].shape != shape for rank in content["ranks"]):
        raise UserError("--resume: its sums are those of another task; use another checkpoint")
    if content["best"] and best_metric not in content["best"]:
        raise UserError(f"--resume: its best metrics have no {best_metric}; use another checkpoint")


def restore_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
