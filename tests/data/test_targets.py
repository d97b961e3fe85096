"""Masks and boxes go where their pixels go, whichever backend loads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastcnn.config.settings import LoaderSettings
from fastcnn.data.loaders.build import build_loaders
from fastcnn.data.loaders.registry import has_dali
from fastcnn.data.mask_files import MaskArrays, MaskFiles
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.targets import IGNORE, MIN_VISIBLE, NO_BOX, Boxes, Masks, move_boxes
from fastcnn.data.transforms.geometry import eval_geometry, train_geometry
from fastcnn.data.transforms.transform import Transform
from fastcnn.runtime.distributed import Ranks

CPU = torch.device("cpu")
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
COUNT = 1000
SIZE = 48
IDENTITY = np.arange(256, dtype=np.uint8)


def marked(count: int = COUNT, square: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """Black images, each with a white marker, and the markers' boxes, left, top, right, bottom [count, 4]."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for _ in range(count):
        height, width = rng.integers(40, 90, 2) if square is None else (square, square)
        h, w = rng.integers(8, height // 2), rng.integers(8, width // 2)
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        image = np.zeros((height, width, 3), dtype=np.uint8)
        image[top : top + h, left : left + w] = 255
        images.append(image)
        boxes.append((left, top, left + w, top + h))
    return images, np.array(boxes)


def with_boxes(images: list[np.ndarray], boxes: np.ndarray) -> Split:
    rows = [np.array([[3, *box, 0]], dtype=np.float32) for box in boxes]
    return Split(np.zeros(len(images), dtype=np.int64), None, images, Boxes.of_images(rows))


def with_masks(images: list[np.ndarray]) -> Split:
    masks = Masks(IDENTITY, MaskArrays([(image[..., 0] > 0).astype(np.uint8) for image in images]))
    return Split(np.zeros(len(images), dtype=np.int64), None, images, masks)


def batches(
    split: Split, backend: str, train: bool, transform: Transform
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grey values [SIZE, SIZE] and the target of each sample of an epoch."""
    if not train and split.annotations is not None:
        split = split.take(np.arange(60))
    source = Source(name="marked", train=split, val=split, class_names=("one", "two"))
    settings = LoaderSettings(data_backend=backend, batch_size=20, workers=2)  # type: ignore[arg-type]
    loaders = build_loaders(source, transform, settings, ranks=Ranks(), device=CPU, seed=0)
    try:
        for batch in loaders[0 if train else 1]:
            yield from zip(batch.images[:, 0].numpy(), batch.targets.numpy())
    finally:
        for loader in loaders:
            loader.close()


def extent(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper left and lower right corner of what is white, (vertical, horizontal)."""
    places = np.argwhere(pixels)
    return places.min(axis=0), places.max(axis=0) + 1


CASES = [
    pytest.param(True, Transform(size=SIZE, scale=(0.2, 1.0)), id="random-resized"),
    pytest.param(True, Transform(size=SIZE, train_crop="pad"), id="pad"),
    pytest.param(True, Transform(size=SIZE, train_crop="pad", crop_mode="border"), id="pad with borders"),
    pytest.param(False, Transform(size=SIZE, crop_mode="border"), id="validation with borders"),
    pytest.param(False, Transform(size=SIZE, crop_mode="center"), id="validation of the centre"),
]
EVERY_CASE = pytest.mark.parametrize(("train", "transform"), CASES)
EVERY_BACKEND = pytest.mark.parametrize(
    "backend",
    [
        pytest.param("dali", marks=[needs_dali, pytest.mark.slow]),
        "torch",
        pytest.param("cached", marks=pytest.mark.slow),
    ],
)
"""All cut the same crops, as tests of the loaders show by default."""


@EVERY_BACKEND
@EVERY_CASE
def test_a_marker_stays_in_its_box_over_a_thousand_draws(backend, train, transform):
    images, boxes = marked()
    split = with_boxes(images, boxes)
    seen = dropped = 0
    for pixels, target in batches(split, backend, train, transform):
        seen += 1
        rows = target[target[:, 0] != NO_BOX]
        white = pixels > 127
        if not len(rows):
            dropped += 1
            continue
        (row,) = rows
        assert row[0] == 3
        first, last = extent(white)
        # A resized edge is seen where half of a pixel is white.
        assert np.abs(row[[2, 1]] - first).max() <= 1, (row, first)
        assert np.abs(row[[4, 3]] - last).max() <= 1, (row, last)
    assert seen == (COUNT if train else 60)
    assert dropped < seen / 3
    if transform.crop_mode == "border" and not train:
        assert dropped == 0


@EVERY_BACKEND
@EVERY_CASE
def test_a_mask_covers_its_marker_over_a_thousand_draws(backend, train, transform):
    images, _ = marked()
    outside = 0
    for pixels, mask in batches(with_masks(images), backend, train, transform):
        white = pixels > 127
        assert set(np.unique(mask)) <= {0, 1, IGNORE}
        outside += int((mask == IGNORE).sum())
        around = F.max_pool2d(torch.from_numpy(np.stack([white, ~white])).float(), 3, 1, 1).numpy()
        at_an_edge = around.min(axis=0) == 1  # where a resized pixel is partly white
        assert ((white == (mask == 1)) | at_an_edge).all()
    assert (outside > 0) == (transform.train_crop == "pad" or transform.crop_mode == "border")


@EVERY_BACKEND
def test_small_images_of_one_size_move_alike_in_every_backend(backend):
    images, boxes = marked(200, square=SIZE)
    split = dataclasses.replace(with_boxes(images, boxes), images=np.stack(images))
    for pixels, target in batches(
        split, backend, True, Transform(size=SIZE, train_crop="pad", crop_mode="border")
    ):
        rows = target[target[:, 0] != NO_BOX]
        if len(rows):
            first, last = extent(pixels > 127)
            assert (rows[0, [2, 1]] == first).all()
            assert (rows[0, [4, 3]] == last).all()


def test_a_box_stays_if_a_quarter_of_it_does():
    transform = Transform(size=32)
    geometry = eval_geometry(transform, np.array([[36, 72]]))  # the middle 36 x 36 or so
    left = float(geometry.start[0, 1] + geometry.roi_start[0, 1])
    for visible, kept in ((MIN_VISIBLE - 0.02, 0), (MIN_VISIBLE + 0.02, 1)):
        box = np.array([[0, left - 10 * (1 - visible), 4, left + 10 * visible, 9, 1]], dtype=np.float32)
        moved = move_boxes(box, geometry, 0, 32)
        assert len(moved) == kept
        if kept:
            assert moved[0, 1] == 0
            assert moved[0, 5] == 1  # still a crowd


def test_boxes_are_filled_up_to_the_most_that_an_image_has():
    boxes = Boxes.of_images([np.zeros((0, 6)), np.array([[1, 0, 0, 8, 8, 0], [2, 8, 8, 16, 16, 0]])])
    assert boxes.most == 2
    geometry = eval_geometry(Transform(size=16, crop_mode="border"), np.array([[16, 16], [16, 16]]))
    loaded = boxes.load(np.array([0, 1]), geometry, 16)
    assert loaded.shape == (2, 2, 6)
    assert loaded[:, :, 0].tolist() == [[NO_BOX, NO_BOX], [1, 2]]
    swapped = boxes.take(np.array([1, 0]))
    assert (swapped.of(0) == boxes.of(1)).all()
    assert len(swapped.of(1)) == 0


def test_a_flip_mirrors_boxes_and_masks():
    sizes = np.array([[16, 16]])
    transform = Transform(size=16, train_crop="pad", hflip=1.0)
    geometry = train_geometry(transform, sizes, 0, 0, np.array([0]))
    still = dataclasses.replace(geometry, shift=np.zeros_like(geometry.shift))
    moved = move_boxes(np.array([[0, 1, 2, 5, 8, 0]], dtype=np.float32), still, 0, 16)
    assert moved.tolist() == [[0, 11, 2, 15, 8, 0]]
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16) % 250
    loaded = Masks(IDENTITY, MaskArrays([mask])).load(np.array([0]), still, 16)
    assert (loaded[0] == mask[:, ::-1]).all()


def test_a_table_says_which_class_a_value_is(tmp_path):
    values = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    palette = Image.fromarray(values, "P")
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values).save(tmp_path / "grey.png")
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[[0, 1]] = 1, 0
    for name in ("palette.png", "grey.png"):
        masks = Masks(table, MaskFiles(paths=(str(tmp_path / name),)))
        assert masks.read(0).tolist() == [[1, 0], [IGNORE, IGNORE]]
