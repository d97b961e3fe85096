"""Predictions of a trained network for some validation images, for a page. Imports torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastcnn.config import Config
from fastcnn.errors import UserError
from fastcnn.inference.trained import open_trained
from fastcnn.inference.validation import data_settings, evaluation_loader, open_validation
from fastcnn.runtime.distributed import Ranks
from fastcnn.tasks.gallery import COUNT, Gallery
from fastcnn.viz.pictures import side_by_side

FLAG = "fastcnn report --samples"


@torch.no_grad()
def draw_samples(folder: Path) -> Image.Image:
    """Return validation images of a run, the truth beside the prediction of its best weights, on the CPU.

    Raises:
        UserError: no such checkpoint or data, or no image that can be decoded.
    """
    trained = open_trained(folder / "best.pt", FLAG)
    config = data_settings(trained, Config())
    ranks, device = Ranks(), torch.device("cpu")
    images = open_validation(trained, config, ranks).val
    good = np.array([i for i in range(len(images)) if i not in images.problems], dtype=np.int64)
    if len(good) == 0:
        raise UserError(f"{FLAG}: no validation image of {config.data} can be decoded")
    chosen = images.take(good[np.linspace(0, len(good) - 1, min(COUNT, len(good))).astype(np.int64)])
    loader = evaluation_loader(chosen, trained, config, ranks=ranks, device=device, phase="validation")
    try:
        gallery = Gallery(trained.build_task(), trained.class_names, len(loader))
        network = trained.normalized(device)
        for batch in loader:
            gallery.sample(batch, network(batch.images))
    finally:
        loader.close()
    return side_by_side(gallery.pairs)
