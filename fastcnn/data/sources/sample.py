"""A look at some training images before the training."""

from __future__ import annotations

import numpy as np

from fastcnn.data.decode import DecodeError
from fastcnn.data.sources.dataset import Split


def some_images(split: Split, count: int, seed: int, channels: int = 3) -> list[np.ndarray]:
    """At most `count` images by chance, uint8 [H, W, channels], of which grey ones have the same value in
    all channels; those that cannot be decoded are left out."""
    chosen = np.random.default_rng(seed).permutation(len(split))[:count]
    images = []
    for i in chosen.tolist():
        if split.images is not None:
            image = np.asarray(split.images[i])
            images.append(np.broadcast_to(image, (*image.shape[:2], channels)))
        elif split.files is not None and i not in split.problems:
            try:
                images.append(split.files.decode(i, channels))
            except DecodeError:  # the loader will name it
                continue
    return images
