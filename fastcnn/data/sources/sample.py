"""Random sample of the training images."""

from __future__ import annotations

import numpy as np

from fastcnn.data.decode import DecodeError
from fastcnn.data.sources.dataset import Split


def some_images(split: Split, count: int, seed: int, channels: int = 3) -> list[np.ndarray]:
    """Return up to `count` random images, uint8 [H, W, channels] each.

    Gray images are repeated in all channels. Undecodable images are skipped."""
    chosen = np.random.default_rng(seed).permutation(len(split))[:count]
    images = []
    for i in chosen.tolist():
        if split.images is not None:
            image = np.asarray(split.images[i])
            images.append(np.broadcast_to(image, (*image.shape[:2], channels)))
        elif split.files is not None and i not in split.problems:
            try:
                images.append(split.files.decode(i, channels))
            except DecodeError:  # the loader reports it
                continue
    return images
