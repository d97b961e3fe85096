"""Detection: COCO's average precision for each class and size, and precision over recall."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastcnn.data.batch import Batch
from fastcnn.data.sources.dataset import Split
from fastcnn.data.targets import NO_BOX
from fastcnn.data.transforms.geometry import eval_geometry
from fastcnn.data.transforms.transform import Transform
from fastcnn.evaluation import figures
from fastcnn.evaluation.base import Findings, mean
from fastcnn.inference.trained import Trained
from fastcnn.tasks.detection.average_precision import coco_annotations
from fastcnn.tasks.detection.task import Detection

SIZES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Areas of boxes in pixels of the whole image, as COCO's."""
MAX_BOXES = [1, 10, 100]
"""Best boxes of each class and image that count; all metrics but the recalls take the last."""


class BoxRows(NamedTuple):
    """Predictions for N images."""

    samples: np.ndarray
    """int64 [N]"""
    predictions: list[np.ndarray]
    """[k, 6] each, float64: class; left, top, right, bottom in pixels of the whole image; score."""
    truths: list[np.ndarray]
    """[m, 6] each, like them, with 1 for a crowd in place of the score, else 0."""


class BoxJudge:
    """Judge of `Detection`."""

    task = "detection"
    predictions_suffix = ".json"

    def __init__(self, task: Detection, transform: Transform, sizes: np.ndarray) -> None:
        self.detector = task
        self.transform = transform
        self.sizes = sizes
        self.samples: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.truths: list[np.ndarray] = []

    def add(self, outputs: object, batch: Batch, samples: np.ndarray) -> None:
        real = batch.mask.cpu().numpy()
        self.samples.append(samples[real])
        targets = batch.targets.float().cpu().numpy()
        for i in np.flatnonzero(real).tolist():
            size = self.sizes[samples[i]]
            boxes = targets[i][targets[i][:, 0] != NO_BOX]
            self.truths.append(in_whole_image(boxes, self.transform, size))
        for i, boxes in enumerate(self.detector.predict(outputs)):
            if real[i]:
                self.predicted.append(in_whole_image(boxes, self.transform, self.sizes[samples[i]]))

    def rows(self) -> BoxRows:
        return BoxRows(np.concatenate(self.samples), self.predicted, self.truths)

    def judge(self, rows: BoxRows, trained: Trained, split: Split) -> Findings:
        names = trained.class_names
        precision, recall = evaluate_boxes(rows.predictions, rows.truths, len(names))
        boxes = np.concatenate([np.zeros((0, 6)), *rows.truths])
        counts = np.bincount(boxes[boxes[:, 5] == 0, 0].astype(np.int64), minlength=len(names))
        parts = {
            "ap": precision[:, :, :, 0],
            "ap50": precision[:1, :, :, 0],
            "ap75": precision[5:6, :, :, 0],
            **{f"ap_{name}": precision[:, :, :, i] for i, name in enumerate(SIZES) if i},
        }
        per_class = [
            {
                "name": name,
                "count": int(counts[number]),
                **{key: average(values[:, :, number]) for key, values in parts.items()},
            }
            for number, name in enumerate(names)
        ]
        metrics = {
            {"ap": "map", "ap50": "map50", "ap75": "map75"}.get(key, key.replace("ap", "map")): average(
                values
            )
            for key, values in parts.items()
        }
        metrics |= {f"recall_{most}": average(recall[:, :, 0, i]) for i, most in enumerate(MAX_BOXES)}
        curves = {
            name: precision[0, :, number, 0].tolist()
            for number, name in enumerate(names)
            if precision[0, 0, number, 0] >= 0
        }
        return Findings(
            metrics=metrics,
            per_class=per_class,
            details={"precision_at_recall": curves},
            figures={"precision-recall.png": partial(figures.box_curves, curves, metrics["map50"])},
        )

    def predictions(self, rows: BoxRows, trained: Trained, split: Split) -> Any:
        """Return COCO's annotations of the images, with the results in their format as "predictions"."""
        sizes = split.sizes[rows.samples].tolist()
        return {
            "images": [
                {
                    "id": i,
                    "file_name": os.fsencode(split.name(sample)).decode(errors="replace"),
                    "height": h,
                    "width": w,
                }
                for i, (sample, (h, w)) in enumerate(zip(rows.samples.tolist(), sizes), 1)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(trained.class_names, 1)],
            "annotations": coco_annotations(_numbered_from_one(rows.truths), "iscrowd"),
            "predictions": coco_annotations(_numbered_from_one(rows.predictions), "score"),
        }


def in_whole_image(boxes: np.ndarray, transform: Transform, size: np.ndarray) -> np.ndarray:
    """Return boxes of a sample, [k, 6], in pixels of the whole image, float64.

    Args:
        transform: transform of the validation.
        size: height and width of the whole image.
    """
    g = eval_geometry(transform, size[None])
    scale = (g.roi_end[0].astype(np.float64) - g.roi_start[0]) / g.resized[0]
    corner = g.start[0] + g.roi_start[0].astype(np.float64)
    moved = boxes.astype(np.float64)
    corners = moved[:, 1:5].reshape(-1, 2, 2)[:, :, ::-1]  # (vertical, horizontal), as in Geometry
    corners = (corners + g.shift[0]) * scale + corner
    moved[:, 1:5] = corners[:, :, ::-1].reshape(-1, 4)
    return moved


def evaluate_boxes(
    predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate boxes as COCO (Lin et al., "Microsoft COCO", ECCV 2014).

    Args:
        predictions, truths: as of `BoxRows`.

    Returns:
        Precision [10 IoU thresholds, 101 recalls, C, 4 sizes] of the 100 best boxes, and recall [10, C, 4,
        3], by `SIZES` and `MAX_BOXES`; -1 for classes without a truth of the size.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # needed for detection only

    sides = []
    for boxes, last in ((truths, "iscrowd"), (predictions, "score")):
        content = {
            "images": [{"id": i + 1} for i in range(len(truths))],
            "categories": [{"id": i + 1} for i in range(num_classes)],
            "annotations": coco_annotations(_numbered_from_one(boxes), last),
        }
        sides.append(COCO(content))
    # Without `print_function` it writes to the log.
    evaluation = COCOeval_faster(*sides, iouType="bbox", print_function=lambda *_: None)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = (
        [list(area) for area in SIZES.values()],
        list(SIZES),
    )
    evaluation.params.maxDets = MAX_BOXES
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1], np.asarray(evaluation.eval["recall"])


def _numbered_from_one(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [boxes + np.array([1.0, 0, 0, 0, 0, 0]) for boxes in rows]


def average(values: np.ndarray) -> float | None:
    """Return the mean of the values that are defined, in percent; None without any."""
    found = mean([value if value >= 0 else None for value in values.ravel().tolist()])
    return None if found is None else 100 * found
