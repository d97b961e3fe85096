"""What a run is told: one frozen dataclass, filled from flags, a YAML file or Python.

    python -m fastcnn.train --arch resnet18 --data photos --config mine.yaml --lr 0.2

Torch-free, so that `--help` answers at once. A field whose default is "auto" is chosen by
`fastcnn.config.auto` once the data and the machine are known.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

Auto = Literal["auto"]
TaskName = Literal["classification", "segmentation", "detection"]
OptName = Literal["sgd", "nesterov", "adamw", "rmsproptf", "muon"]
SchedName = Literal["cosine", "step", "multistep", "polynomial", "onecycle", "triangular", "constant"]


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
    val_img_size: Annotated[int | Auto, arg(aliases=["--eval-img-size"])] = "auto"
    """Pixels a side of the validation images, where they differ; auto: --img-size."""
    progressive: tuple[int, ...] | None = None
    """Sizes of the training images, one after the other, such as 160 192; the last one is --img-size."""
    progressive_milestones: tuple[float, ...] | None = None
    """Epochs after which the next of these sizes begins; by default they share the epochs."""

    # How images are loaded and augmented.
    data_backend: Literal["auto", "dali", "torch", "cached", "synthetic"] = "auto"
    """Loader; auto: the fastest of them for this data, timed for a moment."""
    batch_size: Annotated[int | Literal["auto", "max"], arg(aliases=["-b"])] = "auto"
    """Images of a process in a forward pass; auto: the usual, on a GPU as far as it fits; max: what fits."""
    workers: Annotated[int | Auto, arg(aliases=["-j"])] = "auto"
    """Loading threads of each process."""
    max_bad_fraction: float = 0.01
    """Share of the images that may be undecodable; they are replaced in training, left out in validation."""
    train_crop: Literal["auto", "random-resized", "random", "pad"] = "auto"
    """Training crop; random: after a resize to --img-size / --crop-pct; auto: pad for small equal images."""
    scale: tuple[float, float] | Auto = "auto"
    """Share of the image's area that a random-resized crop takes; auto: 0.08 1, with masks or boxes 0.5 1."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random-resized crop."""
    crop_padding: int | Auto = "auto"
    """Pixels that pad-crop adds on each side; auto: an eighth of the size."""
    pad_mode: Literal["black", "reflect"] = "black"
    """What pad-crop adds: black, or the image mirrored at its border."""
    hflip: float | Auto = "auto"
    """Probability of a horizontal flip; auto: 0.5, for digits 0."""
    hflip_mode: Literal["random", "alternating"] = "random"
    """Flips: drawn in each epoch, or every other epoch those that were not flipped in the one before."""
    aa: Annotated[str, arg(aliases=["--auto-augment"])] = "none"
    """Augmentation policy: ra, ta_wide, imagenet, cifar10, svhn, or timm's rand-m9-n2-mstd0.5; none."""
    color_jitter: tuple[float, ...] | None = None
    """Jitter of brightness, contrast, saturation, hue: one number for the first three, or 3 or 4 numbers."""
    grayscale_prob: float = 0.0
    """Probability that an image loses its colour."""
    lighting: float = 0.0
    """Deviation of AlexNet's noise along the principal components of colour; published: 0.1."""
    lighting_pca: Literal["imagenet", "data"] = "imagenet"
    """Whose principal components: ImageNet's, or computed from the training images."""
    rotate: float = 0.0
    """Random rotation by up to so many degrees."""
    reprob: Annotated[float, arg(aliases=["--random-erase"])] = 0.0
    """Probability that a random rectangle is erased to the mean colour."""
    cutout: int = 0
    """Pixels a side of a square that is erased to the mean colour in every image."""
    aug_repeats: Annotated[int, arg(aliases=["--ra-reps"])] = 1
    """Times that each image of an epoch is used, each time augmented anew; the epoch keeps its length."""
    mixup: float = 0.0
    """Mixup: alpha of its beta distribution; 0 is off."""
    cutmix: float = 0.0
    """CutMix: alpha of its beta distribution; 0 is off. With --mixup each batch gets either."""
    mixup_prob: float = 1.0
    """Share of the batches that are mixed."""
    mixup_off_epoch: int = 0
    """Epoch after which nothing is mixed any more; 0: never."""
    crop_pct: float = 0.875
    """Side of the validation crop over the resized image's short side."""
    crop_mode: Literal["auto", "center", "border"] = "auto"
    """Validation: a crop, or all of the image with black borders; auto: border with masks or boxes."""

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
    epochs: float | Auto = "auto"
    """Passes over the training data; the last one may be a part, as in 9.5."""
    time_budget: str | None = None
    """How long the run may take, such as 10m or 1h30m; the epochs follow from the measured speed."""
    opt: OptName = "sgd"
    """Optimizer."""
    lr: float | Literal["auto", "find"] = "auto"
    """Peak learning rate; auto: scaled with the global batch; find: by a range test, with its plot."""
    lr_base: float | None = None
    """Learning rate for --lr-base-size images of a step, scaled to the global batch."""
    lr_base_size: int = 256
    """Images of a step that --lr-base is meant for."""
    lr_base_scale: Literal["linear", "sqrt"] = "linear"
    """How --lr-base grows with the images of a step."""
    momentum: float = 0.9
    """Momentum of sgd, nesterov and rmsproptf."""
    weight_decay: Annotated[float | Auto, arg(aliases=["--wd"])] = "auto"
    """Weight decay of parameters of two dimensions or more, with muon not of filters; auto: by --opt."""
    sched: SchedName = "cosine"
    """Learning-rate schedule."""
    warmup_epochs: float | Auto = "auto"
    """Warm-up until the peak; auto: a tenth of the epochs, at most 5; onecycle 0.3, triangular half."""
    warmup_factor: float = 0.0
    """Share of the peak learning rate at which a linear warm-up begins."""
    min_lr: float = 0.0
    """Where cosine, polynomial and triangular end."""
    decay_power: float = 1.0
    """Power of --sched polynomial."""
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
    """Largest norm of the gradient, or with --clip-mode value its largest entry."""
    clip_mode: Literal["norm", "value"] = "norm"
    """What --clip-grad limits."""
    drop: Annotated[float | None, arg(aliases=["--dropout"])] = None
    """Rate of the network's dropout layers; by default its own."""
    drop_path: float | None = None
    """Rate of stochastic depth in the last block, falling towards the first; by default the network's."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is what gets validated."""
    model_ema_decay: float = 0.9998
    """Decay of that average in an update."""
    model_ema_steps: int = 1
    """Steps between its updates."""
    average_last: int = 0
    """Average the weights of the last so many epochs at the end, and validate them too; 0 is off."""

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
    cuda_graph: bool = False
    """Record a training step and launch it by one call: for small networks, whose steps wait for launches."""
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
    val_interval: int = 1
    """Epochs between validations; the last one is always validated."""
    tta: Literal["none", "flip", "translate"] = "none"
    """Validation: mean of the logits of each image and its mirror image; translate: moved by a pixel too."""
    patience: int | None = None
    """Stop after so many validations without a better one."""
    preview_schedule: bool = False
    """Draw the learning rate over the epochs into schedule.png, and stop."""
    recipe: str | None = None
    """Named settings, as `fastcnn recipes` lists them; a file and flags override them."""
    config: str | None = None
    """YAML file of settings; flags override it."""


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def flag(name: str) -> str:
    """The flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def to_plain(config: Config) -> dict[str, Any]:
    """The settings in types that YAML and weights-only checkpoints hold: tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}


def to_yaml(config: Config) -> str:
    """The settings as a YAML file that `--config` reads back."""
    import yaml

    values = to_plain(config)
    values.pop("config")
    return yaml.safe_dump(values, sort_keys=False)
