"""Detection: the losses of `YOLO` and `YOLOv1`, boxes without duplicates, COCO's average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from fastcnn.data.batch import Batch
from fastcnn.data.targets import NO_BOX
from fastcnn.models.yolo import AnchorOutputs, GridOutputs
from fastcnn.runtime.distributed import from_main, gather_to_main
from fastcnn.tasks.detection import anchor_loss, grid_loss
from fastcnn.tasks.detection.average_precision import mean_average_precision
from fastcnn.tasks.metrics import MeanLoss, Metrics
from fastcnn.viz.pictures import with_boxes

CANDIDATES = 300
"""Best boxes of an image before non-maximum suppression."""
MIN_SCORE = 0.01
"""Minimum score of a candidate."""
DUPLICATE_IOU = 0.5
"""IoU threshold of non-maximum suppression within a class (Lin et al., "Focal Loss for Dense Object
Detection", ICCV 2017, section 4.1)."""
MAX_BOXES = 100
"""Maximum number of boxes per image; COCO ignores more."""
SHOWN_SCORE = 0.2
"""Minimum score of boxes in drawings and texts."""


class FixedBoxes(NamedTuple):
    """The best boxes of N images after non-maximum suppression, `MAX_BOXES` each, the best first.

    Outputs of exported files, of one size for any image.
    """

    boxes: Tensor
    """[N, MAX_BOXES, 4]: left, top, right, bottom in pixels; zeros in the place of missing boxes."""
    scores: Tensor
    """[N, MAX_BOXES]; 0 for missing boxes."""
    labels: Tensor
    """int64 [N, MAX_BOXES]: classes."""
    counts: Tensor
    """int64 [N]: boxes of each image, 0 to MAX_BOXES."""


class Detection:
    """Targets are boxes, float32 [N, M, 6] as in `fastcnn.data.batch.Batch`; outputs are `AnchorOutputs`,
    `GridOutputs` or, for predictions alone, `FixedBoxes`."""

    best_metric = "map"
    pictured = True
    top_k: int | None = None
    """Maximum number of boxes in texts and drawings."""
    threshold = SHOWN_SCORE
    """Minimum score of boxes in texts and drawings."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def loss(self, outputs: object, batch: Batch, *, train: bool) -> Tensor:
        if isinstance(outputs, GridOutputs):
            return grid_loss.grid_loss(outputs, batch.targets, batch.mask, self.num_classes)
        assert isinstance(outputs, AnchorOutputs)
        return anchor_loss.anchor_loss(outputs, batch.targets, batch.mask)

    def metrics(self, device: torch.device, *, train: bool = True) -> Metrics:
        return MeanLoss(device) if train else DetectionMetrics(self, device)

    @torch.no_grad()
    def predict(self, outputs: object) -> list[np.ndarray]:
        """Return the boxes of each of N images, float32 [k, 6], the best first; syncs with the device.

        A row is class, left, top, right, bottom in pixels, score.
        """
        if isinstance(outputs, FixedBoxes):
            rows = torch.cat(
                [outputs.labels[..., None].float(), outputs.boxes, outputs.scores[..., None]], -1
            )
            return [r[:count] for r, count in zip(rows.cpu().numpy(), outputs.counts.tolist())]
        if isinstance(outputs, GridOutputs):
            return best_boxes(*grid_loss.decode(outputs, self.num_classes), outputs.size)
        assert isinstance(outputs, AnchorOutputs)
        return best_boxes(*anchor_loss.decode(outputs), outputs.size)

    def describe(self, metrics: dict[str, float]) -> str:
        percents = [f"{name} {metrics[name]:.1f}%" for name in ("map50", "map") if name in metrics]
        return "  ".join([f"loss {metrics['loss']:.3f}", *percents])

    def format_prediction(self, predictions: np.ndarray, class_names: Sequence[str]) -> str:
        shown = [f"{class_names[int(row[0])]} {row[5]:.2f}" for row in self.shown(predictions)]
        return ", ".join(shown) or "nothing"

    def draw(self, image: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return with_boxes(image, self.shown(predictions), class_names, scored=True)

    def shown(self, predictions: np.ndarray) -> np.ndarray:
        """Return the boxes in texts and drawings, rows of `predictions`."""
        return predictions[predictions[:, 5] >= self.threshold][: self.top_k]

    def draw_truth(self, image: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> Image.Image:
        return with_boxes(image, target[target[:, 0] != NO_BOX], class_names, scored=False)


class DetectionMetrics(MeanLoss):
    """Mean loss and average precision.

    All boxes are stored until `compute`. `state` includes the loss only.
    """

    def __init__(self, task: Detection, device: torch.device) -> None:
        super().__init__(device)
        self.task = task
        self.predictions: list[np.ndarray] = []
        self.truths: list[np.ndarray] = []

    def update(self, loss: Tensor, outputs: object, batch: Batch) -> None:
        """Add a batch; syncs with the device."""
        super().update(loss, outputs, batch)
        targets = batch.targets.float().cpu().numpy()
        for real, predictions, rows in zip(batch.mask.tolist(), self.task.predict(outputs), targets):
            if real:
                self.predictions.append(predictions)
                self.truths.append(rows[rows[:, 0] >= 0])

    def compute(self) -> dict[str, float]:
        ranks = gather_to_main((self.predictions, self.truths))

        def over_ranks() -> tuple[float, float]:
            predictions, truths = ([rows for rank in ranks for rows in rank[i]] for i in (0, 1))
            return mean_average_precision(predictions, truths)

        mean_ap, ap50 = from_main(over_ranks)
        return {**super().compute(), "map": mean_ap, "map50": ap50}

    def reset(self) -> None:
        super().reset()
        self.predictions, self.truths = [], []


def best_boxes(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> list[np.ndarray]:
    """Return the best boxes after non-maximum suppression, clipped to the image, as `Detection.predict`.

    Args:
        boxes: [N, Q, 4] in pixels.
        scores: [N, Q, num_classes].
        size: height and width of the images.
    """
    # Candidates: the best pairs of box and class of each image.
    count, per_image, num_classes = scores.shape
    best, pair = scores.flatten(1).topk(min(CANDIDATES, per_image * num_classes))
    image, rank = (best > MIN_SCORE).nonzero(as_tuple=True)
    score, pair = best[image, rank], pair[image, rank]
    box, label = boxes[image, pair // num_classes], pair % num_classes
    box = torch.stack([box[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], 1)
    rows = torch.cat([label[:, None].float(), box, score[:, None]], 1)
    if box.device.type == "mps":  # no float64 on MPS
        image, label, rows = image.cpu(), label.cpu(), rows.cpu()

    # batched_nms may offset the boxes of each class and image; in float64 the offsets lose no digits.
    exact = rows.double()
    kept = batched_nms(exact[:, 1:5], exact[:, 5], image * num_classes + label, DUPLICATE_IOU)
    kept = kept.sort().values  # order of the candidates: image by image, the best first
    ends = image[kept].bincount(minlength=count).cumsum(0).tolist()
    parts = np.split(rows[kept].cpu().numpy(), ends[:-1])
    return [part[:MAX_BOXES] for part in parts]
