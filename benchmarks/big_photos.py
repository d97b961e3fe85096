"""Photos as phones take them, for benchmarks: 4000 x 3000 px, JPEG of quality 90 with 4:2:0 chroma.

Made from smaller photos, or drawn. Enlarged photos are smooth, and have 1 MB. With grain they have 2 to 3 MB,
as those of phones, and entropy decoding takes more of the time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 4000, 3000
QUALITY = 90
OCTAVES = range(1, 9)
CLASSES = 4


def write(
    root: Path,
    count: int,
    photos: Sequence[str] = (),
    *,
    grain: float,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> None:
    """Write `count` photos into `CLASSES` class folders.

    Args:
        photos: files to enlarge, evenly chosen; none: noise of all scales is drawn.
        grain: standard deviation of gray noise, of 255.
        size: width and height in pixels.
    """

    def make(i: int) -> None:
        rng = np.random.default_rng(i)
        image = enlarge(photos[i * len(photos) // count], size) if photos else draw(rng, size)
        path = root / f"class{i % CLASSES}" / f"{i:04}.jpg"
        with_grain(image, grain, rng).save(path, quality=QUALITY, subsampling="4:2:0")

    for number in range(CLASSES):
        (root / f"class{number}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))


def enlarge(path: str, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def draw(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Draw noise whose amplitude falls with its frequency, as that of photos does."""
    width, height = size
    pixels = np.full((height, width, 3), 128, dtype=np.float32)
    for octave in OCTAVES:
        for channel in range(3):
            coarse = rng.normal(0, 50 / octave, (3 << octave, 4 << octave)).astype(np.float32)
            smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(smooth)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def with_grain(image: Image.Image, grain: float, rng: np.random.Generator) -> Image.Image:
    """Return the image with gray noise, which repeats after 512 px."""
    width, height = image.size
    tile = rng.normal(0, grain, (512, 512)).astype(np.int16)
    noise = np.tile(tile, (-(-height // 512), -(-width // 512)))[:height, :width, None]
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
