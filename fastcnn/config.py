"""What a run is told: one frozen dataclass, filled from flags, a YAML file or Python.

    python -m fastcnn.train --arch resnet18 --data photos --config mine.yaml --lr 0.2

Torch-free, so that `--help` answers at once. A field whose default is "auto" is chosen by
`fastcnn.resolve` once the data and the machine are known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from tyro.conf import arg

from fastcnn.errors import UserError

Auto = Literal["auto"]
TaskName = Literal["classification", "segmentation", "detection"]


def task_of(arch: str) -> TaskName:
    """What a network is for, by its name: `unet...` segments, `yolo...` detects, others classify."""
    if arch.startswith("unet"):
        return "segmentation"
    return "detection" if arch.startswith("yolo") else "classification"


def has_anchors(arch: str) -> bool:
    """Whether a network finds objects from anchors: `yolo` and `yolo/NAME`."""
    return arch.partition("/")[0] == "yolo"


def backbone_of(arch: str) -> str:
    """The network whose pretrained weights a network takes: `resnet50` of `unet/resnet50`, else itself."""
    if task_of(arch) == "classification":
        return arch
    family, _, backbone = arch.partition("/")
    return backbone or ("resnet18" if family in ("yolo", "yolov1") else arch)


@dataclass(frozen=True)
class Config:
    """Train a convolutional network.

    Settings that say "auto" are chosen for the data and the machine, and printed with the reason."""

    # The network and its data.
    arch: Annotated[str, arg(aliases=["-a", "--model"])] = "resnet50"
    """Network: resnet50, unet, unet/resnet50, yolo/resnet18, timm/NAME, torchvision/NAME, MODULE:FACTORY."""
    data: str = "demo"
    """Folder, tar shards, or a named set: cifar10, mnist, oxford-iiit-pet, voc2012, synthetic, demo, ..."""
    data_root: str = "data"
    """Where the named data sets are, or are downloaded to."""
    val_split: float | None = None
    """Share of a folder without val/ to validate on, 0 to 1."""
    num_classes: int | Auto = "auto"
    """Classes; auto: those of the data."""
    in_chans: int | Auto = "auto"
    """Input channels, 1 or 3; auto: those of the data."""
    img_size: int | Auto = "auto"
    """Pixels a side of the training and validation images."""

    # How images are loaded and augmented.
    data_backend: Literal["auto", "dali", "torch", "cached", "synthetic"] = "auto"
    """Loader; auto: the fastest of them for this data, timed for a moment."""
    batch_size: Annotated[int | Auto, arg(aliases=["-b"])] = "auto"
    """Images a process takes in each forward pass."""
    workers: Annotated[int | Auto, arg(aliases=["-j"])] = "auto"
    """Loading threads of each process."""
    max_bad_fraction: float = 0.01
    """Share of the images that may be undecodable; they are replaced in training, left out in validation."""
    train_crop: Literal["auto", "random-resized", "pad"] = "auto"
    """Crop in training; auto: pad for small images of one size, else random-resized."""
    scale: tuple[float, float] | Auto = "auto"
    """Share of the image's area that a random-resized crop takes; auto: 0.08 1, with masks or boxes 0.5 1."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random-resized crop."""
    hflip: float | Auto = "auto"
    """Probability of a horizontal flip; auto: 0.5, for digits 0."""
    crop_pct: float = 0.875
    """Side of the validation crop over the resized image's short side."""
    crop_mode: Literal["auto", "center", "border"] = "auto"
    """Validation: a crop of the centre, or all of the image with black borders; auto: border with masks or
    boxes, else center."""

    # Segmentation and detection.
    seg_loss: Literal["ce", "dice", "ce-dice"] = "ce-dice"
    """Loss of segmentation: cross-entropy, Dice, or their sum."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the cross-entropy of segmentation."""
    ignore_index: int = 255
    """Value in masks of pixels that are neither trained on nor counted."""
    anchors: tuple[float, ...] | Auto = "auto"
    """Widths and heights, W H W H ..., in pixels of yolo's anchors; auto: k-means over the training boxes."""
    strides: tuple[int, ...] | Auto = "auto"
    """Pixels a side of a cell of yolo's maps; auto: 8, above 128 px also 16 and 32 (yolov1: 32 alone)."""
    bad_labels: Literal["stop", "skip"] = "stop"
    """What to do about bad masks, boxes and label files: stop and name them, or leave them out."""

    # Optimization.
    epochs: int | Auto = "auto"
    """Passes over the training data."""
    opt: Literal["sgd", "nesterov", "adamw"] = "sgd"
    """Optimizer, fused."""
    lr: float | Auto = "auto"
    """Peak learning rate; auto: scaled with the global batch."""
    momentum: float = 0.9
    """Momentum of sgd and nesterov."""
    weight_decay: Annotated[float | Auto, arg(aliases=["--wd"])] = "auto"
    """Weight decay of parameters with more than one dimension; auto: 1e-4, adamw 0.05."""
    sched: Literal["cosine", "step", "multistep", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup_epochs: float | Auto = "auto"
    """Linear warm-up; auto: a tenth of the epochs, 5 at most."""
    min_lr: float = 0.0
    """Where the cosine ends."""
    decay_epochs: float = 30.0
    """Epochs between the drops of --sched step."""
    decay_milestones: tuple[float, ...] = (30.0, 60.0, 80.0)
    """Epochs at which --sched multistep drops."""
    decay_rate: float = 0.1
    """Factor of each drop."""
    label_smoothing: Annotated[float, arg(aliases=["--smoothing"])] = 0.0
    """Label smoothing, 0 to 1."""
    grad_accum_steps: int = 1
    """Batches whose gradients are added up before an update."""
    clip_grad: float | None = None
    """Largest norm of the gradient."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is what gets validated."""
    model_ema_decay: float = 0.9998
    """Decay of that average in a step."""

    # Transfer learning.
    pretrained: bool = False
    """Start from the weights that torchvision or timm has for the network."""
    weights: str | None = None
    """Start from the weights of a file: .pth, .pt or .safetensors."""
    head: Literal["linear", "mlp"] = "linear"
    """Classifier: one linear layer, or with a hidden layer before it."""
    head_hidden: int = 512
    """Units of that hidden layer."""
    freeze: Literal["none", "backbone"] = "none"
    """Layers that do not train: backbone means all but the classifier."""
    freeze_until: str | None = None
    """Freeze the layers up to this one, such as layer3, and itself."""
    unfreeze_epoch: int | None = None
    """Epoch from which on all layers train, counted from 1."""
    backbone_lr_scale: float = 1.0
    """Learning rate of all layers but the classifier, as a share of --lr."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each group of layers to the one before it."""

    # The machine.
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to train; auto: cuda, else mps, else cpu."""
    amp_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of convolutions and products; auto: the fastest safe one."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Keep images and weights in channels-last memory; the flag alone means on, --no-channels-last off."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: on with CUDA, on the CPU in long runs if a trial is faster."""
    sync_bn: bool = False
    """Batch norm statistics over all GPUs."""
    deterministic: bool = False
    """The same bits in every run on one machine, at some cost in speed."""
    seed: int = 0
    """Seed of weights, order and augmentation."""

    # The run.
    output_dir: str | Auto = "auto"
    """Folder of checkpoints, logs and curves; auto: runs/ARCH-DATA, numbered."""
    resume: str | None = None
    """Checkpoint to continue from, with its settings; auto (or the flag alone): the run folder's last."""
    test_only: bool = False
    """Validate the --resume checkpoint and stop."""
    checkpoint_interval: int = 1
    """Epochs between checkpoints."""
    checkpoint_steps: int | None = None
    """Save every so many steps too."""
    checkpoint_minutes: float | None = None
    """Save when so much time has passed too, at the next log line."""
    log_interval: int | Auto = "auto"
    """Steps between log lines; auto: 50 on GPUs, 10 elsewhere."""
    config: str | None = None
    """YAML file of settings; flags override it."""


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


ALONE = {
    "--resume": "--resume=auto",
    "--channels-last": "--channels-last=on",
    "--no-channels-last": "--channels-last=off",
}
"""What a flag means without a value."""


def flag(name: str) -> str:
    """The flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def parse(argv: Sequence[str], prog: str = "fastcnn train") -> Config:
    """Flags to Config: the defaults, then the `--config` file, then the flags.

    Raises:
        SystemExit: `--help`, with status 0.
        UserError: an unknown flag, an unreadable value or settings that cannot work, with what to write
            instead.
    """
    argv = list(argv)
    for i, word in enumerate(argv):
        if word in ALONE and (i + 1 == len(argv) or argv[i + 1].startswith("-")):
            argv[i] = ALONE[word]
    file = _value_of("--config", argv)
    config = _read_flags(argv, from_yaml(file) if file is not None else Config(), prog)
    check(config)
    return config


def from_yaml(path: str) -> Config:
    """Reads a `--config` file, through the parser of the flags so that both are checked alike."""
    try:
        return _read_flags(_yaml_to_argv(Path(path)), Config(), "fastcnn train")
    except UserError as error:
        if str(error).startswith("--config"):
            raise
        raise UserError(f"--config {path}: {error}") from error


def _read_flags(argv: Sequence[str], default: Config, prog: str) -> Config:
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Config, args=argv, default=default, prog=prog)
    except SystemExit as end:
        if not end.code:
            raise
    raise UserError(_unboxed(box.getvalue()))


def _unboxed(box: str) -> str:
    """The first paragraph of tyro's framed message as a line, with the nearest flag for an unknown one."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # the first is a title
    words = [line if set(line) - set("─-╭╮╰╯") else "" for line in lines]  # rules are of "-" in ASCII
    text = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, words)))
    unknown = re.match(r"Unrecognized options: (--[\w-]+)", text)
    if unknown is None:
        return f"{text.rstrip('.')}; --help lists the flags"
    near = difflib.get_close_matches(unknown[1].replace("_", "-"), map(flag, FIELDS), n=1)
    return f"{unknown[1]}: no such flag; " + (f"did you mean {near[0]}?" if near else "--help lists them")


def from_settings(settings: Mapping[str, Any]) -> Config:
    """Python keywords to Config; ValueError for an unknown or ill-typed one."""
    _check_names(settings, "fit()")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    for name in ("data", "data_root", "weights", "output_dir", "resume", "config"):
        if isinstance(values.get(name), Path):
            values[name] = str(values[name])
    base = from_yaml(values["config"]) if values.get("config") else Config()
    config = dataclasses.replace(base, **values)
    check(config)
    return config


def check(config: Config) -> None:
    """ValueError for a value of the wrong type, an impossible value or an impossible combination."""
    _check_types(config)
    _check_values(config)


def to_plain(config: Config) -> dict[str, Any]:
    """The settings in types that YAML and weights-only checkpoints hold: tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}


def to_yaml(config: Config) -> str:
    """The settings as a YAML file that `--config` reads back."""
    import yaml

    values = to_plain(config)
    values.pop("config")
    return yaml.safe_dump(values, sort_keys=False)


def ineffective(config: Config, chosen: Collection[str] = ()) -> list[str]:
    """One line for each setting that was changed and has no effect beside the others.

    Args:
        chosen: settings that were "auto", and are not the user's.
    """
    task = task_of(config.arch)
    adaptive = config.opt == "adamw"
    freezes = config.freeze != "none" or config.freeze_until is not None
    loads = config.data_backend != "synthetic"
    loading = () if loads else ("scale", "ratio", "crop_pct", "crop_mode", "max_bad_fraction")
    no_classes = task != "classification" and f"it belongs to classification, and {config.arch} is for {task}"
    no_masks = task != "segmentation" and "it belongs to segmentation"
    idle = {
        "momentum": adaptive and "adamw has its own",
        "model_ema_decay": not config.model_ema and "add --model-ema",
        "decay_epochs": config.sched != "step" and "it belongs to --sched step",
        "decay_milestones": config.sched != "multistep" and "it belongs to --sched multistep",
        "decay_rate": config.sched not in ("step", "multistep") and "it belongs to --sched step or multistep",
        "min_lr": config.sched != "cosine" and "it belongs to --sched cosine",
        "scale": config.train_crop == "pad" and "it belongs to --train-crop random-resized",
        "ratio": config.train_crop == "pad" and "it belongs to --train-crop random-resized",
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


def _after(epoch: int | None, epochs: int | Auto) -> bool:
    return epoch is not None and epochs != "auto" and epoch > epochs


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(name + "="):
            return word.split("=", 1)[1]
    return None


def _check_names(settings: Mapping[str, Any], where: str) -> None:
    for name in settings:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `python -m fastcnn.train --help`"
            raise UserError(f"{where}: unknown setting {name!r}; {hint}")


def _yaml_to_argv(path: Path) -> list[str]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; write the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"--config {path}: write one `name: value` a line, such as `arch: resnet18`")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    _check_names(settings, f"--config {path}")
    for name, value in settings.items():
        if name == "config" or isinstance(value, dict):
            raise UserError(f"--config {path}: {name}: write single values, and no further file")
    argv: list[str] = []
    for name, value in settings.items():
        if isinstance(FIELDS[name].default, bool):
            if not isinstance(value, bool):
                raise UserError(f"--config {path}: {name} is true or false, not {value!r}")
            argv.append(flag(name) if value else "--no-" + flag(name)[2:])
        elif isinstance(value, list):
            argv += [flag(name), *map(str, value)]
        elif isinstance(value, bool):  # YAML reads `compile: on` as true
            argv += [flag(name), "on" if value else "off"]
        else:
            argv += [flag(name), str(value)]
    return argv


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
    _require(config, "data", bool, "write a folder or the name of a data set")
    _require(config, "img_size", lambda v: v >= 8, "write 8 or more")
    for name in ("num_classes", "batch_size", "epochs", "grad_accum_steps", "log_interval"):
        _require(config, name, lambda v: v >= 1, "write 1 or more")
    for name in ("checkpoint_interval", "checkpoint_steps", "head_hidden"):
        _require(config, name, lambda v: v >= 1, "write 1 or more")
    _require(config, "unfreeze_epoch", lambda v: v >= 2, "write 2 or more: epochs are counted from 1")
    _require(config, "ignore_index", lambda v: 0 <= v <= 255, "write 0 to 255")
    _require(config, "class_weights", _weights, "write a weight for each class, 0 or more")
    _require(config, "strides", _strides, "write ascending strides, such as 8 16 32")
    _require(config, "anchors", _sides, "write widths and heights in pixels, such as 10 13 33 23")
    for name in ("workers", "seed", "lr", "weight_decay", "warmup_epochs", "min_lr", "backbone_lr_scale"):
        _require(config, name, lambda v: v >= 0, "write 0 or more")
    for name in ("momentum", "label_smoothing", "model_ema_decay"):
        _require(config, name, lambda v: 0 <= v < 1, "write 0 or more and less than 1")
    for name in ("decay_epochs", "clip_grad", "checkpoint_minutes"):
        _require(config, name, lambda v: v > 0, "write more than 0")
    for name in ("decay_rate", "crop_pct", "layer_decay"):
        _require(config, name, lambda v: 0 < v <= 1, "write more than 0 and at most 1")
    _require(config, "max_bad_fraction", lambda v: 0 <= v <= 1, "write 0 to 1")
    _require(config, "hflip", lambda v: 0 <= v <= 1, "write 0 to 1")
    _require(config, "val_split", lambda v: 0 < v < 1, "write a share between 0 and 1, such as 0.1")
    _require(config, "in_chans", lambda v: v in (1, 3), "write 1 (grey) or 3 (RGB)")
    _require(config, "scale", lambda v: 0 < v[0] <= v[1] <= 1, "write two shares, such as 0.08 1.0")
    _require(config, "ratio", lambda v: 0 < v[0] <= v[1], "write two ratios, such as 0.75 1.33")
    _require(config, "decay_milestones", _ascending, "write epochs in ascending order, such as 30 60")
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
    if config.warmup_epochs != "auto" and config.epochs != "auto" and config.warmup_epochs > config.epochs:
        raise UserError(
            f"--warmup-epochs {config.warmup_epochs:g} is longer than --epochs {config.epochs}: write less"
        )


def _ascending(values: tuple[float, ...]) -> bool:
    return all(math.isfinite(v) and v > 0 for v in values) and list(values) == sorted(values)


def _weights(values: tuple[float, ...]) -> bool:
    return all(0 <= v < math.inf for v in values) and sum(values) > 0


def _strides(values: tuple[int, ...]) -> bool:
    return len(values) > 0 and values[0] > 0 and list(values) == sorted(set(values))


def _sides(values: tuple[float, ...]) -> bool:
    return len(values) > 0 and len(values) % 2 == 0 and all(0 < v < math.inf for v in values)


def _require(config: Config, name: str, holds: Any, advice: str) -> None:
    value = getattr(config, name)
    if value is None or value == "auto":
        return
    if not holds(value) or value == math.inf:
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UserError(f"{flag(name)} {shown}: {advice}")
