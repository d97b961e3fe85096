"""Built-in demo data set: colored shapes on a plain or patterned background, drawn on first use.

Ten classes of 64 x 64 px images, distinguished by hue and shape together. In a cycle of the classes, each one
shares its hue with one neighbor and its shape with the other. So hue alone, or shape alone, is right for at
most half of the images. The shape's box and mask are known, for detection and segmentation.
"""

from __future__ import annotations

import colorsys
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fastcnn import files
from fastcnn.data.cache import cache_root
from fastcnn.errors import WriteError

VERSION = 1
IMAGE_SIZE = 64
TRAIN_PER_CLASS = 150
VAL_PER_CLASS = 40

# Degrees on the HSV circle. Neighbors are at least 55 apart, several times the jitter.
HUES = {"red": 0, "yellow": 55, "green": 130, "blue": 215, "purple": 285}
HUE_JITTER = 10
SHAPES = ("circle", "star", "square", "cross", "triangle")

# Sorted, as readers of class folders number the classes in this order.
CLASS_NAMES: tuple[str, ...] = tuple(
    sorted(f"{hue} {SHAPES[(2 * i + j + 1) // 2 % 5]}" for i, hue in enumerate(HUES) for j in (0, 1))
)

_SUPERSAMPLING = 4
_INDEX = "boxes.json"


def draw(
    label: int, rng: np.random.Generator, size: int = IMAGE_SIZE
) -> tuple[Image.Image, Image.Image, tuple[int, int, int, int]]:
    """Draw one image of class `label` (an index into CLASS_NAMES), `size` x `size` px.

    Returns:
        The RGB image; its mask of the same size (mode "L": 0 on the background, label + 1 on the shape); the
        mask's bounding box (left, top, right, bottom) in px, right and bottom exclusive. The same state of
        `rng` gives the same result.

    Raises:
        ValueError: no such class.
    """
    if not 0 <= label < len(CLASS_NAMES):
        raise ValueError(f"label {label}: the demo classes are 0 to {len(CLASS_NAMES) - 1}")
    assert size >= 16, "a shape of 30% of the side would be a few pixels"
    hue, shape = CLASS_NAMES[label].split()

    pixels = _background(rng, size)
    if rng.random() < 0.3:
        gray = rng.uniform(0.15, 0.95)
        pixels += _distractor(rng, size)[..., None] * (gray - pixels)

    coverage = _rasterize([_place(_outline(shape, rng), rng, size)], size)
    degrees = HUES[hue] + rng.uniform(-HUE_JITTER, HUE_JITTER)
    color = _rgb(degrees, rng.uniform(0.6, 1.0), rng.uniform(0.65, 1.0))
    shade = 1 - rng.uniform(0, 0.3) * _ramp(rng, size)
    pixels += coverage[..., None] * (color * shade[..., None] - pixels)

    pixels += rng.normal(0, rng.uniform(0.005, 0.035), pixels.shape)
    image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    mask = Image.fromarray(np.where(coverage >= 0.5, label + 1, 0).astype(np.uint8))
    box = mask.getbbox()
    assert box is not None
    return image, mask, box


def write(
    root: Path, train_per_class: int = TRAIN_PER_CLASS, val_per_class: int = VAL_PER_CLASS, seed: int = 0
) -> None:
    """Write the data set to the folder `root` atomically; an existing set is kept.

    Images are `<split>/<class>/0000.jpg` and so on, with the splits train and val and "_" for the space in
    class names. Their masks, as returned by `draw`, are `masks/<split>/<class>/0000.png`. `boxes.json` maps
    each image's path, relative to `root`, to {"label": int, "box": [left, top, right, bottom]}. An image
    depends on its split, class, number and `seed`, not on the counts.

    Raises:
        ValueError: a count below 1.
        OSError: the folder cannot be written, or has other content.
    """
    if min(train_per_class, val_per_class) < 1:
        raise ValueError(f"{train_per_class} + {val_per_class} demo images a class: each must be at least 1")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        # One level down, since other users of a shared cache cannot read the scratch folder itself.
        fresh = Path(scratch) / root.name
        boxes = {}
        for split_index, (split, count) in enumerate((("train", train_per_class), ("val", val_per_class))):
            for label, name in enumerate(CLASS_NAMES):
                images = Path(split) / name.replace(" ", "_")
                (fresh / images).mkdir(parents=True)
                (fresh / "masks" / images).mkdir(parents=True)
                for index in range(count):
                    rng = np.random.default_rng((seed, split_index, label, index))
                    image, mask, box = draw(label, rng)
                    path = images / f"{index:04d}.jpg"
                    image.save(fresh / path, quality=90)
                    mask.save((fresh / "masks" / path).with_suffix(".png"))
                    boxes[path.as_posix()] = {"label": label, "box": box}
        (fresh / _INDEX).write_text(json.dumps(boxes), encoding="utf-8")
        try:
            fresh.rename(root)
        except OSError:
            # Another process may have finished first, with the same set.
            if not (root / _INDEX).is_file():
                raise


def demo_root() -> Path:
    """Return the folder of the demo data set, which need not exist: `shapes-v1` in `cache_root()`."""
    return cache_root() / f"shapes-v{VERSION}"


def ensure_demo() -> Path:
    """Return `demo_root()`; write the data set there first if it is missing (a few seconds).

    Raises:
        WriteError: the folder cannot be written.
    """
    root = demo_root()
    try:
        if not (root / _INDEX).is_file():
            write(root)
    except OSError as error:
        failed = files.failure(root, "the demo data", error)
        raise WriteError(f"{failed}, or set FASTCNN_CACHE to a writable folder", failed.code) from error
    return root


def _rgb(degrees: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(degrees / 360 % 1, saturation, value))


def _axis(angle: float, size: int) -> np.ndarray:
    """Return each pixel's coordinate along `angle`, from the center, in units of the image's side."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    return x * math.cos(angle) + y * math.sin(angle)


def _ramp(rng: np.random.Generator, size: int) -> np.ndarray:
    return (_axis(rng.uniform(0, 2 * math.pi), size) + 0.5).clip(0, 1)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    # Both tones are nearly gray, so that only the shape has a distinct hue.
    one, other = (_rgb(rng.uniform(0, 360), rng.uniform(0, 0.12), rng.uniform(0.3, 0.95)) for _ in range(2))
    kind = rng.choice(["plain", "gradient", "stripes", "checks"])
    if kind == "plain":
        mix = np.zeros((size, size))
    elif kind == "gradient":
        mix = _ramp(rng, size)
    else:
        angle = rng.uniform(0, math.pi)
        frequency = 2 * math.pi * rng.uniform(2, 6)
        wave = np.sin(frequency * _axis(angle, size))
        if kind == "checks":
            wave *= np.sin(frequency * _axis(angle + math.pi / 2, size))
        mix = (0.5 + 4 * wave).clip(0, 1) * rng.uniform(0.15, 0.5)
    return one + mix[..., None] * (other - one)


def _outline(shape: str, rng: np.random.Generator) -> np.ndarray:
    """Return the corners of the upright shape as complex numbers (imaginary part down), at any scale."""
    if shape == "star":
        return _spokes(10) * np.tile([1, rng.uniform(0.38, 0.5)], 5)
    if shape == "cross":
        arm = rng.uniform(0.25, 0.4)
        quarter = np.array([1 - arm * 1j, 1 + arm * 1j, arm + arm * 1j])
        return np.concatenate([quarter * 1j**turn for turn in range(4)])
    if shape == "square":
        return np.array([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j])
    return _spokes({"circle": 72, "triangle": 3}[shape])


def _spokes(count: int) -> np.ndarray:
    return -1j * np.exp(2j * np.pi * np.arange(count) / count)


def _place(outline: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Rotate, scale and shift an outline to a random place inside the image; in px."""
    squeeze = rng.uniform(0.85, 1)
    turned = outline * np.exp(1j * math.radians(rng.uniform(-25, 25)))
    corners = np.stack([turned.real, turned.imag * squeeze], 1)
    corners -= corners.min(0)
    # The rotated outline covers 30% to 75% of the side, so that size does not give the shape away.
    corners *= size * rng.triangular(0.3, 0.7, 0.75) / corners.max()
    return corners + rng.uniform(0, size - corners.max(0))


def _distractor(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the coverage of a small blob, or of a few lines, behind the shape."""
    if rng.random() < 0.5:
        spokes = _spokes(9) * rng.uniform(0.6, 1, 9)
        center = rng.uniform(0, size, 2)
        blob = np.stack([spokes.real, spokes.imag], 1) * size * rng.uniform(0.06, 0.14)
        return _rasterize([center + blob], size)
    lines = []
    for _ in range(rng.integers(1, 4)):
        start, end = rng.uniform(0, size, (2, 2))
        along = end - start
        side = along[::-1] * (-1, 1) / np.hypot(*along) * size * rng.uniform(0.005, 0.015)
        lines.append(np.stack([start - side, end - side, end + side, start + side]))
    return _rasterize(lines, size)


def _rasterize(polygons: list[np.ndarray], size: int) -> np.ndarray:
    """Return the covered fraction of each pixel, 0 to 1, by polygons with corners in px."""
    canvas = Image.new("L", (size * _SUPERSAMPLING, size * _SUPERSAMPLING))
    for corners in polygons:
        ImageDraw.Draw(canvas).polygon((corners * _SUPERSAMPLING).ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLING)) / 255
