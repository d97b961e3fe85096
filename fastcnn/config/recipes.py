"""Recipes: named settings with a published accuracy. Torch-free.

    python -m fastcnn.train --recipe imagenet-resnet50-16 --data /data/imagenet
    fastcnn recipes

RECIPES.md lists the accuracy that fastcnn reached with each, with machine and time.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from fastcnn.config.settings import Config, flag
from fastcnn.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings with their source."""

    settings: dict[str, Any]
    """Fields of `Config`."""
    data: str
    """Data set of the recipe."""
    source: str
    published: str
    """Published accuracy, and time if known."""
    processes: int = 1
    """Processes of the source; with --lr-base the learning rate follows."""
    differs: str = ""
    """Differences from the source."""

    def command(self, name: str) -> str:
        """Return the shell command that runs the recipe."""
        start = "python" if self.processes == 1 else f"torchrun --nproc-per-node {self.processes}"
        data = "" if "data" in self.settings else f" --data {self.data}"
        return f"{start} -m fastcnn.train --recipe {name}{data}"


def from_recipe(name: str) -> Config:
    """Return the settings of a recipe; raise UserError with the nearest name for an unknown one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else "`fastcnn recipes` lists them"
        raise UserError(f"--recipe {name}: no such recipe; {hint}")
    settings = RECIPES[name].settings
    return replace(Config(), recipe=name, **settings, written=frozenset(settings))


def show() -> None:
    """Print the recipes: name, published result, source, differences and command."""
    for name, recipe in RECIPES.items():
        print(f"{name}\n    {recipe.published}\n    {recipe.source}")
        if recipe.differs:
            print(f"    {recipe.differs}")
        print(f"    {recipe.command(name)}")


def as_flags(recipe: Recipe) -> str:
    """Format the settings of a recipe as command-line flags."""
    words = []
    for name, value in recipe.settings.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else flag("no_" + name))
        else:
            values = value if isinstance(value, tuple) else (value,)
            words.append(
                " ".join([flag(name), *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)])
            )
    return " ".join(words)


IMAGENET = "/data/imagenet"
FFCV = "https://github.com/libffcv/ffcv-imagenet, rn50_configs"
TUTORIAL = "https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html"
TORCHVISION = "https://github.com/pytorch/vision/tree/main/references/classification"


def _ffcv(epochs: int, milestone: int, top1: float, minutes: float) -> Recipe:
    """FFCV's ResNet-50 (Leclerc et al. 2023): blurred strides, 160 px and from a milestone on 192, validated
    at 256 with flips."""
    return Recipe(
        settings={
            "arch": "resnet50_blur",
            "exif": "ignore",
            "epochs": epochs,
            "batch_size": 512,
            "lr_base": 1.7,
            "lr_base_size": 4096,
            "weight_decay": 1e-4,
            "sched": "triangular",
            "warmup_epochs": 2.0,
            "warmup_factor": 1e-4,
            "label_smoothing": 0.1,
            "img_size": 192,
            "progressive": (160, 192),
            "progressive_milestones": (milestone,),
            "val_img_size": 256,
            "tta": "flip",
        },
        data=IMAGENET,
        source=FFCV,
        published=f"{top1}% top-1 in {minutes} minutes on 8 A100",
        processes=8,
        differs="Images are read as they are; FFCV's are shrunk to 500 px and recompressed.",
    )


NEW_RESNET: dict[str, Any] = {
    "epochs": 600,
    "batch_size": 128,
    "sched": "cosine",
    "warmup_epochs": 5.0,
    "warmup_factor": 0.01,
    "aa": "ta_wide",
    "reprob": 0.1,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "cutmix": 1.0,
    "img_size": 176,
    "val_img_size": 224,
    "crop_pct": 224 / 232,
    "model_ema": True,
    "model_ema_steps": 32,
    "model_ema_decay": 0.9989,
    "aug_repeats": 4,
}
"""torchvision's primitives of 2021. Its decay of 0.99998, scaled by its own rule, is 0.9989 for 32
steps."""

CIFAR_SGD: dict[str, Any] = {
    "data": "cifar10",
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "epochs": 200,
    "warmup_epochs": 0.0,
}
"""Settings of Liu's pytorch-cifar."""

HE_CIFAR: dict[str, Any] = {
    "data": "cifar10",
    "batch_size": 128,
    "lr": 0.1,
    "epochs": 164,
    "sched": "multistep",
    "decay_milestones": (82.0, 123.0),
    "warmup_epochs": 0.0,
}
"""Settings of He et al. 2016, section 4.2: 64,000 updates, drops after 32,000 and 48,000."""

AIRBENCH: dict[str, Any] = {
    "data": "cifar10",
    "opt": "muon",
    "sched": "polynomial",
    "warmup_epochs": 0.0,
    "label_smoothing": 0.2,
    "crop_padding": 2,
    "pad_mode": "reflect",
    "hflip_mode": "alternating",
}
"""Settings of airbench94_muon.py."""

RECIPES: dict[str, Recipe] = {
    "imagenet-resnet50-16": _ffcv(16, 12, 73.8, 14.9),
    "imagenet-resnet50-24": _ffcv(24, 19, 75.6, 21.7),
    "imagenet-resnet50-32": _ffcv(32, 25, 76.6, 28.7),
    "imagenet-resnet50-40": _ffcv(40, 32, 77.2, 35.6),
    "imagenet-resnet50-56": _ffcv(56, 45, 78.0, 49.4),
    "imagenet-resnet50-88": _ffcv(88, 71, 78.4, 77.2),
    "imagenet-resnet50-600": Recipe(
        settings={
            "arch": "resnet50",
            "exif": "ignore",
            "lr_base": 0.5,
            "lr_base_size": 1024,
            "weight_decay": 2e-5,
            **NEW_RESNET,
        },
        data=IMAGENET,
        source="https://github.com/pytorch/vision/issues/3995",
        published="80.858% top-1",
        processes=8,
    ),
    "imagenet-alexnet": Recipe(
        settings={
            "arch": "alexnet",
            "exif": "ignore",
            "epochs": 90,
            "batch_size": 128,
            "lr": 0.01,
            "weight_decay": 5e-4,
            "sched": "step",
            "decay_epochs": 30.0,
            "warmup_epochs": 0.0,
            "train_crop": "random",
            "lighting": 0.1,
        },
        data=IMAGENET,
        source="Krizhevsky, Sutskever, Hinton, NIPS 2012, sections 4.1 and 5",
        published="59.3% top-1 of ten crops",
        differs="The rate drops every 30 epochs; in the paper by hand, three times. One crop is validated.",
    ),
    "imagenet-vgg16": Recipe(
        settings={
            "arch": "vgg16",
            "exif": "ignore",
            "epochs": 74,
            "batch_size": 256,
            "lr": 0.01,
            "weight_decay": 5e-4,
            "sched": "multistep",
            "decay_milestones": (25.0, 50.0, 65.0),
            "warmup_epochs": 0.0,
            "train_crop": "random",
            "lighting": 0.1,
        },
        data=IMAGENET,
        source="Simonyan, Zisserman, ICLR 2015, section 3.1 and table 3 (D, S = Q = 256)",
        published="73.0% top-1, dense",
        differs="He's initialization, no shallower network before it; drops at fixed epochs; one crop.",
    ),
    "imagenet-mobilenet-v2": Recipe(
        settings={
            "arch": "mobilenet_v2",
            "exif": "ignore",
            "epochs": 300,
            "batch_size": 32,
            "lr_base": 0.045,
            "lr_base_size": 256,
            "weight_decay": 4e-5,
            "sched": "step",
            "decay_epochs": 1.0,
            "decay_rate": 0.98,
            "warmup_epochs": 0.0,
        },
        data=IMAGENET,
        source=f"{TORCHVISION}#mobilenetv2",
        published="71.878% top-1",
        processes=8,
    ),
    "imagenet-efficientnet-b0": Recipe(
        settings={
            "arch": "efficientnet_b0",
            "exif": "ignore",
            "epochs": 450,
            "batch_size": 384,
            "opt": "rmsproptf",
            "lr_base": 0.048,
            "lr_base_size": 768,
            "weight_decay": 1e-5,
            "sched": "step",
            "decay_epochs": 2.4,
            "decay_rate": 0.97,
            "warmup_epochs": 3.0,
            "drop": 0.2,
            "drop_path": 0.2,
            "model_ema": True,
            "model_ema_decay": 0.9999,
            "aa": "rand-m9-mstd0.5",
            "reprob": 0.2,
        },
        data=IMAGENET,
        source="https://huggingface.co/timm/efficientnet_b0.ra_in1k (Wightman et al. 2021, recipe B)",
        published="77.7% top-1",
        processes=2,
        differs=(
            "The rate drops each 2.4 epochs to the step, as Tan and Le's; the source's at the next whole "
            "epoch. Random erasing fills with the mean color, the source's with noise."
        ),
    ),
    "imagenet-convnext-tiny": Recipe(
        settings={
            "arch": "convnext_tiny",
            "exif": "ignore",
            "opt": "adamw",
            "lr_base": 1e-3,
            "lr_base_size": 1024,
            "weight_decay": 0.05,
            **NEW_RESNET,
        },
        data=IMAGENET,
        source=f"{TORCHVISION}#convnext",
        published="82.52% top-1",
        processes=8,
    ),
    "imagenet-vit-s-16": Recipe(
        settings={
            "arch": "vit_s_16",
            "exif": "ignore",
            "epochs": 300,
            "batch_size": 128,
            "opt": "adamw",
            "lr_base": 5e-4,
            "lr_base_size": 512,
            "weight_decay": 0.05,
            "warmup_epochs": 5.0,
            "min_lr": 1e-5,
            "aa": "rand-m9-mstd0.5-inc1",
            "reprob": 0.25,
            "label_smoothing": 0.1,
            "mixup": 0.8,
            "cutmix": 1.0,
            "drop_path": 0.1,
            "aug_repeats": 3,
        },
        data=IMAGENET,
        source="https://github.com/facebookresearch/deit (Touvron et al. 2021, DeiT-S, table 9)",
        published="79.8% top-1",
        processes=8,
        differs="Random erasing fills with the mean color, the source's with noise; the class token and the "
        "positions are decayed too.",
    ),
    "cifar10-speed": Recipe(
        settings={
            "arch": "airbench",
            "batch_size": 2000,
            "epochs": 8,
            "lr": 0.24,
            "data_backend": "cached",
            "tta": "translate",
            "val_interval": 8,
            **AIRBENCH,
        },
        data="cifar10",
        source="https://github.com/KellerJordan/cifar10-airbench, airbench94_muon.py (Jordan 2024)",
        published="94.01% in 2.59 s on an A100 (original arrays; without start and compilation)",
        differs="The bias of the whitening layer trains to the end.",
    ),
    "cifar10-90": Recipe(
        settings={
            "arch": "airbench",
            "batch_size": 500,
            "epochs": 12,
            "lr": 0.24,
            "tta": "flip",
            "val_interval": 4,
        }
        | AIRBENCH,
        data="cifar10",
        source="cifar10-speed with smaller batches, for two CPU cores",
        published="not published; meant for 90% of JPEG files in 15 minutes",
    ),
    "cifar10-85": Recipe(
        settings={"arch": "airbench_small", "batch_size": 500, "epochs": 7, "lr": 0.24, "tta": "flip"}
        | AIRBENCH,
        data="cifar10",
        source="cifar10-speed with smaller batches and half the channels, for two CPU cores",
        published="not published; meant for 85% of JPEG files in 5 minutes",
    ),
    "cifar10-resnet20": Recipe(
        settings={"arch": "resnet20", **HE_CIFAR},
        data="cifar10",
        source="He et al. 2016, section 4.2 and table 6",
        published="91.25% (original arrays)",
    ),
    "cifar10-resnet56": Recipe(
        settings={"arch": "resnet56", **HE_CIFAR},
        data="cifar10",
        source="He et al. 2016, section 4.2 and table 6",
        published="93.03% (original arrays)",
    ),
    "cifar10-resnet18": Recipe(
        settings={"arch": "resnet18_cifar", **CIFAR_SGD},
        data="cifar10",
        source="https://github.com/kuangliu/pytorch-cifar",
        published="95.47% (original arrays)",
    ),
    "cifar10-vgg16": Recipe(
        settings={"arch": "vgg16_cifar", **CIFAR_SGD},
        data="cifar10",
        source="https://github.com/kuangliu/pytorch-cifar",
        published="92.64% (original arrays)",
    ),
    "mnist-lenet5": Recipe(
        settings={"arch": "lenet5", "data": "mnist", "epochs": 20, "batch_size": 128},
        data="mnist",
        source="LeCun et al. 1998, section III.B",
        published="99.05%",
        differs="Cross-entropy in place of the paper's radial basis functions.",
    ),
    "transfer-features": Recipe(
        settings={
            "arch": "resnet18",
            "pretrained": True,
            "freeze": "backbone",
            "epochs": 25,
            "lr": 0.01,
            "weight_decay": 0.0,
            "sched": "step",
            "decay_epochs": 7.0,
            "warmup_epochs": 0.0,
        },
        data="photos",
        source=f"{TUTORIAL} (as a feature extractor)",
        published="about 95% (ants and bees, 153 images)",
        differs="Batches of 32 at ten times the rate, where the source has 4.",
    ),
    "transfer-finetune": Recipe(
        settings={
            "arch": "resnet18",
            "pretrained": True,
            "epochs": 25,
            "lr": 0.01,
            "sched": "step",
            "decay_epochs": 7.0,
            "warmup_epochs": 0.0,
            "backbone_lr_scale": 0.1,
        },
        data="photos",
        source=f"{TUTORIAL} (fine-tuning)",
        published="about 94% (ants and bees, 153 images)",
        differs="Batches of 32 at ten times the rate, the backbone at the source's own.",
    ),
}
