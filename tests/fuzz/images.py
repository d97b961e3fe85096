"""Mutated images through every loader: each is decoded or counted as bad, and no process ends early.

    python tests/fuzz/images.py FOLDER SEED COUNT BACKEND ...

Half of the images are mutated before their headers are read, half after that, as if another program wrote
them meanwhile. Prints a JSON object for each backend: numbers of images, of bad ones, and seconds.
"""

from __future__ import annotations

import io
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

SIZE = 40, 48
"""Height and width of the images."""
OPTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "baseline.jpg": ("JPEG", "RGB", {"quality": 85}),
    "progressive.jpg": ("JPEG", "RGB", {"progressive": True, "quality": 90}),
    "plain.jpg": ("JPEG", "RGB", {"subsampling": 0, "restart_marker_blocks": 2}),
    "gray.jpg": ("JPEG", "L", {}),
    "turned.jpg": ("JPEG", "RGB", {"exif": 6}),
    "print.jpg": ("JPEG", "CMYK", {}),
    "color.png": ("PNG", "RGB", {}),
    "palette.png": ("PNG", "P", {}),
    "alpha.png": ("PNG", "RGBA", {}),
    "one-bit.png": ("PNG", "1", {}),
    "turned.png": ("PNG", "RGB", {"exif": 8}),
    "color.bmp": ("BMP", "RGB", {}),
    "palette.bmp": ("BMP", "P", {}),
    "color.tiff": ("TIFF", "RGB", {}),
    "packed.tiff": ("TIFF", "L", {"compression": "tiff_lzw"}),
    "lossy.webp": ("WEBP", "RGB", {}),
    "lossless.webp": ("WEBP", "RGBA", {"lossless": True}),
    "palette.gif": ("GIF", "P", {}),
    "color.ppm": ("PPM", "RGB", {}),
}
"""Format, mode and options of each kind of image, by a file name."""
NUMBERS = (0, 1, 2, 255, 256, 32_767, 65_535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)


def seeds() -> dict[str, bytes]:
    """Return an intact image of each kind."""
    height, width = SIZE
    coarse = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    images = {}
    for name, (kind, mode, options) in OPTIONS.items():
        options = dict(options)
        if "exif" in options:
            exif = Image.Exif()
            exif[0x0112] = options["exif"]
            options["exif"] = exif
        stream = io.BytesIO()
        picture.convert(mode).save(stream, kind, **options)
        images[name] = stream.getvalue()
    return images


def mutate(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return bytes with one to four random changes; `others` are images to take parts from."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(MUTATIONS)(data, others, rng)
    return data


def _cut(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut_keeping_the_end(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Remove a part in the middle: the last bytes are those of a whole file."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[min(len(data), at + rng.choice((1, 2, 16, 200))) :]


def _flip(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_early_byte(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Set a byte where headers lie."""
    if not data:
        return data
    changed = bytearray(data)
    changed[rng.randrange(min(len(data), rng.choice((32, 200, 700))))] = rng.choice((0, 1, 127, 128, 255))
    return bytes(changed)


def _set_number(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Write an extreme number of two or four bytes."""
    width = rng.choice((2, 4))
    number = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, rng.choice(("big", "little")))
    at = rng.randrange(max(1, min(len(data), 200)))
    return data[:at] + number + data[at + width :]


def _fill(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((8, 64, 500))
    return (
        data[:at] + rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length))) + data[at + length :]
    )


def _insert(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]


def _splice(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def _replace(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Another image, in part of another size, or nothing of an image."""
    if rng.random() < 0.5:
        return rng.choice((b"", b"\0", b"x" * 500, b"\xff\xd8\xff\xe0" + bytes(50), rng.choice(others)))
    side = rng.choice((1, 20, 48, 64))
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 90)).save(stream, rng.choice(("JPEG", "PNG", "BMP", "WEBP")))
    return stream.getvalue()


MUTATIONS = (
    *(_cut, _cut_keeping_the_end, _flip, _flip, _set_early_byte, _set_early_byte, _set_number),
    *(_fill, _insert, _splice, _replace),
)


def write_images(folder: Path, seed: int, count: int) -> tuple[list[str], dict[str, bytes]]:
    """Write mutated images after an intact one of each kind.

    Returns:
        The paths, and new contents of half of the mutated ones, to be written after their headers were read.
    """
    rng, images = random.Random(seed), seeds()
    others = list(images.values())
    folder.mkdir(parents=True, exist_ok=True)
    paths, later = [], {}
    for name, data in images.items():
        paths.append(str(folder / f"intact-{name}"))
        Path(paths[-1]).write_bytes(data)
    for number in range(count):
        name = rng.choice(list(images))
        changed = mutate(images[name], others, rng)
        path = folder / f"{number:05}-{name}"
        path.write_bytes(images[name] if number % 2 else changed)
        if number % 2:
            later[str(path)] = changed
        paths.append(str(path))
    return paths, later


def load_all(
    folder: Path, seed: int, count: int, backend: Literal["dali", "torch", "cached"]
) -> dict[str, Any]:
    """Train and validate on mutated images with a loader; return the numbers of images and of bad ones."""
    import torch

    from fastcnn.config.settings import LoaderSettings
    from fastcnn.data.loaders.build import build_loaders
    from fastcnn.data.sources.dataset import Source, Split
    from fastcnn.data.sources.headers import scan
    from fastcnn.data.transforms.transform import Transform
    from fastcnn.runtime.distributed import Ranks

    start = time.perf_counter()
    paths, later = write_images(folder, seed, count)
    files = scan(str(folder), paths)
    for path, data in later.items():
        Path(path).write_bytes(data)
    split = Split(np.arange(len(paths)) % 2, files)
    source = Source(name="mutated", train=split, val=split, class_names=("a", "b"))
    settings = LoaderSettings(data_backend=backend, batch_size=8, workers=2, max_bad_fraction=1)
    ranks, device = Ranks(), torch.device("cpu")
    transform = Transform(size=32, scale=(0.1, 1.0))
    train, val = build_loaders(source, transform, settings, ranks=ranks, device=device, seed=seed)
    try:
        for epoch in range(2):
            train.set_epoch(epoch)
            batches = [batch.images.shape for batch in train]
            assert set(batches) == {(8, 3, 32, 32)}
            assert len(batches) == len(paths) // 8
        shown = sum(int(batch.mask.sum()) for batch in val)
        assert shown + len(val.bad) == len(paths), (shown, len(val.bad), len(paths))
        intact = set(range(len(OPTIONS)))
        assert not intact & (train.bad.reasons.keys() | val.bad.reasons.keys())
    finally:
        train.close()
        val.close()
    seconds = round(time.perf_counter() - start, 1)
    return {"backend": backend, "images": len(paths), "bad": len(val.bad), "seconds": seconds}


if __name__ == "__main__":
    root, first, number, *backends = sys.argv[1:]
    for name in backends:
        found = load_all(Path(root) / name, int(first), int(number), name)  # type: ignore[arg-type]
        print(json.dumps(found), flush=True)
