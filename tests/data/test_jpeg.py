"""A JPEG decoded at a reduced scale shows what full decoding shows, at the same place."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastcnn.data.batch import ShardedSampler
from fastcnn.data.decode import DecodeError, decode
from fastcnn.data.jpeg import FACTORS, PIXELS_LEFT, decode_reduced, is_jpeg, reduction
from fastcnn.data.loaders.bad_files import BadFiles
from fastcnn.data.loaders.base import LoaderArgs
from fastcnn.data.loaders.cached import decode_all
from fastcnn.data.loaders.registry import MAKERS, Backend
from fastcnn.data.loaders.torch_loader import resize, shapes_of_whole
from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.headers import Files, scan
from fastcnn.data.transforms.transform import Transform

HEIGHT, WIDTH = 603, 805  # no multiple of a JPEG's blocks
SIZE = 24
PARITY = 0.5
"""Largest mean difference from full decoding, of 255."""
MODES: dict[str, dict[str, Any]] = {
    "random-resized": {"train_crop": "random-resized"},
    "random window": {"train_crop": "random"},
    "pad": {"train_crop": "pad"},
    "pad with borders": {"train_crop": "pad", "crop_mode": "border"},
    "gray": {"channels": 1},
}


def photo(seed: int = 0) -> Image.Image:
    """Structure at all scales, as in photos: noise at one amplitude per octave, and grain."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 128.0)
    for octave in range(1, 7):
        coarse = rng.normal(0, 60 / octave, (3 * 2**octave, 4 * 2**octave)).astype(np.float32)
        smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        image += np.asarray(smooth)[..., None]
    tint = Image.fromarray(rng.integers(0, 120, (6, 8, 3), dtype=np.uint8))
    image += np.asarray(tint.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(float) - 60
    image += rng.normal(0, 3, image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> np.ndarray:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


PHOTO = photo()
RGB = {
    "4:2:0": jpeg(PHOTO, subsampling=2),
    "4:2:2": jpeg(PHOTO, subsampling=1),
    "4:4:4": jpeg(PHOTO, subsampling=0),
    "progressive": jpeg(PHOTO, progressive=True),
    "with restart markers": jpeg(PHOTO, restart_marker_blocks=7),
    "gray": jpeg(PHOTO.convert("L")),
    "CMYK": jpeg(PHOTO.convert("CMYK")),
}


def random_regions(count: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    rng = np.random.default_rng(1)
    for _ in range(count):
        h, w = int(rng.integers(height // 4, height + 1)), int(rng.integers(width // 4, width + 1))
        yield int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


def both(
    data: np.ndarray, region: tuple[int, int, int, int], shape: tuple[int, int], **changes: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels from reduced and from full decoding, int64."""
    channels, orientation = changes.get("channels", 3), changes.get("orientation", 1)
    size = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    reduced = decode_reduced(data, channels, size, region, shape, orientation=orientation)
    assert reduced.shape == (*shape, channels)
    assert reduced.dtype == np.uint8
    full = resize(decode(data, channels, size, region, orientation=orientation), *shape)
    return reduced.astype(int), full.astype(int)


@given(
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)), st.tuples(st.integers(1, 600), st.integers(1, 600))
)
def test_the_largest_factor_that_leaves_twice_the_wanted_size(region, shape):
    factor = reduction(region, shape)

    def leaves_enough(by: int) -> bool:
        return all(side >= by * PIXELS_LEFT * wanted for side, wanted in zip(region, shape))

    assert factor in (1, *FACTORS)
    assert factor == 1 or leaves_enough(factor)
    assert factor == 8 or not leaves_enough(2 * factor)


@pytest.mark.parametrize("kind", RGB)
@pytest.mark.parametrize("channels", [3, 1])
def test_crops_differ_from_full_decoding_by_less_than_half_a_level(kind, channels):
    differences, used = [], set()
    for region in random_regions(12, HEIGHT, WIDTH):
        used.add(reduction(region[2:], (SIZE, SIZE)))
        reduced, full = both(RGB[kind], region, (SIZE, SIZE), channels=channels)
        differences.append(np.abs(reduced - full).mean())
    assert used == {2, 4, 8}
    assert 0 < np.mean(differences) < PARITY


@pytest.mark.parametrize("channels", [3, 1])
def test_a_crop_is_not_shifted_by_a_part_of_a_reduced_pixel(channels):
    """A ramp shows a shift of a twentieth of a pixel of the result as a level."""
    ramp = np.linspace(0, 255, WIDTH)[None] * 0.5 + np.linspace(0, 255, HEIGHT)[:, None] * 0.5
    data = jpeg(Image.fromarray(ramp.astype(np.uint8)), quality=100)
    for region in random_regions(40, HEIGHT, WIDTH):
        reduced, full = both(data, region, (9, 9), channels=channels)
        assert abs((reduced - full).mean()) < 0.4
        assert np.abs(reduced - full).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_cut_upright(orientation):
    height, width = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    differences = []
    for region in random_regions(6, height, width):
        reduced, full = both(RGB["4:2:0"], region, (30, 18), orientation=orientation)
        differences.append(np.abs(reduced - full).mean())
    assert np.mean(differences) < PARITY


def test_two_images_in_a_file_are_the_first():
    stream = io.BytesIO()
    PHOTO.save(stream, "MPO", save_all=True, append_images=[photo(1)], quality=90)
    data = np.frombuffer(stream.getvalue(), dtype=np.uint8)
    assert is_jpeg(data)
    reduced, full = both(data, (0, 0, HEIGHT, WIDTH), (SIZE, SIZE))
    assert np.abs(reduced - full).mean() < PARITY


def test_a_whole_photo_ends_with_the_part_of_a_block_that_it_has():
    """603 x 805 is 76 x 101 at an eighth, whose last row and column are partly padding."""
    reduced, full = both(RGB["4:4:4"], (HEIGHT - 320, WIDTH - 320, 320, 320), (20, 20))
    assert np.abs(reduced - full)[-1].mean() < 1.5
    assert np.abs(reduced - full)[:, -1].mean() < 1.5


@pytest.mark.parametrize("damage", ["truncated", "another size", "no image"])
def test_a_bad_photo_is_named_with_the_reason_of_full_decoding(damage):
    data = RGB["4:2:0"]
    bad = {"truncated": data[: len(data) // 2], "another size": jpeg(PHOTO.crop((0, 0, 500, 500)))}
    data = bad.get(damage, np.frombuffer(b"\xff\xd8\xff" + bytes(100), dtype=np.uint8))
    reasons = []
    for read in (
        lambda: decode(data, 3, (HEIGHT, WIDTH)),
        lambda: decode_reduced(data, 3, (HEIGHT, WIDTH), (0, 0, HEIGHT, WIDTH), (SIZE, SIZE), orientation=1),
    ):
        with pytest.raises(DecodeError) as caught:
            read()
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Photos as a phone writes them, one of them turned, and a PNG."""
    folder = tmp_path_factory.mktemp("photos")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(1).save(folder / "a.jpg", quality=90)
    photo(2).save(folder / "b.jpg", quality=90, exif=turned)
    photo(3).save(folder / "c.png", compress_level=1)
    return scan(str(folder), [str(folder / name) for name in ("a.jpg", "b.jpg", "c.png")])


def batches(
    files: Files, *, train: bool, epochs: int = 1, backend: Backend = "torch", **changes: Any
) -> torch.Tensor:
    """All images of some epochs, sorted by sample."""
    split = Split(np.arange(len(files)), files)
    args = LoaderArgs(
        split=split,
        transform=Transform(**{"size": SIZE, **changes}),
        sampler=ShardedSampler(count=len(split), batch_size=len(split), rank=0, world_size=1, train=train),
        device=torch.device("cpu"),
        workers=2,
        bad=BadFiles(split, "training", max_fraction=0),
    )
    loader, images = MAKERS[backend](args), []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        (batch,) = loader
        images.append(batch.images[batch.targets.argsort()])
    loader.close()
    return torch.stack(images)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("train", [True, False])
def test_the_loader_gives_the_crops_of_full_decoding(files, mode, train):
    reduced, full = (
        batches(files, train=train, epochs=4, dct_scaling=scaled, **MODES[mode]).int()
        for scaled in (True, False)
    )
    difference = (reduced - full).abs().float().mean(dim=(0, 2, 3, 4))
    assert 0 < difference[0] < PARITY
    assert 0 < difference[1] < PARITY
    assert difference[2] == 0  # a PNG has no reduced scale


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("train", [True, False])
def test_images_in_memory_give_what_files_give(files, mode, train):
    """To the same bits where an image is resized as a whole; other images are kept whole."""
    kept, read = (
        batches(files, train=train, epochs=3, backend=backend, **MODES[mode]).int()
        for backend in ("cached", "torch")
    )
    crops_first = train and mode in ("random-resized", "gray")
    limit = PARITY if crops_first else 0
    assert (kept - read).abs().float().mean() <= limit


def test_photos_of_the_validation_are_kept_in_the_size_that_is_cropped(files):
    split = Split(np.arange(len(files)), files)
    t = Transform(size=SIZE)
    bad = BadFiles(split, "validation", max_fraction=0)
    assert shapes_of_whole(t, split.sizes, train=True) is None
    found = decode_all(split, 3, 1, bad, shapes=shapes_of_whole(t, split.sizes, train=False))
    assert found.images is not None
    assert {min(image.shape[:2]) for image in found.images} == {t.resize}
    whole = decode_all(split, 3, 1, bad)
    assert whole.images is not None
    assert [image.shape[:2] for image in whole.images] == [(603, 805), (805, 603), (603, 805)]


def test_small_and_narrow_images_are_kept_as_they_are(tmp_path):
    for name, size in (("a", (20, 30)), ("b", (300, 20)), ("c", (64, 64))):
        photo().resize(size).save(tmp_path / f"{name}.png")
    files = scan(str(tmp_path), [str(tmp_path / f"{name}.png") for name in "abc"])
    split = Split(np.arange(3), files)
    shapes = shapes_of_whole(Transform(size=SIZE), split.sizes, train=False)
    found = decode_all(split, 3, 1, BadFiles(split, "validation", max_fraction=0), shapes=shapes)
    assert found.images is not None
    assert [image.shape[:2] for image in found.images] == [(30, 20), (20, 300), (27, 27)]
    kept, read = (batches(files, train=False, backend=backend) for backend in ("cached", "torch"))
    assert torch.equal(kept, read)


def test_the_same_bits_in_every_run(files):
    assert torch.equal(batches(files, train=True, epochs=3), batches(files, train=True, epochs=3))


@pytest.mark.parametrize("train", [True, False])
def test_photos_of_less_than_four_times_the_size_keep_their_bits(files, train):
    """Half of them is not twice the size."""
    size = HEIGHT // 4 + 1
    reduced, full = (
        batches(files, train=train, size=size, dct_scaling=scaled, crop_pct=1.0) for scaled in (True, False)
    )
    assert torch.equal(reduced, full)


def test_a_reduced_photo_is_not_returned_where_the_pixels_are_wanted(files: Files):
    assert files.decode(0, 3).shape == (HEIGHT, WIDTH, 3)
    assert files.decode(0, 3, (10, 20, 300, 500)).shape == (300, 500, 3)
    assert files.decode(0, 3, shape=(SIZE, SIZE)).shape == (SIZE, SIZE, 3)
    assert files.decode(2, 3, shape=(SIZE, SIZE)).shape == (HEIGHT, WIDTH, 3)


def test_a_photo_that_changed_is_bad(files: Files, tmp_path: Path):
    path = tmp_path / "a.jpg"
    PHOTO.save(path)
    changed = dataclasses.replace(scan(str(tmp_path), [str(path)]), sizes=np.array([[HEIGHT + 1, WIDTH]]))
    with pytest.raises(DecodeError, match="changed since its header was read"):
        changed.decode(0, 3, shape=(SIZE, SIZE))
