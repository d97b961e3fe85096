"""Which settings cannot be, cannot be together, or do nothing together. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, get_type_hints

from fastcnn.config.policies import parse_policy
from fastcnn.config.progressive import check_progressive
from fastcnn.config.settings import FIELDS, Auto, Config, flag, has_anchors, task_of
from fastcnn.config.time_budget import parse_time
from fastcnn.errors import UserError

LOADING = (
    *("scale", "ratio", "crop_pct", "crop_mode", "max_bad_fraction", "crop_padding", "pad_mode"),
    *("hflip_mode", "aa", "color_jitter", "grayscale_prob", "lighting", "rotate", "reprob", "cutout"),
    "aug_repeats",
)
"""What says how images are loaded, and nothing to synthetic ones."""
GEOMETRIC = ("aa", "rotate", "reprob", "cutout", "mixup", "cutmix", "tta", "pad_mode")
"""What would have to move masks and boxes, and does not."""


def check(config: Config) -> None:
    """ValueError for a value of the wrong type, an impossible value or an impossible combination."""
    _check_types(config)
    _check_values(config)


def ineffective(config: Config, chosen: Collection[str] = ()) -> list[str]:
    """One line for each setting that was changed and has no effect beside the others.

    Args:
        chosen: settings that were "auto", and are not the user's.
    """
    task = task_of(config.arch)
    adaptive = config.opt in ("adamw", "muon")
    freezes = config.freeze != "none" or config.freeze_until is not None
    loads = config.data_backend != "synthetic"
    loading = () if loads else LOADING
    mixes = config.mixup > 0 or config.cutmix > 0
    no_classes = task != "classification" and f"it belongs to classification, and {config.arch} is for {task}"
    no_masks = task != "segmentation" and "it belongs to segmentation"
    idle = {
        "momentum": adaptive and f"{config.opt} has its own",
        **dict.fromkeys(("model_ema_decay", "model_ema_steps"), not config.model_ema and "add --model-ema"),
        "decay_epochs": config.sched != "step" and "it belongs to --sched step",
        "decay_milestones": config.sched != "multistep" and "it belongs to --sched multistep",
        "decay_rate": config.sched not in ("step", "multistep") and "it belongs to --sched step or multistep",
        "min_lr": (
            config.sched not in ("cosine", "polynomial", "triangular")
            and "it belongs to --sched cosine, polynomial or triangular"
        ),
        "decay_power": config.sched != "polynomial" and "it belongs to --sched polynomial",
        "warmup_factor": (
            (config.sched == "onecycle" and "onecycle has its own")
            or (config.warmup_epochs == 0 and "there is no warm-up")
        ),
        **dict.fromkeys(
            ("lr_base_size", "lr_base_scale"), config.lr_base is None and "it belongs to --lr-base"
        ),
        "clip_mode": config.clip_grad is None and "add --clip-grad",
        "mixup_prob": not mixes and "add --mixup or --cutmix",
        "mixup_off_epoch": not mixes and "add --mixup or --cutmix",
        "progressive_milestones": config.progressive is None and "add --progressive",
        "lighting_pca": config.lighting == 0 and "add --lighting",
        "hflip_mode": config.hflip == 0 and "nothing is flipped",
        **dict.fromkeys(
            ("crop_padding", "pad_mode"),
            config.train_crop in ("random-resized", "random") and "it belongs to --train-crop pad",
        ),
        "scale": config.train_crop in ("pad", "random") and "it belongs to --train-crop random-resized",
        "ratio": config.train_crop in ("pad", "random") and "it belongs to --train-crop random-resized",
        "crop_pct": (
            (config.train_crop == "pad" and "small images are validated whole")
            or (config.crop_mode == "border" and "it belongs to --crop-mode center")
        ),
        "head_hidden": config.head != "mlp" and "it belongs to --head mlp",
        "unfreeze_epoch": (
            (not freezes and "nothing is frozen; add --freeze backbone or --freeze-until LAYER")
            or (_after(config.unfreeze_epoch, config.epochs) and "the last epoch is before it")
        ),
        "label_smoothing": no_classes,
        "seg_loss": no_masks,
        "class_weights": no_masks or (config.seg_loss == "dice" and "Dice takes none"),
        "ignore_index": no_masks,
        "anchors": not has_anchors(config.arch) and "it belongs to yolo",
        "strides": task != "detection" and "it belongs to detection",
        "bad_labels": task == "classification" and "it belongs to masks and boxes",
        **dict.fromkeys(loading, "synthetic images are not loaded"),
    }
    return [
        f"warning: {flag(name)} has no effect here: {why}"
        for name, why in idle.items()
        if why and name not in chosen and getattr(config, name) != FIELDS[name].default
    ]


def _after(epoch: int | None, epochs: float | Auto) -> bool:
    return epoch is not None and epochs != "auto" and epoch > epochs


def _check_types(config: Config) -> None:
    from typeguard import TypeCheckError, check_type

    for name, hint in get_type_hints(Config).items():
        value = getattr(config, name)
        try:
            if isinstance(value, bool) and not isinstance(FIELDS[name].default, bool):
                raise TypeCheckError("a bool is an int to Python, not to us")
            check_type(value, hint)
        except TypeCheckError:
            expected = str(hint).replace("typing.", "").replace("NoneType", "None")
            raise UserError(f"{flag(name)} {value!r}: expected {expected}") from None


def _check_values(config: Config) -> None:
    if not config.data:
        raise UserError("--data: write a folder or the name of a data set")
    _require(config, "img_size", lambda v: v >= 8, "write 8 or more")
    for name in ("num_classes", "batch_size", "grad_accum_steps", "log_interval", "checkpoint_interval"):
        _require(config, name, lambda v: v >= 1, "write 1 or more")
    for name in ("checkpoint_steps", "head_hidden", "lr_base_size", "val_interval", "patience"):
        _require(config, name, lambda v: v >= 1, "write 1 or more")
    for name in ("aug_repeats", "model_ema_steps"):
        _require(config, name, lambda v: v >= 1, "write 1 or more")
    _require(config, "val_img_size", lambda v: v >= 8, "write 8 or more")
    _require(config, "progressive", _rising_sizes, "write ascending sizes of 8 or more, such as 160 192")
    _require(config, "progressive_milestones", _ascending, "write epochs in ascending order, such as 8 12")
    _require(config, "color_jitter", _jitter, "write 1, 3 or 4 numbers of 0 or more, hue to 0.5")
    _require(config, "unfreeze_epoch", lambda v: v >= 2, "write 2 or more: epochs are counted from 1")
    _require(config, "ignore_index", lambda v: 0 <= v <= 255, "write 0 to 255")
    _require(config, "class_weights", _weights, "write a weight for each class, 0 or more")
    _require(config, "strides", _strides, "write ascending strides, such as 8 16 32")
    _require(config, "anchors", _sides, "write widths and heights in pixels, such as 10 13 33 23")
    for name in ("workers", "seed", "lr", "weight_decay", "warmup_epochs", "min_lr", "backbone_lr_scale"):
        _require(config, name, lambda v: v >= 0, "write 0 or more")
    for name in ("lighting", "cutout", "mixup", "cutmix", "mixup_off_epoch", "crop_padding", "average_last"):
        _require(config, name, lambda v: v >= 0, "write 0 or more")
    for name in ("momentum", "label_smoothing", "model_ema_decay", "drop", "drop_path"):
        _require(config, name, lambda v: 0 <= v < 1, "write 0 or more and less than 1")
    for name in ("decay_epochs", "clip_grad", "checkpoint_minutes", "epochs", "lr_base", "decay_power"):
        _require(config, name, lambda v: v > 0, "write more than 0")
    for name in ("grayscale_prob", "reprob", "mixup_prob", "warmup_factor"):
        _require(config, name, lambda v: 0 <= v <= 1, "write 0 to 1")
    _require(config, "rotate", lambda v: 0 <= v <= 180, "write degrees, 0 to 180")
    for name in ("decay_rate", "crop_pct", "layer_decay"):
        _require(config, name, lambda v: 0 < v <= 1, "write more than 0 and at most 1")
    _require(config, "max_bad_fraction", lambda v: 0 <= v <= 1, "write 0 to 1")
    _require(config, "hflip", lambda v: 0 <= v <= 1, "write 0 to 1")
    _require(config, "val_split", lambda v: 0 < v < 1, "write a share between 0 and 1, such as 0.1")
    _require(config, "in_chans", lambda v: v in (1, 3), "write 1 (grey) or 3 (RGB)")
    _require(config, "scale", lambda v: 0 < v[0] <= v[1] <= 1, "write two shares, such as 0.08 1.0")
    _require(config, "ratio", lambda v: 0 < v[0] <= v[1], "write two ratios, such as 0.75 1.33")
    _require(config, "decay_milestones", _ascending, "write epochs in ascending order, such as 30 60")
    if task_of(config.arch) != "classification":
        for name in GEOMETRIC:
            if getattr(config, name) != FIELDS[name].default:
                raise UserError(
                    f"{flag(name)} {getattr(config, name)}: it does not move masks and boxes, and "
                    f"{config.arch} is for {task_of(config.arch)}; leave it out"
                )
    parse_policy(config.aa)
    check_progressive(config)
    if config.pad_mode == "reflect" and config.crop_mode == "border":
        raise UserError(
            "--pad-mode reflect and --crop-mode border, which adds black borders: write one of them"
        )
    if config.train_crop == "random" and config.crop_mode == "border":
        raise UserError("--train-crop random and --crop-mode border: write --crop-mode center")
    if (
        config.pad_mode == "reflect"
        and isinstance(config.crop_padding, int)
        and isinstance(config.img_size, int)
        and config.crop_padding >= config.img_size
    ):
        raise UserError(
            f"--crop-padding {config.crop_padding}: more than there is to reflect in {config.img_size} px; "
            f"write {config.img_size - 1} or less"
        )
    if config.lr_base is not None and config.lr != "auto":
        raise UserError(f"--lr {config.lr} and --lr-base {config.lr_base:g}: write one of them")
    if config.time_budget is not None:
        parse_time(config.time_budget)
    if config.time_budget is not None and config.epochs != "auto":
        raise UserError(
            f"--epochs {config.epochs:g} and --time-budget {config.time_budget}: write one of them"
        )
    if config.opt == "nesterov" and config.momentum == 0:
        raise UserError("--momentum 0: nesterov needs more; write --opt sgd, or a momentum such as 0.9")
    if config.pretrained and config.weights is not None:
        raise UserError(f"--pretrained and --weights {config.weights}: write one of them")
    if config.freeze != "none" and config.freeze_until is not None:
        raise UserError(
            f"--freeze {config.freeze} and --freeze-until {config.freeze_until}: write one of them"
        )
    if config.test_only and config.resume is None:
        raise UserError("--test-only validates a checkpoint: add --resume runs/NAME/best.pt")
    if config.device == "cpu" and config.amp_dtype == "fp16":
        raise UserError("--amp-dtype fp16 needs a GPU: on the CPU write bf16 or fp32")
    if config.device == "mps" and config.amp_dtype == "fp16":
        raise UserError("--amp-dtype fp16 needs a CUDA GPU: on mps write bf16 or fp32")
    if config.device in ("cpu", "mps") and config.sync_bn:
        raise UserError("--sync-bn needs CUDA GPUs: leave it out, or write --device cuda")
    if config.device in ("cpu", "mps") and config.cuda_graph:
        raise UserError("--cuda-graph needs a CUDA GPU: leave it out, or write --device cuda")
    if config.amp_dtype == "fp16" and config.cuda_graph:
        raise UserError("--cuda-graph and --amp-dtype fp16: leave one out, or write --amp-dtype bf16")
    if config.warmup_epochs != "auto" and config.epochs != "auto" and config.warmup_epochs > config.epochs:
        raise UserError(
            f"--warmup-epochs {config.warmup_epochs:g} is longer than --epochs {config.epochs:g}: write less"
        )


def _ascending(values: tuple[float, ...]) -> bool:
    return all(v > 0 for v in values) and list(values) == sorted(values)


def _rising_sizes(values: tuple[int, ...]) -> bool:
    return len(values) > 1 and values[0] >= 8 and list(values) == sorted(set(values))


def _jitter(values: tuple[float, ...]) -> bool:
    return len(values) in (1, 3, 4) and all(v >= 0 for v in values) and max(values[3:], default=0) <= 0.5


def _weights(values: tuple[float, ...]) -> bool:
    return all(v >= 0 for v in values) and sum(values) > 0


def _strides(values: tuple[int, ...]) -> bool:
    return len(values) > 0 and values[0] > 0 and list(values) == sorted(set(values))


def _sides(values: tuple[float, ...]) -> bool:
    return len(values) > 0 and len(values) % 2 == 0 and all(v > 0 for v in values)


def _require(config: Config, name: str, holds: Any, advice: str) -> None:
    value = getattr(config, name)
    if value is None or isinstance(value, str):  # such as "auto"
        return
    values = value if isinstance(value, tuple) else (value,)
    if not holds(value) or math.inf in values:
        shown = " ".join(map(str, values))
        raise UserError(f"{flag(name)} {shown}: {advice}")
