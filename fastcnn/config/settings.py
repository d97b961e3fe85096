"""All settings of a run in one frozen dataclass, filled from flags, a YAML file or Python.

    python -m fastcnn.train --arch resnet18 --data photos --config mine.yaml --lr 0.2

`Config` inherits its fields from one part per owner (`DataSettings`, `LossSettings`, ...). It is flat for
flags and YAML, and a function takes only the part that it needs. The limits of a value are annotations of its
type, checked by `fastcnn.config.validate`. `fastcnn.config.auto` resolves fields at "auto" once the data and
the machine are known. Torch-free, so that `--help` is immediate.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from tyro.conf import Suppress, arg

from fastcnn.config.limits import (
    MAX_SIDE,
    Limit,
    are_colors,
    are_deviations,
    are_mask_values,
    are_rising_sizes,
    are_shares,
    are_sides,
    are_strides,
    are_weights,
    ascending,
    is_jitter,
)

Auto = Literal["auto"]
Measured = Literal["auto", "data"]
TaskName = Literal["classification", "segmentation", "detection"]
OptName = Literal["sgd", "nesterov", "adamw", "rmsproptf", "muon"]
SchedName = Literal["cosine", "step", "multistep", "polynomial", "onecycle", "triangular", "constant"]
ClipMode = Literal["norm", "value"]
Views = Literal["none", "flip", "translate"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
SIDES = Interval(ge=8, le=MAX_SIDE)


def task_of(arch: str) -> TaskName:
    """Return the task of a network by its name: `unet...` segments, `yolo...` detects, others classify."""
    if arch.startswith("unet"):
        return "segmentation"
    return "detection" if arch.startswith("yolo") else "classification"


def has_anchors(arch: str) -> bool:
    """Return whether a network predicts boxes relative to anchors: `yolo` and `yolo/NAME`."""
    return arch.partition("/")[0] == "yolo"


def backbone_of(arch: str) -> str:
    """Return the network that provides pretrained weights: `resnet50` of `unet/resnet50`, else itself."""
    if task_of(arch) == "classification":
        return arch
    family, _, backbone = arch.partition("/")
    return backbone or ("resnet18" if family in ("yolo", "yolov1") else arch)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The network and its head."""

    arch: Annotated[str, arg(aliases=["-a", "--model"])] = "resnet50"
    """Network: resnet50, unet, unet/resnet50, yolo/resnet18, timm/NAME, torchvision/NAME, MODULE:FACTORY."""
    num_classes: Annotated[int | Auto, Interval(ge=1, le=10_000_000)] = "auto"
    """Number of classes; auto: from the data."""
    in_chans: Annotated[int | Auto, Interval(ge=1, le=255)] = "auto"
    """Input channels: 1 (gray), 3 (RGB), or as many as the images have; auto: from the data."""
    head: Literal["linear", "mlp"] = "linear"
    """Classifier: one linear layer, or an MLP with one hidden layer."""
    head_hidden: Annotated[int, Interval(ge=1, le=1_000_000)] = 512
    """Hidden units of --head mlp."""
    drop: Annotated[float | None, Interval(ge=0, lt=1), arg(aliases=["--dropout"])] = None
    """Dropout rate; by default the network's own."""
    drop_path: Annotated[float | None, Interval(ge=0, lt=1)] = None
    """Stochastic depth rate of the last block, decreasing towards the first; by default the network's own."""
    anchors: Annotated[
        tuple[float, ...] | Auto, Limit(are_sides, "use widths and heights in pixels, such as 10 13 33 23")
    ] = "auto"
    """Anchor widths and heights of yolo, W H W H ..., in pixels; auto: k-means over the training boxes."""
    strides: Annotated[
        tuple[int, ...] | Auto, Limit(are_strides, "use ascending strides, such as 8 16 32")
    ] = "auto"
    """Strides of yolo's feature maps in pixels; auto: 8, above 128 px also 16 and 32 (yolov1: 32 alone)."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data set and its labels."""

    data: str = "demo"
    """Folder, tar shards, or a named set: cifar10, mnist, oxford-iiit-pet, voc2012, synthetic, demo, ..."""
    data_root: str = "data"
    """Folder of the named data sets, and of their downloads."""
    val_split: Annotated[
        float | None, Limit(lambda v: 0 < v < 1, "use a share between 0 and 1, such as 0.1")
    ] = None
    """Fraction of the images of a folder without val/ to validate on, 0 to 1."""
    test_split: Annotated[
        float | None, Limit(lambda v: 0 < v < 1, "use a share between 0 and 1, such as 0.1")
    ] = None
    """Fraction of the images of a folder without test/ to hold out; validated once, after the training."""
    split_seed: Annotated[int | None, Ge(0)] = None
    """Seed of --val-split and --test-split; by default --seed."""
    group_by: str | None = None
    """Images on one side of a split: the same match of a regular expression, or value of a table's column."""
    labels: str | None = None
    """Table of a folder's images and labels: .csv, .tsv, .jsonl or .parquet."""
    file_column: str | None = None
    """Column of the table with the images' file names; by default guessed."""
    label_column: tuple[str, ...] | None = None
    """Column of the table with the labels, or one 0/1 column for each class; by default guessed."""
    split_column: str | None = None
    """Column of the table with train, val or test; by default guessed."""
    exif: Literal["upright", "ignore"] = "upright"
    """EXIF orientation: turn images upright, or ignore it as torchvision does."""
    levels: Annotated[
        tuple[float, float] | Auto, Limit(lambda v: v[0] != v[1], "use two values, such as 0 4095")
    ] = "auto"
    """Values that become black and white in images of more than 8 bits; auto: by the bits in use."""
    mean: Annotated[
        tuple[float, ...] | Measured, Limit(are_shares, "use a number from 0 to 1 for each channel")
    ] = "auto"
    """Mean per channel, for values from 0 to 1; data: measured; auto: of the data set or the weights."""
    std: Annotated[
        tuple[float, ...] | Measured,
        Limit(are_deviations, "use a number above 0, up to 1, for each channel"),
    ] = "auto"
    """Standard deviation per channel, as --mean."""
    ignore_index: Annotated[int, Limit(lambda v: 0 <= v <= 255, "use 0 to 255")] = 255
    """Mask value of pixels excluded from loss and metrics."""
    mask_values: Annotated[
        tuple[int, ...] | None, Limit(are_mask_values, "use two or more different values from 0 to 255")
    ] = None
    """Mask values of the classes in order, such as 0 128; smoothed borders count as the nearest one."""
    mask_colors: Annotated[
        tuple[str, ...] | None, Limit(are_colors, "use different colors RRGGBB, such as 000000 ff0000")
    ] = None
    """Colors of the classes in masks of colors, in order, such as 000000 ff0000."""
    bad_labels: Literal["stop", "skip"] = "stop"
    """Invalid masks, boxes and rows of labels: stop with a list, or skip them with a warning."""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """The loader of training and validation images."""

    data_backend: Literal["auto", "dali", "torch", "cached", "synthetic"] = "auto"
    """Loader; auto: the fastest one, timed briefly on this data."""
    batch_size: Annotated[int | Literal["auto", "max"], Ge(1), arg(aliases=["-b"])] = "auto"
    """Images per process in a forward pass; auto: usual, limited by GPU memory; max: largest that fits."""
    workers: Annotated[int | Auto, Interval(ge=0, le=1024), arg(aliases=["-j"])] = "auto"
    """Loader threads per process."""
    dct_scaling: bool = True
    """Decode JPEGs at 1/2, 1/4 or 1/8 if twice the wanted size is left; not of DALI."""
    max_bad_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Tolerated fraction of undecodable images; replaced in training, skipped in validation."""
    read_timeout: str = "1m"
    """Time limit for reading a file of the data, such as 30s; the run stops and names the file."""
    aug_repeats: Annotated[int, Interval(ge=1, le=1000), arg(aliases=["--ra-reps"])] = 1
    """Repeated augmentation: uses of each image per epoch; the epoch keeps its length."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Training order: each image once, or each class equally often in an epoch of the same length."""


@dataclass(frozen=True, kw_only=True)
class GeometrySettings:
    """Image size, crops and flips."""

    img_size: Annotated[int | Auto, SIDES] = "auto"
    """Image size in pixels, for training and validation."""
    val_img_size: Annotated[int | Auto, SIDES, arg(aliases=["--eval-img-size"])] = "auto"
    """Image size for validation, if different; auto: --img-size."""
    progressive: Annotated[
        tuple[int, ...] | None, Limit(are_rising_sizes, "use ascending sizes of 8 or more, such as 160 192")
    ] = None
    """Progressive resizing: training sizes in order, such as 160 192; the last one is --img-size."""
    progressive_milestones: Annotated[
        tuple[float, ...] | None, Limit(ascending, "use epochs in ascending order, such as 8 12")
    ] = None
    """Epochs at which the next size begins; by default evenly spaced."""
    train_crop: Literal["auto", "random-resized", "random", "pad"] = "auto"
    """Training crop; random: after a resize to --img-size / --crop-pct; auto: pad for small equal images."""
    scale: Annotated[
        tuple[float, float] | Auto,
        Limit(lambda v: 0 < v[0] <= v[1] <= 1, "use two shares, such as 0.08 1.0"),
    ] = "auto"
    """Area range of random-resized crops; auto: 0.08 1, with masks or boxes 0.5 1."""
    ratio: Annotated[
        tuple[float, float], Limit(lambda v: 0 < v[0] <= v[1], "use two ratios, such as 0.75 1.33")
    ] = (3 / 4, 4 / 3)
    """Aspect ratio range (width / height) of random-resized crops."""
    crop_padding: Annotated[int | Auto, Interval(ge=0, le=MAX_SIDE)] = "auto"
    """Padding of --train-crop pad in pixels per side; auto: an eighth of the size."""
    pad_mode: Literal["black", "reflect"] = "black"
    """Padding of --train-crop pad: black, or the image reflected at its border."""
    hflip: Annotated[float | Auto, Interval(ge=0, le=1)] = "auto"
    """Probability of a horizontal flip; auto: 0.5, for digits 0."""
    hflip_mode: Literal["random", "alternating"] = "random"
    """Flips: random, or alternating between epochs for each image."""
    crop_pct: Annotated[float, Interval(gt=0, le=1)] = 0.875
    """Validation crop as a fraction of the resized image's short side."""
    crop_mode: Literal["auto", "center", "border"] = "auto"
    """Validation: center crop, or the whole image with black borders; auto: border with masks or boxes."""


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Augmentation of pixels, and mixing of images."""

    aa: Annotated[str, arg(aliases=["--auto-augment"])] = "none"
    """Augmentation policy: ra, ta_wide, imagenet, cifar10, svhn, or timm's rand-m9-n2-mstd0.5; none."""
    color_jitter: Annotated[
        tuple[float, ...] | None, Limit(is_jitter, "use 1, 3 or 4 numbers of 0 or more, hue to 0.5")
    ] = None
    """Jitter of brightness, contrast, saturation, hue: one number for the first three, or 3 or 4 numbers."""
    grayscale_prob: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability of conversion to grayscale."""
    lighting: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of AlexNet's noise along the principal components of color; published: 0.1."""
    lighting_pca: Literal["imagenet", "data"] = "imagenet"
    """Principal components for --lighting: ImageNet's, or computed from the training images."""
    rotate: Annotated[float, Limit(lambda v: 0 <= v <= 180, "use degrees, 0 to 180")] = 0.0
    """Maximum angle of random rotation in degrees."""
    reprob: Annotated[float, Interval(ge=0, le=1), arg(aliases=["--random-erase"])] = 0.0
    """Probability of random erasing to the mean color."""
    cutout: Annotated[int, Interval(ge=0, le=MAX_SIDE)] = 0
    """Cutout: side in pixels of a square erased to the mean color in every image."""
    mixup: Annotated[float, Ge(0)] = 0.0
    """Mixup alpha; 0 disables it."""
    cutmix: Annotated[float, Ge(0)] = 0.0
    """CutMix alpha; 0 disables it. With --mixup each batch gets one of the two."""
    mixup_prob: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """Fraction of the batches that are mixed."""
    mixup_off_epoch: Annotated[int, Ge(0)] = 0
    """Epoch after which mixing is disabled; 0: never."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The loss of each task."""

    cls_loss: Literal["auto", "ce", "bce", "focal"] = "auto"
    """Classification loss: cross-entropy, binary cross-entropy, focal; auto: ce, with several labels bce."""
    focal_gamma: Annotated[float, Ge(0)] = 2.0
    """Focusing parameter of --cls-loss focal; 0 is cross-entropy."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1), arg(aliases=["--smoothing"])] = 0.0
    """Label smoothing, 0 to 1."""
    seg_loss: Literal["ce", "dice", "ce-dice"] = "ce-dice"
    """Segmentation loss: cross-entropy, Dice, or their sum."""
    class_weights: Annotated[
        tuple[float, ...] | Literal["balanced", "effective"] | None,
        Limit(are_weights, "use a weight for each class, 0 or more"),
    ] = None
    """Class weights: a number each; for classification also balanced, or effective (number of samples)."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The length of the training and its learning rate schedule."""

    epochs: Annotated[float | Auto, Interval(gt=0, le=1_000_000)] = "auto"
    """Number of epochs; may end with a partial one, as in 9.5."""
    time_budget: str | None = None
    """Wall-clock limit of the run, such as 10m or 1h30m; sets the epochs from the measured speed."""
    sched: SchedName = "cosine"
    """Learning rate schedule."""
    warmup_epochs: Annotated[float | Auto, Ge(0)] = "auto"
    """Warmup epochs; auto: a tenth of the epochs, at most 5; onecycle 0.3, triangular half."""
    warmup_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Initial learning rate of the linear warmup, as a fraction of the peak."""
    min_lr: Annotated[float, Ge(0)] = 0.0
    """Final learning rate of cosine, polynomial and triangular."""
    decay_power: Annotated[float, Gt(0)] = 1.0
    """Power of --sched polynomial."""
    decay_epochs: Annotated[float, Gt(0)] = 30.0
    """Epochs between the decays of --sched step."""
    decay_milestones: Annotated[
        tuple[float, ...], Limit(ascending, "use epochs in ascending order, such as 30 60")
    ] = (30.0, 60.0, 80.0)
    """Epochs of the decays of --sched multistep."""
    decay_rate: Annotated[float, Interval(gt=0, le=1)] = 0.1
    """Decay factor."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The update of the weights, and their averages."""

    opt: OptName = "sgd"
    """Optimizer."""
    lr: Annotated[float | Literal["auto", "find"], Ge(0)] = "auto"
    """Peak learning rate; auto: scaled with the global batch; find: range test, with its plot."""
    lr_base: Annotated[float | None, Gt(0)] = None
    """Learning rate for a global batch of --lr-base-size, scaled to the actual one."""
    lr_base_size: Annotated[int, Ge(1)] = 256
    """Global batch of --lr-base."""
    lr_base_scale: Literal["linear", "sqrt"] = "linear"
    """Scaling of --lr-base with the global batch."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Momentum of sgd, nesterov and rmsproptf."""
    weight_decay: Annotated[float | Auto, Ge(0), arg(aliases=["--wd"])] = "auto"
    """Weight decay of parameters with two or more dimensions, with muon not of filters; auto: by --opt."""
    grad_accum_steps: Annotated[int, Interval(ge=1, le=1_000_000)] = 1
    """Batches per update (gradient accumulation)."""
    clip_grad: Annotated[float | None, Gt(0)] = None
    """Max norm for gradient clipping; with --clip-mode value the max absolute entry."""
    clip_mode: ClipMode = "norm"
    """Gradient clipping by norm or by value."""
    backbone_lr_scale: Annotated[float, Ge(0)] = 1.0
    """Learning rate of all layers but the classifier, as a fraction of --lr."""
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Layer-wise learning rate decay, from each group of layers to the one before."""
    model_ema: bool = False
    """Exponential moving average (EMA) of the weights, used for validation."""
    model_ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.9998
    """EMA decay per update."""
    model_ema_steps: Annotated[int, Ge(1)] = 1
    """Steps between EMA updates."""
    average_last: Annotated[int, Ge(0)] = 0
    """Number of final epochs whose weights are averaged and validated at the end; 0 disables it."""


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """Initial weights and frozen layers."""

    pretrained: bool = False
    """Start from the pretrained weights of torchvision or timm."""
    weights: str | None = None
    """Start from the weights of a file: .pth, .pt or .safetensors."""
    freeze: Literal["none", "backbone"] = "none"
    """Frozen layers; backbone: all but the classifier."""
    freeze_until: str | None = None
    """Freeze all layers up to and including this one, such as layer3."""
    unfreeze_epoch: Annotated[
        int | None, Limit(lambda v: v >= 2, "use at least 2: epochs are counted from 1")
    ] = None
    """First epoch, counted from 1, in which all layers train."""


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """The device and its arithmetic."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Training device; auto: cuda, else mps, else cpu."""
    amp_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Data type of convolutions and matrix products; auto: the fastest safe one."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Channels-last memory format; the flag alone means on, --no-channels-last off."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: on with CUDA, on the CPU in long runs if a trial is faster."""
    cuda_graph: bool = False
    """Capture the training step in a CUDA graph: for small networks whose steps are launch-bound."""
    sync_bn: bool = False
    """Synchronized batch norm over all GPUs."""
    deterministic: bool = False
    """Bit-reproducible runs on one machine, at some cost in speed."""
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0
    """Seed of weights, order and augmentation."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The run's folder, checkpoints, log and validation."""

    output_dir: str | Auto = "auto"
    """Folder for checkpoints, logs and curves; auto: runs/ARCH-DATA, numbered."""
    resume: str | None = None
    """Checkpoint to resume, with its settings; auto (or the flag alone): the last one of the run folder."""
    test_only: bool = False
    """Validate the --resume checkpoint and exit."""
    checkpoint_interval: Annotated[int, Ge(1)] = 1
    """Epochs between checkpoints."""
    checkpoint_steps: Annotated[int | None, Ge(1)] = None
    """Additional checkpoint every N steps."""
    checkpoint_minutes: Annotated[float | None, Gt(0)] = None
    """Additional checkpoint every N minutes, at the next log line."""
    log_interval: Annotated[int | Auto, Ge(1)] = "auto"
    """Steps between log lines; auto: 50 on GPUs, 10 elsewhere."""
    tracker: Annotated[
        tuple[TrackerName, ...] | Literal["none"] | None,
        Limit(lambda v: 0 < len(v) == len(set(v)), "use one or more different trackers, or none"),
    ] = None
    """Experiment trackers, one or more; by default tensorboard if it is installed; none: no tracker."""
    tracker_project: Annotated[str | None, Limit(bool, "use a name")] = None
    """Project of wandb and trackio, experiment of mlflow; by default their variable's, else fastcnn."""
    val_interval: Annotated[int, Ge(1)] = 1
    """Epochs between validations; the last epoch is always validated."""
    peer_timeout: str = "2m"
    """Time in which a lost process is named and the others exit, such as 90s; half of it is silence."""
    tta: Views = "none"
    """Test-time augmentation: mean logits of each image and its mirror image; translate: also shifted."""
    patience: Annotated[int | None, Ge(1)] = None
    """Early stopping: validations without improvement."""
    preview_schedule: bool = False
    """Plot the learning rate schedule to schedule.png and exit."""
    recipe: str | None = None
    """Named settings, listed by `fastcnn recipes`; a config file and flags override them."""
    config: str | None = None
    """YAML file of settings; flags override it."""


# Dataclasses collect the fields of their bases from the last to the first.
@dataclass(frozen=True, kw_only=True)
class Config(
    RunSettings,
    ComputeSettings,
    TransferSettings,
    OptimizerSettings,
    ScheduleSettings,
    LossSettings,
    AugmentationSettings,
    GeometrySettings,
    LoaderSettings,
    DataSettings,
    NetworkSettings,
):
    """Train a convolutional network.

    Settings that say "auto" are selected for the data and the machine, and printed with the reason."""

    written: Suppress[frozenset[str]] = dataclasses.field(default=frozenset(), compare=False)
    """Names of the settings written by the user, also at their defaults: they override a checkpoint's."""


FIELDS = {field.name: field for field in dataclasses.fields(Config) if field.name != "written"}
"""The settings."""


def flag(name: str) -> str:
    """Return the flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def to_plain(config: Config) -> dict[str, Any]:
    """Return the settings in types of YAML and weights-only checkpoints, with tuples as lists."""
    values = {name: getattr(config, name) for name in FIELDS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def to_yaml(config: Config) -> str:
    """Return the settings as a YAML file for `--config`."""
    import yaml

    values = to_plain(config)
    values.pop("config")
    return yaml.safe_dump(values, sort_keys=False)
