"""Build the task of an architecture."""

from __future__ import annotations

import importlib.util

from fastcnn.config import Config, LossSettings, task_of
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.errors import UserError
from fastcnn.tasks.base import Task
from fastcnn.tasks.class_losses import LossName
from fastcnn.tasks.class_weights import class_weights
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection.task import Detection
from fastcnn.tasks.multilabel import MultiLabelClassification
from fastcnn.tasks.segmentation import Segmentation


def task_for(config: Config, source: Source) -> Task:
    """Build the task of a run's network and data; UserError as `build_task`."""
    if config.sampler == "balanced" and source.multi_label:
        raise UserError(
            "--sampler balanced: these images have several labels, and no order draws all of them equally "
            "often; use --class-weights balanced"
        )
    return build_task(
        config.arch, config, int(config.num_classes), multi_label=source.multi_label, train=source.train
    )


def build_task(
    arch: str,
    settings: LossSettings,
    num_classes: int,
    *,
    multi_label: bool = False,
    train: Split | None = None,
) -> Task:
    """Build the task of a network: classification, segmentation or detection.

    Args:
        multi_label: an image may have several classes, or none.
        train: training images, for `class_weights` "balanced" and "effective".

    Raises:
        UserError: `class_weights` or `cls_loss` do not fit the classes, or a package is not installed.
    """
    kind = task_of(arch)
    if kind == "detection":
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise UserError(f"--arch {arch}: validation needs a package: pip install faster-coco-eval")
        return Detection(num_classes)
    weights = class_weights(settings.class_weights, num_classes, train)
    if kind == "segmentation":
        return Segmentation(num_classes, settings.seg_loss, weights)
    if multi_label and settings.cls_loss == "ce":
        raise UserError("--cls-loss ce: these images have several labels; use bce or focal, or omit it")
    make = MultiLabelClassification if multi_label else Classification
    usual: LossName = "bce" if multi_label else "ce"
    loss = usual if settings.cls_loss == "auto" else settings.cls_loss
    smoothing, gamma = settings.label_smoothing, settings.focal_gamma
    return make(num_classes, smoothing, loss=loss, gamma=gamma, class_weights=weights)
