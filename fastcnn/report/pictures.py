"""Pictures of a run inside a page: as data URLs, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MAX_FILE = 50_000_000
"""Max bytes of a picture's file."""
MAX_PIXELS = 60_000_000
SIDES = 1600, 1000, 600
"""Long sides to try, in pixels, until a picture fits."""


@dataclass(frozen=True)
class Picture:
    """A picture for a page."""

    title: str
    url: str
    """data: URL."""
    width: int
    height: int


class Album:
    """Pictures that take at most `budget` bytes together."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.skipped: list[str] = []
        """Lines about pictures that are damaged or did not fit."""

    def add(self, path: Path, title: str, share: float = 0.5) -> Picture | None:
        """Read a PNG or JPEG; None if it is damaged or does not fit.

        Args:
            share: max fraction of the remaining budget that it may take.
        """
        try:
            if not path.is_file() or path.stat().st_size > MAX_FILE:
                raise ValueError("not a file of at most 50 MB")
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError("too many pixels")
                image.load()
                return self.embed(image, title, share)
        except Exception as error:  # decoders raise any error on foreign bytes
            self.skipped.append(f"{path.name}: {' '.join(str(error).split())[:100]}")
            return None

    def embed(self, image: Image.Image, title: str, share: float = 0.5) -> Picture | None:
        """Return a picture for the page; None if it does not fit."""
        for side in SIDES:
            small = image.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            small.save(stream, "WEBP", quality=80, method=4)
            size = len(stream.getvalue()) * 4 // 3 + 100
            if size <= share * self.budget:
                self.budget -= size
                url = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
                return Picture(title, url, small.width, small.height)
        self.skipped.append(f"{title}: too large for the page")
        return None
