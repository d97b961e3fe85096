"""What "auto" becomes: a pure function of the settings, the data, the network and the machine.

Torch-free. Every choice comes with its reason, which the run prints once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastcnn.config.settings import FIELDS, Config, SchedName, flag, task_of, to_plain
from fastcnn.config.validate import check
from fastcnn.errors import UserError


@dataclass(frozen=True)
class Environment:
    """What the choices depend on."""

    data_name: str
    train_images: int
    num_classes: int
    channels: int
    native_size: int | None
    """Pixels a side where all images are small squares of one size."""
    mirror: bool
    """Whether a mirrored image keeps its class."""
    model_size: int
    """Pixels a side that the network was published with."""
    fixed_size: bool
    """Whether it takes no other."""
    minimum_size: int
    """The fewest pixels a side that it takes."""
    size_multiple: int
    """What they must be a multiple of."""
    strides: tuple[int, ...]
    """Of the maps that a detector can find objects in."""
    device: Literal["cuda", "mps", "cpu"]
    bf16_gpu: bool
    """Whether the GPU computes in bf16 (sm_80 on)."""
    has_dali: bool
    has_triton: bool
    has_compiler: bool
    """Whether there is a C++ compiler, for torch.compile on the CPU."""
    world_size: int
    cores: int
    """Processor cores for each process of this node."""


def resolve(config: Config, facts: Environment) -> tuple[Config, dict[str, str]]:
    """The settings without "auto", and the reason of each choice.

    Left "auto" are `data_backend` and, on the CPU, `amp_dtype`, `channels_last` and `compile`, which need a
    probe, yolo's `anchors`, which need the boxes, and `output_dir`, which needs a look at the disk.

    Raises:
        ValueError: settings that this data or network cannot take.
    """
    chosen: dict[str, tuple[Any, str]] = {}

    def choose(name: str, value: Any, reason: str) -> Any:
        if getattr(config, name) != "auto":
            return getattr(config, name)
        chosen[name] = (value, reason)
        return value

    choose("num_classes", facts.num_classes, "of the data")
    choose("in_chans", facts.channels, "of the data")
    size = choose("img_size", *_image_size(config, facts))
    _check_sizes(config, facts, size, "--img-size")
    _check_sizes(config, facts, choose("val_img_size", size, "--img-size"), "--val-img-size")
    for smaller in config.progressive or ():
        _check_sizes(config, facts, smaller, "--progressive")

    small = facts.native_size is not None
    choose("train_crop", "pad" if small else "random-resized", "small images" if small else "photos")
    task = task_of(config.arch)
    classifies = task == "classification"
    choose("scale", (0.08, 1.0) if classifies else (0.5, 1.0), task)
    if config.train_crop == "random":
        choose("crop_mode", "center", "as --train-crop random")
    else:
        choose("crop_mode", "center" if classifies else "border", task)
    if task == "detection":
        choose("strides", *_strides(config, facts, size))
    choose("crop_padding", size // 8, "an eighth of the size")
    choose("hflip", *((0.5, "mirrored images fit") if facts.mirror else (0.0, "mirrored digits are others")))
    if facts.data_name == "synthetic":
        choose("data_backend", "synthetic", "no data to load")
    elif config.deterministic:
        choose("data_backend", "dali" if facts.has_dali else "torch", "--deterministic: not timed")
    choose("workers", facts.cores, "cores for each process")

    if config.batch_size == "max":  # on a GPU it has been found by now
        raise UserError(f"--batch-size max: {facts.device} has no memory of its own; write a number, or auto")
    batch = choose("batch_size", *_batch_size(facts, size))
    global_batch = batch * facts.world_size * config.grad_accum_steps
    epochs = choose("epochs", *_epochs(facts))
    if config.opt == "adamw":
        choose("lr", *_scaled(1e-3, global_batch, 1024, "sqrt"))
        choose("weight_decay", 0.05, "adamw")
    elif config.opt == "rmsproptf":
        choose("lr", *_scaled(0.016, global_batch, 256, "linear"))
        choose("weight_decay", 1e-5, "rmsproptf")
    elif config.opt == "muon":
        choose("lr", *_scaled(0.24, global_batch, 2000, "sqrt"))
        choose("weight_decay", *_scaled(1 / 60, global_batch, 2000, "sqrt"))
    else:
        rate = 0.3 if facts.data_name == "demo" else 0.2 if small else 0.1
        if config.arch.startswith("yolov1"):
            rate = 0.008  # its loss is a sum over all cells; 0.03 was seen to diverge
        choose("lr", *_scaled(rate, global_batch, 256, "linear"))
        choose("weight_decay", 1e-4, config.opt)
    if config.lr_base is not None:  # in place of the optimizer's
        choose("lr", *_scaled(config.lr_base, global_batch, config.lr_base_size, config.lr_base_scale))
    choose("warmup_epochs", *warmup_of(config.sched, epochs))

    choose("device", facts.device, "no GPU found" if facts.device == "cpu" else "found")
    if facts.device != "cpu":
        choose("channels_last", "on", facts.device)
    elif config.deterministic:
        choose("channels_last", "on", "--deterministic: not timed")
        choose("amp_dtype", "fp32", "--deterministic: not timed")
    if facts.device == "cuda":
        reason = "the GPU has it" if facts.bf16_gpu else "the GPU has no bf16"
        choose("amp_dtype", "bf16" if facts.bf16_gpu else "fp16", reason)
    elif facts.device == "mps":
        choose("amp_dtype", "fp32", "mps")
    if facts.device == "cuda" and facts.has_triton:
        choose("compile", "on", "cuda")
    elif facts.device == "cuda":
        choose("compile", "off", "Triton is not installed")
    elif facts.device == "mps":
        choose("compile", "off", "mps")
    elif not facts.has_compiler:
        choose("compile", "off", "there is no C++ compiler")
    elif config.deterministic:
        choose("compile", "off", "--deterministic: not timed")
    choose("log_interval", 50 if facts.device == "cuda" else 10, f"steps on {facts.device}")

    resolved = dataclasses.replace(config, **{name: value for name, (value, _) in chosen.items()})
    open_end: Any = "auto" if config.time_budget is not None else resolved.epochs  # it is still to tell them
    check(dataclasses.replace(resolved, epochs=open_end, lr_base=None))  # the learning rate is from lr_base
    if config.cuda_graph and facts.world_size > 1:
        raise UserError(f"--cuda-graph: for one process, and there are {facts.world_size}; leave it out")
    return resolved, {name: reason for name, (_, reason) in chosen.items()}


NOT_CARRIED = (
    *("device", "workers", "log_interval"),  # the machine's
    *("output_dir", "resume", "test_only", "config"),  # this start's
)


def merge_resumed_config(
    config: Config, saved: dict[str, Any], chosen: Sequence[str], same_ranks: bool, device: str
) -> tuple[Config, dict[str, str]]:
    """A resumed run's settings: those of the checkpoint, but for what was told now.

    What is at its default counts as not told. What was chosen and depends on what has changed since is
    chosen anew.

    Args:
        saved: the checkpoint's settings.
        chosen: those of them that were "auto".
        same_ranks: whether as many processes train now.
        device: "cuda", "mps" or "cpu".

    Returns:
        The settings, and the reason of those that were "auto" and stay.
    """
    told = {f.name for f in dataclasses.fields(Config) if getattr(config, f.name) != f.default}
    if config.lr == "find":  # it was found
        told.discard("lr")
    if config.batch_size == "max":
        told.discard("batch_size")
    told.discard("time_budget")  # it has become epochs
    now = to_plain(config)
    changed = {name for name in told if now[name] != saved.get(name, FIELDS[name].default)}
    recomputed = set(NOT_CARRIED)
    if device != saved["device"]:
        recomputed |= {"amp_dtype", "channels_last", "compile", "cuda_graph"}
    if "opt" in changed:
        recomputed |= {"lr", "weight_decay"} & set(chosen)
    bases = {"lr_base", "lr_base_size", "lr_base_scale"}
    if not same_ranks or changed & {"batch_size", "grad_accum_steps", *bases}:
        recomputed |= {"lr"} & set(chosen)
    if changed & {"epochs", "sched"}:
        recomputed |= {"warmup_epochs"} & set(chosen)
    if changed & {"img_size", "progressive"}:
        recomputed |= {"img_size", "val_img_size", "crop_padding"} & set(chosen)
    for pair in ({"pretrained", "weights"}, {"freeze", "freeze_until"}):  # one of them excludes the other
        if told & pair:
            recomputed |= pair
    kept: dict[str, Any] = {
        name: _as_setting(name, value)
        for name, value in saved.items()
        if name in FIELDS and name not in told and name not in recomputed
    }
    return dataclasses.replace(config, **kept), {name: "as before" for name in chosen if name in kept}


def ignored_on_resume(told: Config, config: Config) -> list[str]:
    """One line for each setting that a run finds out as it begins, where it is told to one that goes on.

    Args:
        config: the settings that the run goes on with.
    """
    lines = []
    if told.lr == "find" != config.lr:
        lines.append(f"--lr find: the run goes on with its {_shown(config.lr)}; write a number for another")
    if told.batch_size == "max":
        lines.append(
            f"--batch-size max: the run goes on with its {config.batch_size}; write a number for another"
        )
    if told.time_budget is not None:
        epochs = _shown(config.epochs)
        lines.append(
            f"--time-budget {told.time_budget}: the run keeps its {epochs} epochs; write --epochs for others"
        )
    return lines


def _as_setting(name: str, value: Any) -> Any:
    """A checkpoint's value in the type that the setting has now."""
    if isinstance(value, bool) and not isinstance(FIELDS[name].default, bool):
        return "on" if value else "off"  # as `channels_last` once was
    return tuple(value) if isinstance(value, list) else value


def describe(config: Config, reasons: dict[str, str]) -> str:
    """The settings for a person: what was chosen and why, then what was told and what is the default."""
    lines = []
    width = max(len(flag(name)) for name in reasons) if reasons else 0
    for name, reason in reasons.items():
        value = getattr(config, name)
        shown = _shown(value)
        lines.append(f"  {flag(name):<{width}}  {shown:<14}  {reason}".rstrip())
    told = [
        _as_flag(field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in ("arch", "data", *reasons) and getattr(config, field.name) != field.default
    ]
    head = f"{config.arch} on {config.data}" + (f": {', '.join(told)}" if told else "")
    return "\n".join([head, *(["chosen for this data and machine:"] if lines else []), *lines])


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_flag(name: str, value: Any) -> str:
    """A setting as one would write it on the command line."""
    if isinstance(value, bool):
        return flag(name) if value else flag("no_" + name)
    return f"{flag(name)} {_shown(value)}"


def _image_size(config: Config, facts: Environment) -> tuple[int, str]:
    if config.progressive is not None:
        return config.progressive[-1], "the last of --progressive"
    native, multiple = facts.native_size, facts.size_multiple
    if facts.fixed_size or native is None:
        return facts.model_size, f"what {config.arch} was published with"
    if native < facts.minimum_size:
        return facts.model_size, f"{config.arch} takes no {native} px, but {facts.minimum_size} or more"
    if native % multiple:
        return multiple * math.ceil(
            native / multiple
        ), f"{native} px, and {config.arch} takes multiples of {multiple}"
    return native, "all images have this size"


def _scaled(rate: float, images: int, base: int, scale: Literal["linear", "sqrt"]) -> tuple[float, str]:
    """A learning rate for `base` images of a step, for so many (Goyal et al. 2017, section 2.1; Krizhevsky
    2014, section 5)."""
    if scale == "sqrt":
        return rate * math.sqrt(images / base), f"{rate:g} x sqrt({images:,} images of a step / {base:,})"
    return rate * images / base, f"{rate:g} x {images:,} images of a step / {base:,}"


def warmup_of(sched: SchedName, epochs: float) -> tuple[float, str]:
    """The epochs of a warm-up that is "auto", and why."""
    if sched == "onecycle":
        return 0.3 * epochs, "0.3 of the epochs"
    if sched == "triangular":
        return epochs / 2, "half of the epochs"
    return min(5.0, epochs / 10), "a tenth of the epochs, 5 at most"


def _check_sizes(config: Config, facts: Environment, size: int, told: str) -> None:
    multiple = facts.size_multiple
    if facts.fixed_size and size != facts.model_size:
        raise UserError(f"{told} {size}: {config.arch} takes {facts.model_size} px only; leave the flag out")
    if size < facts.minimum_size:
        least, usual = facts.minimum_size, facts.model_size
        raise UserError(f"{told} {size}: {config.arch} takes {least} px or more; write {usual}")
    if size % multiple:
        near = multiple * max(1, round(size / multiple))
        raise UserError(f"{told} {size}: {config.arch} takes multiples of {multiple} px; write {near}")
    if config.head != "linear" and task_of(config.arch) != "classification":
        raise UserError(f"--head {config.head}: {config.arch} has no classifier of such layers; leave it out")
    if config.num_classes != "auto" and config.num_classes < facts.num_classes:
        raise UserError(
            f"--num-classes {config.num_classes}: the data has {facts.num_classes}; leave the flag out"
        )


def _strides(config: Config, facts: Environment, size: int) -> tuple[tuple[int, ...], str]:
    """Small images need a fine map, and one; large ones several, so that objects of all sizes are found."""
    finest = next((stride for stride in facts.strides if stride >= 8), facts.strides[-1])
    if size <= 128:
        return (finest,), f"{size} px"
    if config.arch.startswith("yolov1"):
        return facts.strides[-1:], f"the coarsest of {config.arch}"
    return tuple(s for s in (8, 16, 32) if s in facts.strides) or (finest,), f"{size} px, as YOLOv3"


def _batch_size(facts: Environment, size: int) -> tuple[int, str]:
    per_rank = facts.train_images // facts.world_size
    if facts.train_images < 10_000:
        wanted, reason = 32, f"{facts.train_images:,} images"
    elif facts.device == "cpu":
        wanted, reason = (128 if size <= 64 else 32), f"{size} px on the CPU"
    else:
        wanted, reason = 256, f"{size} px on a GPU"
    if per_rank < wanted:
        wanted, reason = max(per_rank, 1), f"{facts.train_images} images for {facts.world_size} processes"
    return wanted, reason


def _epochs(facts: Environment) -> tuple[int, str]:
    if facts.data_name == "demo":
        return 12, "demo set"
    if facts.train_images >= 500_000:
        return 90, "as published for ImageNet"
    return 30, "less than ImageNet"
