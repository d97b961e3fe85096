"""Build the task of an architecture."""

from __future__ import annotations

import importlib.util

from fastcnn.config import LossSettings, task_of
from fastcnn.errors import UserError
from fastcnn.tasks.base import Task
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection.task import Detection
from fastcnn.tasks.segmentation import Segmentation


def build_task(arch: str, settings: LossSettings, num_classes: int) -> Task:
    """Build the task of a network: classification, segmentation or detection.

    Raises:
        UserError: `class_weights` do not fit the classes, or a package is not installed.
    """
    kind = task_of(arch)
    if kind == "segmentation":
        return Segmentation(num_classes, settings.seg_loss, settings.class_weights)
    if kind == "detection":
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise UserError(f"--arch {arch}: validation needs a package: pip install faster-coco-eval")
        return Detection(num_classes)
    return Classification(num_classes, settings.label_smoothing)
