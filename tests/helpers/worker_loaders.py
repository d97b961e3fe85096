"""Work of two ranks for tests/setup/test_loaders.py."""

from __future__ import annotations

from typing import Any

import fastcnn


def samples(settings: dict[str, Any]) -> tuple[list[bytes], int]:
    """Return this rank's training images of an epoch, and its number of validation images."""
    with fastcnn.loaders(**settings) as loaders:
        images = [image.numpy().tobytes() for batch in loaders.train for image in batch.images]
        return images, sum(int(batch.mask.sum()) for batch in loaders.val)
