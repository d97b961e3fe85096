"""Checks of settings: types, limits, conflicts, and settings without effect. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import get_type_hints

from fastcnn.config.duration import parse_time
from fastcnn.config.limits import broken
from fastcnn.config.policies import parse_policy
from fastcnn.config.progressive import check_progressive
from fastcnn.config.settings import FIELDS, Auto, Config, flag, has_anchors, task_of
from fastcnn.errors import UserError

LOADING = (
    *("scale", "ratio", "crop_pct", "crop_mode", "max_bad_fraction", "crop_padding", "pad_mode"),
    *("hflip_mode", "aa", "color_jitter", "grayscale_prob", "lighting", "rotate", "reprob", "cutout"),
    *("aug_repeats", "sampler", "dct_scaling"),
)
"""Settings of image loading, without effect on synthetic images."""
GEOMETRIC = ("aa", "rotate", "reprob", "cutout", "mixup", "cutmix", "tta", "pad_mode")
"""Augmentations that do not move masks and boxes."""
SHOWN = 200
"""Max characters of a value in a message."""


def check(config: Config) -> None:
    """Raise UserError for a value of the wrong type, outside its limits, or in conflict with another."""
    check_values(config)
    _check_data(config)
    _check_optimization(config)
    _check_transfer(config)
    _check_compute(config)


def check_values(config: Config) -> None:
    """Raise UserError for a value of the wrong type or outside its limits."""
    _check_types(config)
    _check_limits(config)


def ineffective(config: Config, chosen: Collection[str] = ()) -> list[str]:
    """Return one line for each changed setting without effect beside the others.

    Args:
        chosen: settings that were "auto", not set by the user.
    """
    idle = {**_idle_in_optimization(config), **_idle_in_images(config), **_idle_in_task(config)}
    return [
        f"warning: {flag(name)} has no effect here: {why}"
        for name, why in idle.items()
        if why and name not in chosen and getattr(config, name) != FIELDS[name].default
    ]


Idle = dict[str, str | bool]
"""Reason why each setting has no effect; False if it has one."""


def _idle_in_optimization(config: Config) -> Idle:
    adaptive = config.opt in ("adamw", "muon")
    freezes = config.freeze != "none" or config.freeze_until is not None
    no_mixing = not (config.mixup > 0 or config.cutmix > 0) and "add --mixup or --cutmix"
    return {
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
            or (config.warmup_epochs == 0 and "there is no warmup")
        ),
        **dict.fromkeys(
            ("lr_base_size", "lr_base_scale"), config.lr_base is None and "it belongs to --lr-base"
        ),
        "clip_mode": config.clip_grad is None and "add --clip-grad",
        **dict.fromkeys(("mixup_prob", "mixup_off_epoch"), no_mixing),
        "head_hidden": config.head != "mlp" and "it belongs to --head mlp",
        "unfreeze_epoch": (
            (not freezes and "nothing is frozen; add --freeze backbone or --freeze-until LAYER")
            or (_after(config.unfreeze_epoch, config.epochs) and "the last epoch is before it")
        ),
    }


def _idle_in_images(config: Config) -> Idle:
    random_resized = config.train_crop in ("pad", "random") and "it belongs to --train-crop random-resized"
    pads = config.train_crop in ("random-resized", "random") and "it belongs to --train-crop pad"
    idle: Idle = {
        **dict.fromkeys(
            ("split_seed", "group_by"),
            config.val_split is None and config.test_split is None and "add --val-split or --test-split",
        ),
        "progressive_milestones": config.progressive is None and "add --progressive",
        "lighting_pca": config.lighting == 0 and "add --lighting",
        "hflip_mode": config.hflip == 0 and "nothing is flipped",
        **dict.fromkeys(("crop_padding", "pad_mode"), pads),
        **dict.fromkeys(("scale", "ratio"), random_resized),
        "crop_pct": (
            (config.train_crop == "pad" and "small images are validated whole")
            or (config.crop_mode == "border" and "it belongs to --crop-mode center")
        ),
    }
    if config.data_backend == "dali":
        idle["dct_scaling"] = "it belongs to --data-backend torch and cached"
    if config.data_backend == "synthetic":
        idle |= dict.fromkeys(LOADING, "synthetic images are not loaded")
    return idle


def _idle_in_task(config: Config) -> Idle:
    task = task_of(config.arch)
    no_classes = task != "classification" and f"it belongs to classification, and {config.arch} is for {task}"
    no_masks = task != "segmentation" and "it belongs to segmentation"
    dice = task == "segmentation" and config.seg_loss == "dice" and "Dice takes none"
    return {
        **dict.fromkeys(("label_smoothing", "cls_loss"), no_classes),
        "focal_gamma": no_classes or (config.cls_loss != "focal" and "it belongs to --cls-loss focal"),
        "seg_loss": no_masks,
        **dict.fromkeys(("ignore_index", "mask_values", "mask_colors"), no_masks),
        "class_weights": (task == "detection" and "it belongs to classification and segmentation") or dice,
        "anchors": not has_anchors(config.arch) and "it belongs to yolo",
        "strides": task != "detection" and "it belongs to detection",
    }


def _after(epoch: int | None, epochs: float | Auto) -> bool:
    return epoch is not None and epochs != "auto" and epoch > epochs


def _check_types(config: Config) -> None:
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    for name, hint in get_type_hints(Config).items():
        value = getattr(config, name)
        try:
            if isinstance(value, bool) and not isinstance(FIELDS[name].default, bool):
                raise TypeCheckError("a bool is an int to Python, not to us")
            check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            expected = str(hint).replace("typing.", "").replace("NoneType", "None")
            raise UserError(f"{flag(name)} {_short(repr(value))}: expected {expected}") from None


def _check_limits(config: Config) -> None:
    for name, hint in get_type_hints(Config, include_extras=True).items():
        value = getattr(config, name)
        advice = broken(value, getattr(hint, "__metadata__", ()))
        if advice is not None:
            shown = " ".join(map(str, value if isinstance(value, tuple) else (value,)))
            raise UserError(f"{flag(name)} {_short(shown)}: {advice}")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _check_data(config: Config) -> None:
    if not config.data:
        raise UserError("--data: use a folder or the name of a data set")
    if task_of(config.arch) != "classification":
        for name in GEOMETRIC:
            if getattr(config, name) != FIELDS[name].default:
                raise UserError(
                    f"{flag(name)} {getattr(config, name)}: it does not move masks and boxes, and "
                    f"{config.arch} is for {task_of(config.arch)}; omit it"
                )
    if config.mask_values is not None and config.mask_colors is not None:
        raise UserError("--mask-values and --mask-colors: use only one of them")
    _check_splits(config)
    _check_classes(config)
    parse_policy(config.aa)
    check_progressive(config)
    if config.pad_mode == "reflect" and config.crop_mode == "border":
        raise UserError(
            "--pad-mode reflect and --crop-mode border, which adds black borders: use only one of them"
        )
    if config.train_crop == "random" and config.crop_mode == "border":
        raise UserError("--train-crop random and --crop-mode border: use --crop-mode center")
    if (
        config.pad_mode == "reflect"
        and isinstance(config.crop_padding, int)
        and isinstance(config.img_size, int)
        and config.crop_padding >= config.img_size
    ):
        raise UserError(
            f"--crop-padding {config.crop_padding}: more than there is to reflect in {config.img_size} px; "
            f"use at most {config.img_size - 1}"
        )


def _check_splits(config: Config) -> None:
    if config.val_split and config.test_split and config.val_split + config.test_split >= 1:
        raise UserError(
            f"--val-split {config.val_split:g} and --test-split {config.test_split:g}: they leave no images "
            "for training; use smaller shares, such as 0.1 each"
        )
    if config.group_by is not None:
        try:
            re.compile(config.group_by)
        except re.error as error:
            raise UserError(
                f"--group-by {config.group_by!r}: not a regular expression ({error}); "
                "use one such as '(patient[0-9]+)'"
            ) from error


def _check_classes(config: Config) -> None:
    """Raise UserError for labels, weights and samplers of classes that the task does not have."""
    task = task_of(config.arch)
    if task != "classification":
        for name in ("labels", "file_column", "label_column", "split_column"):
            if getattr(config, name) is not None:
                raise UserError(
                    f"{flag(name)}: it belongs to classification, and {config.arch} is for {task}; omit it"
                )
        if config.sampler == "balanced":
            raise UserError(
                f"--sampler balanced: it belongs to classification, and {config.arch} is for {task}; omit it"
            )
    if task == "segmentation" and isinstance(config.class_weights, str):
        raise UserError(
            f"--class-weights {config.class_weights}: segmentation takes numbers, one for each class"
        )
    if config.sampler == "balanced" and config.aug_repeats > 1:
        raise UserError(
            f"--sampler balanced and --aug-repeats {config.aug_repeats}: use only one of them, since both "
            "repeat images"
        )


def _check_optimization(config: Config) -> None:
    if config.lr_base is not None and config.lr != "auto":
        raise UserError(f"--lr {config.lr} and --lr-base {config.lr_base:g}: use only one of them")
    if config.time_budget is not None:
        parse_time(config.time_budget)
    parse_time(config.peer_timeout, "--peer-timeout")
    parse_time(config.read_timeout, "--read-timeout")
    if config.time_budget is not None and config.epochs != "auto":
        raise UserError(
            f"--epochs {config.epochs:g} and --time-budget {config.time_budget}: use only one of them"
        )
    if config.opt == "nesterov" and config.momentum == 0:
        raise UserError("--momentum 0: nesterov needs more; use --opt sgd, or a momentum such as 0.9")
    if config.warmup_epochs != "auto" and config.epochs != "auto" and config.warmup_epochs > config.epochs:
        raise UserError(
            f"--warmup-epochs {config.warmup_epochs:g} is longer than --epochs {config.epochs:g}: lower it"
        )


def _check_transfer(config: Config) -> None:
    if config.pretrained and config.weights is not None:
        raise UserError(f"--pretrained and --weights {config.weights}: use only one of them")
    if config.freeze != "none" and config.freeze_until is not None:
        raise UserError(
            f"--freeze {config.freeze} and --freeze-until {config.freeze_until}: use only one of them"
        )
    if config.test_only and config.resume is None:
        raise UserError("--test-only validates a checkpoint: add --resume runs/NAME/best.pt")


def _check_compute(config: Config) -> None:
    if config.device == "cpu" and config.amp_dtype == "fp16":
        raise UserError("--amp-dtype fp16 needs a GPU: on the CPU use bf16 or fp32")
    if config.device == "mps" and config.amp_dtype == "fp16":
        raise UserError("--amp-dtype fp16 needs a CUDA GPU: on mps use bf16 or fp32")
    if config.device in ("cpu", "mps") and config.sync_bn:
        raise UserError("--sync-bn needs CUDA GPUs: omit it, or use --device cuda")
    if config.device in ("cpu", "mps") and config.cuda_graph:
        raise UserError("--cuda-graph needs a CUDA GPU: omit it, or use --device cuda")
    if config.amp_dtype == "fp16" and config.cuda_graph:
        raise UserError("--cuda-graph and --amp-dtype fp16: omit one, or use --amp-dtype bf16")
