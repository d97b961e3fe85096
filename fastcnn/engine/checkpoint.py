"""Checkpoints: written atomically, tensors and plain types only, whole enough to go on as if nothing had
happened.

    python -c "import torch; print(torch.load('runs/resnet50-demo/last.pt').keys())"
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcnn.config import NetworkSettings
from fastcnn.engine.state import TrainState
from fastcnn.errors import UserError
from fastcnn.models.create import build_network
from fastcnn.optim.build import add_momentum_buffers

FORMAT = 2


def save(path: Path, content: dict[str, Any], best: Path | None = None) -> None:
    """Writes a checkpoint so that `path` holds either the old or the new one at any instant; and before it
    `best`, if this is the best one, so that `path` never speaks of a best one that is not there."""
    temporary = path.with_name(f".{path.name}.new")  # one process writes, so a leftover is written over
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    if best is not None:
        _duplicate(temporary, best)
    _rename(temporary, path)


def _duplicate(path: Path, copy: Path) -> None:
    """Gives a checkpoint a second name that later saves under the first do not touch."""
    temporary = copy.with_name(f".{copy.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    _rename(temporary, copy)


def _rename(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    if os.name == "posix":  # the new name itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path, told: str = "--resume") -> dict[str, Any]:
    """Reads a checkpoint on the CPU; ValueError if it is not there or not one of fastcnn's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{told} {path}: {error.strerror}; write the path of a checkpoint") from error
    except Exception as error:  # an unpickler raises whatever foreign bytes lead it to
        raise UserError(f"{told} {path}: not a checkpoint that torch.load can read") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{told} {path}: not a fastcnn checkpoint of format {FORMAT}")
    return content


def load_network(path: str | Path) -> nn.Module:
    """The network of a checkpoint, on the CPU and in evaluation mode, with the weights that validation saw.

    Raises:
        UserError: there is no such checkpoint, or its network is from a package that is not installed.
    """
    content = load(Path(path), "fastcnn.load")
    head = ("head", "head_hidden", "anchors", "strides")
    saved = {name: content["config"][name] for name in head if name in content["config"]}  # older lack some
    sizes = {name: content[name] for name in ("arch", "num_classes", "in_chans")}
    network = build_network(NetworkSettings(**sizes, **saved))
    network.load_state_dict(content["weights"])
    return network.eval()


def pack_state(state: TrainState) -> dict[str, Any]:
    """What a resumed run needs of the state, the same on every rank; and "weights", what validation saw:
    the moving average where there is one."""
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
    """Puts a checkpoint's weights, and their moving average, into the state."""
    state.network.load_state_dict(content["model"])
    if state.ema is not None:
        state.ema.load_state_dict(content["ema"])


def unpack_progress(state: TrainState, content: dict[str, Any]) -> None:
    """Puts the optimizer's, scaler's and counters' values into the state; weight decay, momentum and their
    like stay as they are."""
    told = [{k: v for k, v in group.items() if k != "params"} for group in state.optimizer.param_groups]
    state.optimizer.load_state_dict(content["optimizer"])
    for group, settings in zip(state.optimizer.param_groups, told):
        group.update(settings)
    add_momentum_buffers(state.optimizer)  # of what was frozen then and trains now
    if state.recorded is not None:
        state.recorded.reset()  # it knows the tensors that the optimizer had until now
    if content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])
    state.step, state.epoch = content["step"], content["epoch"]


def buffers(state: TrainState) -> list[dict[str, torch.Tensor]]:
    """Copies of the network's floating-point buffers, and of their moving averages: until a validation each
    rank has its own."""
    names = [name for name, b in state.network.named_buffers() if b.is_floating_point()]
    sources = [dict(state.network.named_buffers()), state.ema.average if state.ema is not None else {}]
    return [{name: s[name].to("cpu", copy=True) for name in names if name in s} for s in sources]


@torch.no_grad()
def restore_buffers(state: TrainState, saved: list[dict[str, torch.Tensor]]) -> None:
    targets = [dict(state.network.named_buffers()), state.ema.average if state.ema is not None else {}]
    for target, values in zip(targets, saved):
        for name, value in values.items():
            target[name].copy_(value)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The random generators that a step draws from (dropout, stochastic depth); differs per rank."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
