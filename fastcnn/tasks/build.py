"""Build the task of an architecture."""

from __future__ import annotations

import importlib.util

from fastcnn.config import Config, task_of
from fastcnn.errors import UserError
from fastcnn.tasks.base import Task
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection.task import Detection
from fastcnn.tasks.segmentation import Segmentation


def build_task(config: Config, num_classes: int) -> Task:
    """The task that follows from `--arch`.

    Raises:
        UserError: settings that do not fit the classes, or a package that is not installed.
    """
    kind = task_of(config.arch)
    if kind == "segmentation":
        return Segmentation(num_classes, config.seg_loss, config.class_weights)
    if kind == "detection":
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise UserError(f"--arch {config.arch}: validation needs a package: pip install faster-coco-eval")
        return Detection(num_classes)
    return Classification(num_classes, config.label_smoothing)
