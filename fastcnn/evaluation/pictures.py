"""Pictures of samples that a network is wrong about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastcnn.data.loaders.first_images import quiet_loader
from fastcnn.data.sources.dataset import Split
from fastcnn.data.transforms.transform import Transform
from fastcnn.evaluation.base import Sample
from fastcnn.tasks.base import Task
from fastcnn.tasks.gallery import rgb
from fastcnn.viz.pictures import GAP, GROUND, enlarged, side_by_side, with_caption

COLUMNS = 5


@torch.inference_mode()
def load_samples(
    split: Split, numbers: Sequence[int], transform: Transform, model: nn.Module, task: Task
) -> list[Sample]:
    """Return samples of a split as they are validated, with predictions. No collective."""
    chosen = split.take(np.array(numbers, dtype=np.int64))
    device = next(model.parameters()).device
    with closing(
        quiet_loader(chosen, transform, phase="pictured", batch_size=len(chosen), device=device, workers=1)
    ) as loader:
        (batch,) = loader
    targets, predictions = batch.targets.cpu().numpy(), task.predict(model(batch.images))
    return [Sample(rgb(batch.images[i]), predictions[i], targets[i]) for i in range(len(chosen))]


def mistakes(found: Sequence[Mapping[str, Any]], samples: Sequence[Sample]) -> Image.Image:
    """Draw misclassified images with prediction and truth, row by row.

    Args:
        found: prediction, probability, truth and file of each image.
    """
    cells = []
    for row, sample in zip(found, samples):
        picture = enlarged(Image.fromarray(sample.pixels))
        for line in (
            f"{row['prediction']} {100 * row['probability']:.1f}%",
            f"truth: {row['truth']}",
            PurePath(row["file"]).name,
        ):
            picture = with_caption(picture, [(line, None)])
        cells.append(picture)
    return tiled(cells)


def worst_masks(
    task: Task, class_names: Sequence[str], found: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
) -> Image.Image:
    """Draw the truth beside the prediction of images, with file and IoU.

    Args:
        found: file and IoU in percent of each image.
    """
    pairs = []
    for row, sample in zip(found, samples):
        truth = task.draw_truth(sample.pixels, sample.target, class_names)
        prediction = task.draw(sample.pixels, sample.prediction, class_names)
        pairs.append(
            (
                with_caption(truth, [(PurePath(row["file"]).name, None)]),
                with_caption(prediction, [(f"IoU {row['iou']:.1f}%", None)]),
            )
        )
    return side_by_side(pairs)


def tiled(cells: Sequence[Image.Image], columns: int = COLUMNS) -> Image.Image:
    """Arrange pictures row by row."""
    columns = min(columns, len(cells))
    width, height = (max(cell.size[i] for cell in cells) + GAP for i in (0, 1))
    canvas = Image.new("RGB", (columns * width + GAP, -(-len(cells) // columns) * height + GAP), GROUND)
    for i, cell in enumerate(cells):
        canvas.paste(cell, (GAP + i % columns * width, GAP + i // columns * height))
    return canvas
