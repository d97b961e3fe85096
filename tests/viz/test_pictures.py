"""Pictures show what was found where it was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcnn.data.batch import Batch
from fastcnn.data.targets import IGNORE
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.gallery import COUNT, Gallery
from fastcnn.tasks.segmentation import Segmentation
from fastcnn.viz.pictures import (
    SMALLEST_SIDE,
    class_color,
    readable_on,
    side_by_side,
    with_boxes,
    with_caption,
    with_mask,
)

NAMES = ("ground", "cat", "dog")


def test_a_mask_colours_its_pixels_and_leaves_the_background():
    image = np.full((16, 16, 3), 100, dtype=np.uint8)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:8, 4:8] = 2
    mask[12:, 12:] = IGNORE
    picture = np.asarray(with_mask(image, mask, NAMES))
    scale = SMALLEST_SIDE // 16
    assert picture[0, 0].tolist() == [100, 100, 100]
    inside = picture[6 * scale, 6 * scale].astype(float)
    assert np.abs(inside - (0.45 * 100 + 0.55 * np.array(class_color(2)))).max() <= 1
    ignored = picture[15 * scale, 15 * scale]
    assert len(set(ignored.tolist())) == 1  # grey
    below = picture[16 * scale :].reshape(-1, 3)
    assert (below == class_color(2)).all(axis=1).any()  # named
    assert not (below == class_color(1)).all(axis=1).any()  # not shown


def test_a_smaller_mask_belongs_to_the_centre():
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    picture = np.asarray(with_mask(image, np.ones((8, 8), dtype=np.uint8), NAMES))[:SMALLEST_SIDE]
    coloured = np.argwhere(picture.any(axis=2))
    scale = SMALLEST_SIDE // 16
    assert coloured.min(axis=0).tolist() == [4 * scale] * 2
    assert coloured.max(axis=0).tolist() == [12 * scale - 1] * 2


@pytest.mark.parametrize("scored", [True, False])
def test_a_box_is_drawn_around_its_pixels(scored):
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    boxes = np.array([[1, 8, 16, 24, 28, 0.75]], dtype=np.float32)
    picture = np.asarray(with_boxes(image, boxes, NAMES, scored=scored))
    scale = len(picture) // 32
    lines = np.argwhere((picture == class_color(1)).all(axis=2))
    assert np.abs(lines.max(axis=0) - np.array([28, 24]) * scale).max() <= 2
    assert lines[:, 1].min() == 8 * scale
    assert lines[:, 0].min() < 16 * scale  # the name is above it
    assert not picture[22 * scale, 16 * scale].any()  # and nothing inside


def test_names_stay_inside_the_picture():
    image = np.zeros((224, 224, 3), dtype=np.uint8)
    boxes = np.array([[1, 200, 0, 224, 20, 1], [2, 0, 200, 10, 224, 1]], dtype=np.float32)
    picture = np.asarray(with_boxes(image, boxes, ("ground", "a long name", "cat"), scored=True))
    assert picture.shape == (224, 224, 3)
    assert (picture[:30, 120:200] == class_color(1)).all(axis=2).any()


def test_colours_of_classes_differ_and_words_on_them_can_be_read():
    assert len({class_color(i) for i in range(100)}) == 100
    assert {readable_on(class_color(i)) for i in range(20)} <= {"black", "white"}
    assert readable_on((250, 250, 200)) == "black"
    assert readable_on((40, 0, 90)) == "white"


def test_a_caption_that_is_too_long_ends_in_dots():
    from PIL import Image

    picture = Image.new("RGB", (100, 20))
    long = with_caption(picture, [("word", None)] * 30)
    assert long.width == 100
    assert long.height > 20


def batch_of(images: int, real: int) -> Batch:
    pixels = torch.zeros(images, 3, 8, 8, dtype=torch.uint8)
    targets = torch.zeros(images, 8, 8, dtype=torch.uint8)
    return Batch(pixels, targets, torch.arange(images) < real)


@pytest.mark.parametrize(("batches", "size"), [(1, 4), (1, 40), (5, 8), (100, 2)])
def test_a_gallery_shows_samples_from_all_over_the_validation(batches, size, tmp_path):
    seen: list[int] = []

    class Watched(Segmentation):
        def predict(self, outputs: object) -> list[np.ndarray]:
            assert isinstance(outputs, torch.Tensor)
            seen.append(int(outputs[0, 0, 0, 0]))
            return super().predict(outputs)

    gallery = Gallery(Watched(3), NAMES, batches)
    for step in range(batches):
        real = size if step + 1 < batches else max(1, size - 1)
        gallery.sample(batch_of(size, real), torch.full((size, 3, 8, 8), float(step)))
    assert seen[0] == 0
    assert seen[-1] == batches - 1
    assert len(seen) == min(batches, COUNT)
    assert 1 <= len(gallery.pairs) <= COUNT
    gallery.save(tmp_path / "validation.png")
    assert (tmp_path / "validation.png").stat().st_size > 100


def test_nothing_seen_leaves_no_picture(tmp_path):
    Gallery(Segmentation(3), NAMES, 1).save(tmp_path / "validation.png")
    assert not list(tmp_path.iterdir())


def test_pairs_stand_side_by_side():
    from PIL import Image

    pairs = [(Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 12), "blue"))] * 4
    grid = side_by_side(pairs, columns=3)
    assert grid.width > 3 * 40
    pixels = np.asarray(grid)
    assert (pixels == (255, 0, 0)).all(axis=2).sum() == 4 * 200
    assert (pixels == (0, 0, 255)).all(axis=2).sum() == 4 * 240


def test_a_classification_is_said_in_words():
    task = Classification(3)
    (found,) = task.predict(torch.tensor([[0.0, 9.0, 0.0]]))
    assert task.format_prediction(found, NAMES).startswith("cat 100.0%, ground 0.0%")
    picture = task.draw(np.zeros((8, 8, 3), dtype=np.uint8), found, NAMES)
    assert picture.height > picture.width
    task.draw_truth(np.zeros((8, 8, 3), dtype=np.uint8), np.int64(1), NAMES)  # type: ignore[arg-type]
