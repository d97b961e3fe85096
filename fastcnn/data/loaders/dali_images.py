"""Encoded images for DALI. An error in DALI's decoder may end the process, so it gets intact images alone."""

from __future__ import annotations

import time

import numpy as np

from fastcnn.data.decode import TRANSPOSED, DecodeError
from fastcnn.data.intact import intact_jpeg, intact_png
from fastcnn.data.jpeg import is_jpeg
from fastcnn.data.sources.headers import Files

STABLE_AGE = 2_000_000_000
"""Age in ns from which a modification time stands for a content: file systems count in steps."""
UNCHECKED = -1


class DaliImages:
    """Images of a split as bytes for DALI's decoder: those of the file, or pixels that Pillow decoded.

    A file is checked when it is read first, and again whenever its size or modification time has changed.

    Args:
        channels: 1 or 3, of decoded pixels.
    """

    def __init__(self, files: Files, channels: int) -> None:
        self.files, self.channels = files, channels
        special = files.special
        self.by_pillow = np.zeros(len(files), dtype=bool) if special is None else special.copy()
        """Images that DALI does not decode, bool [N]."""
        self._checked = np.full(len(files), UNCHECKED, dtype=np.int64)
        """Digest of size and time of each file that was intact."""

    def load(self, index: int) -> np.ndarray:
        """Return an image's bytes, or its pixels as PPM, uint8 [length].

        Raises:
            DecodeError: undecodable.
            ReadError: an error of the machine.
        """
        try:
            data, stamp = self.files.read_stamped(index)
        except OSError as error:
            raise DecodeError(error.strerror or str(error)) from error
        encoded = np.frombuffer(data, dtype=np.uint8)
        if not self.by_pillow[index]:
            digest = hash(stamp)
            if self._checked[index] == digest:
                return encoded
            if self._is_intact(index, data):
                if time.time_ns() - stamp[1] > STABLE_AGE:
                    self._checked[index] = digest
                return encoded
        return as_ppm(self.files.decode_bytes(encoded, index, self.channels))

    def _is_intact(self, index: int, data: bytes) -> bool:
        """Return whether DALI can decode these bytes, to the size by which regions are drawn."""
        frame = intact_jpeg(data) if is_jpeg(data) else intact_png(data)
        if frame is None:
            return False
        size = frame.height, frame.width
        if self.files.orientations is not None:
            if frame.orientation != self.files.orientations[index]:
                return False
            size = size[::-1] if frame.orientation >= TRANSPOSED else size
        return size == tuple(self.files.sizes[index].tolist())


def as_ppm(pixels: np.ndarray) -> np.ndarray:
    """Encode pixels, uint8 [H, W, 1 or 3], as PGM or PPM; uint8 [length]."""
    height, width, channels = pixels.shape
    header = f"P{5 if channels == 1 else 6}\n{width} {height}\n255\n".encode()
    return np.concatenate([np.frombuffer(header, dtype=np.uint8), pixels.reshape(-1)])
