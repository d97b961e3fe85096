"""Average precision of boxes by COCO's evaluation (Lin et al., "Microsoft COCO", ECCV 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def mean_average_precision(
    predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Return COCO's mAP and mAP at IoU 0.5, in percent.

    The first is the mean over the IoU thresholds 0.5, 0.55, ..., 0.95. Classes without a truth do not count;
    without any truth both are 0.

    Args:
        predictions: [k, 6] for each image: class, left, top, right, bottom, score. The 100 best of each class
            count.
        truths: [m, 6] for each image: class, left, top, right, bottom, and 1 for a crowd, else 0. A crowd may
            be matched any number of times, or never.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # needed for detection only

    classes = np.unique(np.concatenate([np.zeros(0), *(rows[:, 0] for rows in truths)])).astype(int).tolist()
    if not classes:
        return 0.0, 0.0
    images = [{"id": i + 1} for i in range(len(truths))]
    categories = [{"id": label} for label in classes]
    sides = []
    for rows_of_images, last in ((truths, "iscrowd"), (predictions, "score")):
        annotations = coco_annotations(rows_of_images, last)
        sides.append(COCO({"images": images, "categories": categories, "annotations": annotations}))
    # Without `print_function` it writes to the log.
    evaluation = COCOeval_faster(*sides, iouType="bbox", print_function=lambda *_: None)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    # [threshold, recall, class, 1, 1]; -1 without truths.
    precision = np.asarray(evaluation.eval["precision"])
    return _percent(precision), _percent(precision[:1])


def coco_annotations(rows_of_images: Sequence[np.ndarray], last: str) -> list[dict[str, Any]]:
    """Convert rows of six numbers to COCO annotations; `last` is the key of the last number."""
    annotations: list[dict[str, Any]] = []
    for image, rows in enumerate(rows_of_images, start=1):
        for label, left, top, right, bottom, value in rows.tolist():
            width, height = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    last: value if last == "score" else int(value),
                }
            )
    return annotations


def _percent(precision: np.ndarray) -> float:
    counted = precision[precision > -1]
    return 100 * float(counted.mean()) if counted.size else 0.0
