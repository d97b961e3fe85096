"""Outlines as masks: COCO's polygons and runs against pycocotools, LabelMe's shapes, sizes, bad ones."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastcnn.data.sources.dataset import Split
from fastcnn.data.sources.masks.outlines import (
    Outlines,
    Polygons,
    Region,
    pixels_region,
    polygon_regions,
    runs_region,
)
from fastcnn.data.targets import IGNORE, Masks
from small_masks import class_pixels, opened, picture, refusal
from small_sources import names

coco_mask = pytest.importorskip("pycocotools.mask")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def drawn(regions: list[Region | None], height: int, width: int) -> np.ndarray:
    size = np.array([[height, width]])
    found = [region for region in regions if region is not None]
    return Outlines.of([found], size, size, np.ones(1, dtype=np.uint8)).read(0)


# Drawing


@pytest.mark.parametrize("seed", range(20))
def test_polygons_cover_the_pixels_that_pycocotools_gives_them(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 90, 2).tolist()
    corners = [
        rng.uniform(-1, 1 + rng.choice([0.2, 1]) * np.array([width, height]), (int(rng.integers(3, 12)), 2))
        for _ in range(1 + seed % 3)
    ]
    runs = coco_mask.frPyObjects([part.ravel().tolist() for part in corners], height, width)
    expected = coco_mask.decode(coco_mask.merge(runs))
    (region,) = polygon_regions([Polygons(1, corners)], np.array([[height, width]]))
    assert not isinstance(region, str)
    assert (drawn([region], height, width) == expected).all()
    assert (region.area if region else 0) == expected.sum()


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_are_exact(compressed):
    rng = np.random.default_rng(0)
    pixels = rng.random((31, 47)) < 0.4
    runs: dict[str, Any] = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    if not compressed:
        flat = pixels.ravel(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *changes, flat.size]).tolist()
        runs = {"size": [31, 47], "counts": [0, *counts] if flat[0] else counts}
    elif isinstance(runs["counts"], bytes):
        runs["counts"] = runs["counts"].decode()  # as in JSON
    assert (drawn([runs_region(3, runs)], 31, 47) == 3 * pixels).all()


@pytest.mark.parametrize(
    "counts", [None, 5, [0.5, "1"], [-1, 1458], [1 << 60], "o" * 40, "\u1234", "0", b"0" * 9], ids=repr
)
def test_malformed_run_lengths_are_a_value_error(counts):
    with pytest.raises(ValueError):
        runs_region(3, {"size": [31, 47], "counts": counts})


def test_regions_far_from_the_origin_keep_their_place():
    pixels = np.zeros((50, 60), dtype=bool)
    pixels[40:48, 50:58] = np.random.default_rng(0).random((8, 8)) < 0.5
    region = pixels_region(2, pixels, (0, 0))
    assert region is not None
    assert region.bounds[2] <= 8 >= region.bounds[3]
    assert (drawn([region], 50, 60) == 2 * pixels).all()
    assert pixels_region(2, np.zeros((3, 3), dtype=bool), (0, 0)) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_and_scaled_as_their_images(orientation):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    regions = [pixels_region(int(v), stored == v, (0, 0)) for v in stored.ravel() if v]
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    image.save(data, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(data)))
    frame, size = np.array([[3, 4]]), np.array([upright.shape])
    found = [region for region in regions if region is not None]
    for factor in (1, 3):
        masks = Outlines.of([found], frame, factor * size, np.array([orientation], dtype=np.uint8))
        assert (masks.read(0) == upright.repeat(factor, 0).repeat(factor, 1)).all()


def test_taken_masks_are_those_of_the_indices():
    pixels = np.ones((2, 2), dtype=bool)
    regions = [[region] for v in range(5) if (region := pixels_region(v + 1, pixels, (0, 0)))]
    size = np.full((5, 2), 2)
    masks = Outlines.of(regions, size, size, np.ones(5, dtype=np.uint8))
    taken = masks.take(np.array([4, 1, 3])).take(np.array([2, 0]))
    assert [int(taken.read(i)[0, 0]) for i in (0, 1)] == [4, 5]


# COCO


def square(left: float, top: float, side: float) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def coco(
    root: Path,
    file: str,
    folder: str,
    outlines: list[list[Any]],
    size: tuple[int, int] = (40, 30),
    categories: tuple[str, ...] = ("cat", "dog"),
    stated: tuple[int, int] | None = None,
) -> None:
    """Write images and a COCO file; an outline is (category, segmentation, further fields)."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    width, height = stated or size
    for i, own in enumerate(outlines):
        picture(root / folder / f"{i}.jpg", size)
        images.append({"id": 10 + i, "file_name": f"{i}.jpg", "width": width, "height": height})
        for category, segmentation, fields in own:
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": 10 + i,
                    "category_id": category,
                    "segmentation": segmentation,
                    **fields,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3 + 4 * i, "name": name} for i, name in enumerate(categories)],
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))


PLAIN = ("annotations/instances_{}.json", "{}")
ONE: list[list[Any]] = [[(3, [square(2, 2, 10)], {})], [(7, [square(20, 10, 5)], {})]]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        PLAIN,
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "images/{}"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_coco_layouts_are_read(file, folder, root, wording):
    for phase in ("train", "val"):
        coco(root, file.format(phase), folder.format(phase), ONE)
    source = opened(root)
    assert source.class_names == ("background", "cat", "dog")
    assert class_pixels(source.train, 0) == class_pixels(source.val, 0) == {0: 1100, 1: 100}
    assert class_pixels(source.train, 1) == {0: 1175, 2: 25}
    for remark in source.remarks:
        wording(remark)


def test_cvats_single_file_is_read_with_a_share_and_its_test_split_is_held_out(root):
    coco(root, "annotations/instances_default.json", "images/default", ONE * 4)
    source = opened(root, val_split=0.25)
    assert (len(source.train), len(source.val), source.test) == (6, 2, None)
    for phase in ("train", "val", "test"):
        coco(root / "b", f"annotations/instances_{phase}.json", phase, ONE)
    test = opened(root / "b").test
    assert test is not None
    assert class_pixels(test, 1) == {0: 1175, 2: 25}


def test_a_category_named_background_is_class_0(root):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(
            root, file, folder, [[(3, [square(0, 0, 9)], {}), (11, [square(0, 0, 3)], {})]], categories=NAMES
        )
    source = opened(root)
    assert source.class_names == ("Background", "cat", "dog")
    assert class_pixels(source.train) == {0: 1191, 2: 9}


NAMES = ("Background", "cat", "dog")


def test_small_objects_lie_on_large_ones_and_crowds_whatever_their_order(root):
    crowd = {"size": [30, 40], "counts": [0, 1200]}
    own = [(7, [square(5, 5, 4)], {}), (3, [square(2, 2, 10)], {}), (7, crowd, {"iscrowd": 1})]
    for order, phase in ((own, "train"), (own[::-1], "val")):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [order])
    source = opened(root)
    assert class_pixels(source.train) == class_pixels(source.val) == {1: 84, 2: 1116}


def test_a_polygon_without_its_own_brackets_is_read(root):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, square(2, 2, 10), {})]])
    assert class_pixels(opened(root).train) == {0: 1100, 1: 100}


def test_holes_and_parts_of_one_object_are_one(root):
    parts = [square(2, 2, 10), square(20, 2, 10)]
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, parts, {})]])
    assert class_pixels(opened(root).train) == {0: 1000, 1: 200}


def rotated(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


@pytest.mark.parametrize(("stated", "expected"), [((30, 40), (2, 2)), ((40, 30), (18, 2))])
def test_outlines_of_upright_and_of_stored_images_are_both_read(stated, expected, root, wording):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, [square(2, 2, 10)], {})]], stated=stated)
        rotated(root / phase / "0.jpg", 6)
    source = opened(root)
    assert isinstance(source.train.annotations, Masks)
    mask = source.train.annotations.read(0)
    assert mask.shape == (40, 30)
    left, top = expected
    assert (np.argwhere(mask)[0] == (top, left)).all()
    assert mask.sum() == 100
    if stated == (40, 30):
        wording(source.remarks[0])


def test_a_rotation_that_no_size_shows_is_a_warning(root, wording):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, [square(2, 2, 10)], {})]])
        rotated(root / phase / "0.jpg", 3)
    source = opened(root)
    assert source.remarks[0].startswith("warning: ")
    wording(source.remarks[0])
    assert not any(remark.startswith("warning") for remark in opened(root, exif="ignore").remarks)


def test_outlines_of_another_size_of_the_same_shape_are_scaled_and_said(root, wording):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, [square(4, 4, 20)], {})]], stated=(80, 60))
    source = opened(root)
    assert class_pixels(source.train) == {0: 1100, 1: 100}
    wording(source.remarks[0])


def test_outlines_of_more_pixels_than_an_image_may_have_are_refused(root):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, [square(4, 4, 20)], {})]], stated=(40_000, 30_000))
    assert "outlines are for 40000 x 30000 pixels, but" in refusal(root)


def test_upright_outlines_of_images_that_stay_as_stored_are_refused_and_the_advice_works(root, wording):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, [square(2, 2, 10)], {})]], stated=(30, 40))
        rotated(root / phase / "0.jpg", 6)
    message = refusal(root, exif="ignore")
    assert "omit --exif ignore" in message
    wording(message)
    assert class_pixels(opened(root).train) == {0: 1100, 1: 100}


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "a polygon of two points": ([[1, 1, 5, 5]], {}),
    "an odd number of coordinates": ([[1, 1, 5, 5, 9]], {}),
    "numbers and words": ([["a", "b", "c", "d", "e", "f"]], {}),
    "infinity": ([[1, 1, 5, float("inf"), 9, 9]], {}),
    "no outline": ([], {"bbox": [1, 1, 5, 5]}),
    "beyond the border": ([square(20, 20, 30)], {}),
    "runs of another size": ({"size": [40, 30], "counts": [0, 1200]}, {}),
    "too few runs": ({"size": [30, 40], "counts": [0, 12]}, {}),
    "runs without a size": ({"counts": [0, 1200]}, {}),
    "negative runs": ({"size": [30, 40], "counts": [-100, 1300]}, {}),
    "damaged runs": ({"size": [30, 40], "counts": "zz"}, {}),
    "an unknown category": ([square(2, 2, 10)], {"category_id": 99}),
    "a category that is a list": ([square(2, 2, 10)], {"category_id": [3]}),
    "an image that is a list": ([square(2, 2, 10)], {"image_id": [10]}),
    "an unknown image": ([square(2, 2, 10)], {"image_id": 99}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_outline_is_named_and_its_image_can_be_left_out(kind, root, wording):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        outline, fields = BAD[kind]
        coco(root, file, folder, [*ONE, [(3, outline, fields)]])
    message = refusal(root)
    assert message.startswith(f"{root}/annotations/instances_train.json, annotation 102: ")
    wording(message)
    kept = ["0", "1", "2"] if "image" in kind else ["0", "1"]
    assert names(opened(root, skip=True).train) == kept


def test_a_file_of_boxes_alone_is_refused(root, wording):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, [], {"bbox": [1, 1, 5, 5]})]])
    wording(refusal(root))


def test_more_classes_than_masks_can_have_are_refused_and_fewer_work(root, wording):
    for count in (255, 254):
        for phase in ("train", "val"):
            file, folder = (part.format(phase) for part in PLAIN)
            last = 3 + 4 * (count - 1)
            categories = tuple(f"c{i}" for i in range(count))
            coco(root, file, folder, [[(last, [square(2, 2, 10)], {})]], categories=categories)
        if count == 255:
            wording(refusal(root))
    assert class_pixels(opened(root).train) == {0: 1100, 254: 100}


def test_categories_of_one_name_are_one_class(root):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, ONE, categories=("cat", "cat"))
    assert opened(root).class_names == ("background", "cat")


def test_a_test_file_without_annotations_is_not_used(root):
    for phase in ("train", "val", "test"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[], []] if phase == "test" else ONE)
    assert opened(root).test is None


def test_outlines_without_their_package_name_it(root, monkeypatch, wording):
    for phase in ("train", "val"):
        labelme(root / phase / "0.json", [shape("cat", CORNERS)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wording(refusal(root))


def test_mask_flags_do_not_apply_to_outlines(root, wording):
    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, ONE)
    wording(refusal(root, mask_values=(0, 1)))


# LabelMe


def labelme(path: Path, shapes: list[dict[str, Any]], size: tuple[int, int] = (40, 30)) -> None:
    picture(path.with_suffix(".jpg"), size)
    content = {
        "version": "5.4.1",
        "imagePath": path.with_suffix(".jpg").name,
        "imageWidth": size[0],
        "imageHeight": size[1],
        "shapes": shapes,
    }
    path.write_text(json.dumps(content))


def shape(label: str, points: list[list[float]], kind: str = "polygon", **fields: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **fields}


CORNERS: list[list[float]] = [[2, 2], [12, 2], [12, 12], [2, 12]]


def test_labelme_shapes_are_drawn_in_the_order_of_the_file(root):
    for phase in ("train", "val"):
        labelme(
            root / phase / "0.json",
            [
                shape("dog", CORNERS),
                shape("cat", [[12, 12], [7, 7]], "rectangle"),
                shape("cat", [[30, 15], [30, 20]], "circle"),
                shape("dog", [[1, 1]], "point"),
            ],
        )
    source = opened(root)
    assert source.class_names == ("background", "cat", "dog")
    pixels = class_pixels(source.train)
    assert pixels[2] == 75
    assert pixels[1] == pytest.approx(25 + np.pi * 25, abs=3)
    assert "points and lines skipped" in source.remarks[0]


def test_labelme_masks_and_its_names_of_background_and_ignored_pixels(root):
    data = io.BytesIO()
    Image.fromarray(np.eye(5) > 0).save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode()
    for phase in ("train", "val"):
        labelme(
            root / phase / "0.json",
            [
                shape("cat", CORNERS),
                shape("_background_", [[2, 2], [4, 4]], "rectangle"),
                shape("__ignore__", [[20, 20], [22, 22]], "rectangle"),
                shape("dog", [[30, 5], [34, 9]], "mask", mask=encoded),
            ],
        )
    (root / "labels.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    source = opened(root)
    assert source.class_names == ("_background_", "cat", "dog")
    assert class_pixels(source.train) == {0: 1200 - 96 - 4 - 5, 1: 96, 2: 5, IGNORE: 4}


def test_an_image_without_labelme_file_is_named_and_can_be_left_out(root, wording):
    for phase in ("train", "val"):
        labelme(root / phase / "0.json", [shape("cat", CORNERS)])
    picture(root / "train" / "1.jpg", (40, 30))
    message = refusal(root)
    assert message.startswith(f"{root}/train/1.jpg: ")
    wording(message)
    assert names(opened(root, skip=True).train) == ["0"]


@pytest.mark.parametrize(
    "bad",
    [
        shape("cat", [[1, 1], [2, 2]]),
        shape("", CORNERS),
        shape("cat", [[1, 1]], "circle"),
        shape("cat", [[38, 5], [42, 9]], "mask", mask="AAAA"),
        shape("cat", [[1, 1], [200, 1], [200, 200]]),
    ],
)
def test_a_bad_shape_is_named(bad, root):
    for phase in ("train", "val"):
        labelme(root / phase / "0.json", [shape("cat", CORNERS)])
        labelme(root / phase / "1.json", [shape("cat", CORNERS), bad])
    assert refusal(root).startswith(f"{root}/train/1.json, shape 2: ")
    assert names(opened(root, skip=True).train) == ["0"]


# Use


def test_batches_of_outlines_have_the_pixels_of_the_masks(root):
    from fastcnn.data.transforms.geometry import train_geometry
    from fastcnn.data.transforms.transform import Transform

    for phase in ("train", "val"):
        file, folder = (part.format(phase) for part in PLAIN)
        coco(root, file, folder, [[(3, [square(8, 8, 16)], {})]], size=(32, 32))
    split: Split = opened(root).train
    transform = Transform(size=32, train_crop="pad", hflip=0.0, crop_padding=0)
    geometry = train_geometry(transform, split.sizes, 0, 0, np.array([0]))
    assert isinstance(split.annotations, Masks)
    loaded = split.annotations.load(np.array([0]), geometry, 32)
    assert (loaded[0] == split.annotations.read(0)).all()
