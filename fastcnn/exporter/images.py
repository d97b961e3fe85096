"""Images to check and to calibrate a file with: evenly spread over a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch

from fastcnn.config import Config
from fastcnn.data.batch import Batch
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.errors import UserError
from fastcnn.inference.trained import Trained
from fastcnn.inference.validation import data_settings, evaluation_loader, open_validation
from fastcnn.runtime.distributed import Ranks

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Images:
    """The data of a trained network, or other data with its classes."""

    trained: Trained
    config: Config
    source: Source

    def batches(self, split: Split, count: int) -> Iterator[Batch]:
        """Yield at most `count` images of a split, on the CPU."""
        chosen = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(np.int64)
        config = dataclasses.replace(self.config, batch_size=BATCH)
        loader = evaluation_loader(
            split.take(chosen),
            self.trained,
            config,
            ranks=Ranks(),
            device=torch.device("cpu"),
            phase="validation",
        )
        with closing(loader):
            yield from loader


def open_images(trained: Trained, flags: Config) -> Images:
    """Open the data that a network was trained on, or that of `--data`.

    Raises:
        UserError: it is not there, or has other classes.
    """
    config = data_settings(trained, flags)
    try:
        source = open_validation(trained, config, Ranks())
    except UserError as error:
        if "data" in flags.written:
            raise
        raise UserError(
            f"{trained.path}: the data of its training, for the check, cannot be opened; add --data with "
            f"such images ({error})"
        ) from error
    return Images(trained, config, source)
