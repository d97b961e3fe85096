"""Data sets downloaded by torchvision, and synthetic labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastcnn.data.sources.dataset import Source, Split
from fastcnn.errors import UserError


def synthetic_source(train: int = 12_800, val: int = 1_280, classes: int = 1000) -> Source:
    """Return random labels; the images are made by the synthetic loader."""
    rng = np.random.default_rng(0)
    return Source(
        name="synthetic",
        train=Split(rng.integers(0, classes, train)),
        val=Split(rng.integers(0, classes, val)),
        class_names=tuple(f"class {i}" for i in range(classes)),
    )


def torchvision_source(name: str, root: Path) -> Source:
    """Open CIFAR or MNIST with torchvision; missing files are downloaded into `root`."""
    import torchvision

    kinds = {
        "cifar10": (torchvision.datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": (torchvision.datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "mnist": (torchvision.datasets.MNIST, (0.1307,), (0.3081,)),
        "fashion-mnist": (torchvision.datasets.FashionMNIST, (0.2860,), (0.3530,)),
    }
    kind, mean, std = kinds[name]
    splits = []
    for is_train in (True, False):
        data = open_torchvision(name, root, partial(kind, root, train=is_train))
        images = np.asarray(data.data)
        images = images[..., None] if images.ndim == 3 else images
        splits.append(Split(np.asarray(data.targets, dtype=np.int64), images=images))
    return Source(
        name=name,
        train=splits[0],
        val=splits[1],
        class_names=tuple(data.classes),
        channels=len(mean),
        native_size=images.shape[1],
        mean=mean,
        std=std,
        mirror=name != "mnist",
    )


def open_torchvision(name: str, root: Path, make: Callable[..., Any]) -> Any:
    """Open torchvision's data set `make(download=...)` from `root`; download it first if it is missing."""
    try:
        return make(download=False)
    except (OSError, RuntimeError):  # missing or incomplete
        pass
    try:
        return make(download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--data {name}: not in {root} and not downloadable ({reason}); "
            f"put torchvision's files there or name their folder with --data-root"
        ) from error
