"""Resolve "auto": a pure function of the settings, the data, the network and the machine.

Torch-free. Each choice has a reason, which the run prints once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastcnn.config.settings import FIELDS, Config, SchedName, flag, task_of, to_plain
from fastcnn.config.validate import check, check_values
from fastcnn.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Everything that the choices depend on."""

    data_name: str
    train_images: int
    num_classes: int
    channels: int
    native_size: int | None
    """Image size in pixels, if all images are small squares of one size."""
    mirror: bool
    """A mirrored image keeps its class."""
    model_size: int
    """Image size in pixels that the network was published with."""
    fixed_size: bool
    """The network accepts no other size."""
    minimum_size: int
    """Smallest image size of the network in pixels."""
    size_multiple: int
    """Image sizes must be a multiple of it."""
    strides: tuple[int, ...]
    """Strides of the feature maps of a detector."""
    device: Literal["cuda", "mps", "cpu"]
    bf16_gpu: bool
    """The GPU computes in bf16 (sm_80 and later)."""
    has_dali: bool
    has_triton: bool
    has_compiler: bool
    """A C++ compiler is installed, for torch.compile on the CPU."""
    world_size: int
    cores: int
    """Processor cores for each process of this node."""
    multi_label: bool = False
    """An image may have several labels, or none."""


class _Choices:
    """Values chosen for settings that are "auto", with their reasons."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.chosen: dict[str, tuple[Any, str]] = {}

    def __call__(self, name: str, value: Any, reason: str) -> Any:
        """Return the setting's value: the user's if given, else the chosen one, recorded with its reason."""
        if getattr(self.config, name) != "auto":
            return getattr(self.config, name)
        self.chosen[name] = (value, reason)
        return value

    def resolved(self) -> tuple[Config, dict[str, str]]:
        values = {name: value for name, (value, _) in self.chosen.items()}
        return dataclasses.replace(self.config, **values), {
            n: reason for n, (_, reason) in self.chosen.items()
        }


def resolve(config: Config, environment: Environment) -> tuple[Config, dict[str, str]]:
    """Return the settings without "auto", and the reason of each choice.

    Some settings stay "auto": `data_backend` and, on the CPU, `amp_dtype`, `channels_last` and `compile` need
    a timed trial. The `anchors` of yolo need the boxes, and `output_dir` needs the disk.

    Raises:
        ValueError: settings that do not fit this data or network.
    """
    choose = _Choices(config)
    size = _resolve_images(config, environment, choose)
    if config.batch_size == "max":  # on a GPU already replaced by a number
        raise UserError(
            f"--batch-size max: {environment.device} has no memory of its own; use a number, or auto"
        )
    batch = choose("batch_size", *_batch_size(environment, size))
    _resolve_optimization(config, environment, choose, batch)
    _resolve_compute(config, environment, choose)

    # The limits apply to the choices too.
    resolved, reasons = choose.resolved()
    open_end: Any = "auto" if config.time_budget is not None else resolved.epochs  # set later from the budget
    check(dataclasses.replace(resolved, epochs=open_end, lr_base=None))  # lr is computed from lr_base
    if config.cuda_graph and environment.world_size > 1:
        raise UserError(f"--cuda-graph: for one process, and there are {environment.world_size}; omit it")
    return resolved, reasons


def _resolve_images(config: Config, environment: Environment, choose: _Choices) -> int:
    """Choose network shapes, image sizes, crops and the loader; return the training image size."""
    choose("num_classes", environment.num_classes, "of the data")
    _check_channels(config, environment, choose("in_chans", environment.channels, "of the data"))
    size = choose("img_size", *_image_size(config, environment))
    _check_sizes(config, environment, size, "--img-size")
    _check_sizes(config, environment, choose("val_img_size", size, "--img-size"), "--val-img-size")
    for smaller in config.progressive or ():
        _check_sizes(config, environment, smaller, "--progressive")

    small = environment.native_size is not None
    choose("train_crop", "pad" if small else "random-resized", "small images" if small else "photos")
    task = task_of(config.arch)
    classifies = task == "classification"
    if classifies and environment.multi_label:
        choose("cls_loss", "bce", "several labels an image")
    elif classifies:
        choose("cls_loss", "ce", "one label an image")
    choose("scale", (0.08, 1.0) if classifies else (0.5, 1.0), task)
    if config.train_crop == "random":
        choose("crop_mode", "center", "as --train-crop random")
    else:
        choose("crop_mode", "center" if classifies else "border", task)
    if task == "detection":
        choose("strides", *_strides(config, environment, size))
    choose("crop_padding", size // 8, "an eighth of the size")
    mirror = environment.mirror
    choose("hflip", *((0.5, "mirrored images fit") if mirror else (0.0, "mirrored digits are others")))
    if environment.data_name == "synthetic":
        choose("data_backend", "synthetic", "no data to load")
    elif config.deterministic:
        choose("data_backend", "dali" if environment.has_dali else "torch", "fixed by --deterministic")
    choose("workers", environment.cores, "cores for each process")
    return size


def _resolve_optimization(config: Config, environment: Environment, choose: _Choices, batch: int) -> None:
    """Choose epochs, learning rate, weight decay and warmup."""
    global_batch = batch * environment.world_size * config.grad_accum_steps
    epochs = choose("epochs", *_epochs(environment))
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
        small = environment.native_size is not None
        rate = 0.3 if environment.data_name == "demo" else 0.2 if small else 0.1
        if config.arch.startswith("yolov1"):
            rate = 0.008  # its loss is a sum over all cells; 0.03 diverged
        choose("lr", *_scaled(rate, global_batch, 256, "linear"))
        choose("weight_decay", 1e-4, config.opt)
    if config.lr_base is not None:  # replaces the optimizer's default
        choose("lr", *_scaled(config.lr_base, global_batch, config.lr_base_size, config.lr_base_scale))
    choose("warmup_epochs", *warmup_of(config.sched, epochs))


def _resolve_compute(config: Config, environment: Environment, choose: _Choices) -> None:
    """Choose device, data type, memory format, compilation and the log interval."""
    device = environment.device
    choose("device", device, "no GPU found" if device == "cpu" else "found")
    if device != "cpu":
        choose("channels_last", "on", device)
    elif config.deterministic:
        choose("channels_last", "on", "fixed by --deterministic")
        choose("amp_dtype", "fp32", "fixed by --deterministic")
    if device == "cuda":
        reason = "the GPU has it" if environment.bf16_gpu else "the GPU has no bf16"
        choose("amp_dtype", "bf16" if environment.bf16_gpu else "fp16", reason)
    elif device == "mps":
        choose("amp_dtype", "fp32", "mps")
    if device == "cuda" and environment.has_triton:
        choose("compile", "on", "cuda")
    elif device == "cuda":
        choose("compile", "off", "Triton is not installed")
    elif device == "mps":
        choose("compile", "off", "mps")
    elif not environment.has_compiler:
        choose("compile", "off", "there is no C++ compiler")
    elif config.deterministic:
        choose("compile", "off", "fixed by --deterministic")
    choose("log_interval", 50 if device == "cuda" else 10, f"steps on {device}")


FORMER = {"exif": "ignore", "levels": [0, 65_535], "dct_scaling": False}
"""Behavior of versions that did not have these settings, for their checkpoints."""


def from_saved(saved: Mapping[str, Any]) -> Config:
    """Convert the settings of a checkpoint; unknown ones are ignored, missing ones have their former value.

    Raises:
        UserError: a value of the wrong type, or outside its limits.
    """
    known = {name: value for name, value in {**FORMER, **saved}.items() if name in FIELDS}
    config = dataclasses.replace(
        Config(), **{name: _as_setting(name, value) for name, value in known.items()}
    )
    check_values(config)
    return config


NOT_CARRIED = (
    *("device", "workers", "log_interval"),  # specific to the machine
    *("output_dir", "resume", "test_only", "config", "peer_timeout"),  # specific to this start
)


def merge_resumed_config(
    config: Config, saved: dict[str, Any], chosen: Sequence[str], *, same_ranks: bool, device: str
) -> tuple[Config, dict[str, str]]:
    """Return the settings of a resumed run: those of the checkpoint, with the user's overrides.

    A written setting is an override, also at its default. Choices for "auto" that depend on a changed setting
    are recomputed.

    Args:
        saved: settings of the checkpoint.
        chosen: names of the settings that were "auto".
        same_ranks: the number of processes is the same as before.
        device: "cuda", "mps" or "cpu".

    Returns:
        The settings, and the reasons of the "auto" settings that are kept.
    """
    saved = {**FORMER, **saved}
    overrides = {name for name, field in FIELDS.items() if getattr(config, name) != field.default}
    overrides |= config.written
    if config.lr == "find":  # the checkpoint has its result
        overrides.discard("lr")
    if config.batch_size == "max":
        overrides.discard("batch_size")
    overrides.discard("time_budget")  # saved as epochs
    now = to_plain(config)
    changed = {name for name in overrides if now[name] != saved.get(name, FIELDS[name].default)}
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
    for pair in ({"pretrained", "weights"}, {"freeze", "freeze_until"}):  # mutually exclusive
        if overrides & pair:
            recomputed |= pair
    kept: dict[str, Any] = {
        name: _as_setting(name, value)
        for name, value in saved.items()
        if name in FIELDS and name not in overrides and name not in recomputed
    }
    return dataclasses.replace(config, **kept), {
        name: "from the checkpoint" for name in chosen if name in kept
    }


def ignored_on_resume(user_config: Config, config: Config) -> list[str]:
    """Return one line for each search setting that has no effect on a resumed run.

    Args:
        config: the settings of the resumed run.
    """
    lines = []
    if user_config.lr == "find" != config.lr:
        lines.append(f"--lr find: the run continues with its {_shown(config.lr)}; use a number for another")
    if user_config.batch_size == "max":
        lines.append(
            f"--batch-size max: the run continues with its {config.batch_size}; use a number for another"
        )
    if user_config.time_budget is not None:
        budget, epochs = user_config.time_budget, _shown(config.epochs)
        lines.append(f"--time-budget {budget}: the run keeps its {epochs} epochs; use --epochs for others")
    return lines


def _as_setting(name: str, value: Any) -> Any:
    """Convert a checkpoint's value to the current type of the setting."""
    if isinstance(value, bool) and not isinstance(FIELDS[name].default, bool):
        return "on" if value else "off"  # former type of `channels_last`
    return tuple(value) if isinstance(value, list) else value


def describe(config: Config, reasons: dict[str, str]) -> str:
    """Describe the settings: the user's in one line, then the auto-selected ones with their reasons."""
    lines = []
    width = max(len(flag(name)) for name in reasons) if reasons else 0
    for name, reason in reasons.items():
        value = getattr(config, name)
        shown = _shown(value)
        lines.append(f"  {flag(name):<{width}}  {shown:<14}  {reason}".rstrip())
    given = [
        _as_flag(name, getattr(config, name))
        for name, field in FIELDS.items()
        if name not in ("arch", "data", *reasons) and getattr(config, name) != field.default
    ]
    head = f"{config.arch} on {config.data}" + (f": {', '.join(given)}" if given else "")
    return "\n".join([head, *(["auto-selected settings:"] if lines else []), *lines])


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
    return str(value)


def _as_flag(name: str, value: Any) -> str:
    """Format a setting as on the command line."""
    if isinstance(value, bool):
        return flag(name) if value else flag("no_" + name)
    return f"{flag(name)} {_shown(value)}"


def _image_size(config: Config, environment: Environment) -> tuple[int, str]:
    if config.progressive is not None:
        return config.progressive[-1], "the last of --progressive"
    native, multiple = environment.native_size, environment.size_multiple
    if environment.fixed_size or native is None:
        return environment.model_size, f"what {config.arch} was published with"
    if native < environment.minimum_size:
        return (
            environment.model_size,
            f"{config.arch} takes no {native} px, but {environment.minimum_size} or more",
        )
    if native % multiple:
        return multiple * math.ceil(
            native / multiple
        ), f"{native} px, and {config.arch} takes multiples of {multiple}"
    return native, "all images have this size"


def _scaled(rate: float, images: int, base: int, scale: Literal["linear", "sqrt"]) -> tuple[float, str]:
    """Scale a learning rate for a global batch of `base` to one of `images` (Goyal et al. 2017, section 2.1;
    Krizhevsky 2014, section 5)."""
    if scale == "sqrt":
        return rate * math.sqrt(images / base), f"{rate:g} x sqrt({images:,} images of a step / {base:,})"
    return rate * images / base, f"{rate:g} x {images:,} images of a step / {base:,}"


def warmup_of(sched: SchedName, epochs: float) -> tuple[float, str]:
    """Return the warmup epochs for "auto", and the reason."""
    if sched == "onecycle":
        return 0.3 * epochs, "0.3 of the epochs"
    if sched == "triangular":
        return epochs / 2, "half of the epochs"
    return min(5.0, epochs / 10), "a tenth of the epochs, 5 at most"


def _check_channels(config: Config, environment: Environment, channels: int) -> None:
    """Raise UserError for other channels than the images have, or augmentation of RGB for others."""
    stored = environment.channels
    if environment.data_name != "synthetic" and channels != stored and not {channels, stored} <= {1, 3}:
        wanted = "1 or 3" if stored in (1, 3) else f"{stored}, or omit it"
        raise UserError(f"--in-chans {channels}: the data's number is {stored}; use {wanted}")
    if channels in (1, 3):
        return
    jitter = config.color_jitter or ()
    of_rgb = {
        "aa": config.aa != "none",
        "color_jitter": len(jitter) == 1 or any(jitter[2:]),
        "grayscale_prob": config.grayscale_prob > 0,
        "lighting": config.lighting > 0,
    }
    for name in (name for name, used in of_rgb.items() if used):
        instead = "omit it"
        if name == "color_jitter":
            instead = f"use brightness and contrast alone: {_shown((*jitter, *jitter)[:2])} 0"
        raise UserError(
            f"{_as_flag(name, getattr(config, name))}: for RGB, and the images have {channels} channels; "
            f"{instead}"
        )


def check_size(arch: str, environment: Environment, size: int, source_flag: str) -> None:
    """Raise UserError for an image size in pixels that a network does not take.

    Args:
        source_flag: beginning of the message.
    """
    multiple = environment.size_multiple
    if environment.fixed_size and size != environment.model_size:
        raise UserError(f"{source_flag} {size}: {arch} takes {environment.model_size} px only; omit the flag")
    if size < environment.minimum_size:
        minimum, published = environment.minimum_size, environment.model_size
        raise UserError(f"{source_flag} {size}: {arch} takes {minimum} px or more; use {published}")
    if size % multiple:
        near = multiple * max(1, round(size / multiple))
        raise UserError(f"{source_flag} {size}: {arch} takes multiples of {multiple} px; use {near}")


def _check_sizes(config: Config, environment: Environment, size: int, source_flag: str) -> None:
    check_size(config.arch, environment, size, source_flag)
    if config.head != "linear" and task_of(config.arch) != "classification":
        raise UserError(f"--head {config.head}: {config.arch} has no classifier of such layers; omit it")
    if config.num_classes != "auto" and config.num_classes < environment.num_classes:
        raise UserError(
            f"--num-classes {config.num_classes}: the data has {environment.num_classes}; omit the flag"
        )


def _strides(config: Config, environment: Environment, size: int) -> tuple[tuple[int, ...], str]:
    """Choose strides: one fine feature map for small images, several for large images."""
    finest = next((stride for stride in environment.strides if stride >= 8), environment.strides[-1])
    if size <= 128:
        return (finest,), f"{size} px"
    if config.arch.startswith("yolov1"):
        return environment.strides[-1:], f"the coarsest of {config.arch}"
    return tuple(s for s in (8, 16, 32) if s in environment.strides) or (finest,), f"{size} px, as YOLOv3"


def _batch_size(environment: Environment, size: int) -> tuple[int, str]:
    per_rank = environment.train_images // environment.world_size
    if environment.train_images < 10_000:
        wanted, reason = 32, f"{environment.train_images:,} images"
    elif environment.device == "cpu":
        wanted, reason = (128 if size <= 64 else 32), f"{size} px on the CPU"
    else:
        wanted, reason = 256, f"{size} px on a GPU"
    if per_rank < wanted:
        wanted, reason = (
            max(per_rank, 1),
            f"{environment.train_images} images for {environment.world_size} processes",
        )
    return wanted, reason


def _epochs(environment: Environment) -> tuple[int, str]:
    if environment.data_name == "demo":
        return 12, "demo set"
    if environment.train_images >= 500_000:
        return 90, "as published for ImageNet"
    return 30, "less than ImageNet"
