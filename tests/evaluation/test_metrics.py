"""Metrics of the judges against scikit-learn and pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastcnn.data.mask_files import MaskArrays
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.data.targets import IGNORE, Boxes, Masks, MultiLabels, move_boxes
from fastcnn.data.transforms.geometry import eval_geometry
from fastcnn.data.transforms.transform import Transform
from fastcnn.evaluation.classification import (
    calibration,
    calibration_error,
    confusion_matrix,
    mean_over_classes,
    most_confused,
    scores_of_classes,
)
from fastcnn.evaluation.detection import SIZES, average, evaluate_boxes, in_whole_image
from fastcnn.evaluation.figures import confusion as draw_confusion
from fastcnn.evaluation.segmentation import image_ious
from fastcnn.inference.classes import with_numbers_of

NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def labels() -> tuple[np.ndarray, np.ndarray]:
    """Truths without class g, and predictions without class b."""
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 6, 500)
    predicted = np.where(rng.random(500) < 0.6, truths, rng.integers(0, 7, 500))
    return truths, np.where(predicted == 1, 2, predicted)


def test_scores_of_classes_are_those_of_scikit_learn(labels):
    metrics = pytest.importorskip("sklearn.metrics")
    truths, predicted = labels
    confusion = confusion_matrix(truths, predicted, 7)
    assert (confusion == metrics.confusion_matrix(*labels, labels=range(7))).all()
    expected = metrics.precision_recall_fscore_support(*labels, labels=range(7), zero_division=np.nan)
    found = scores_of_classes(confusion, NAMES)
    for key, values in zip(("precision", "recall", "f1", "count"), expected):
        scale = 1 if key == "count" else 100
        ours = [np.nan if row[key] is None else row[key] for row in found]
        np.testing.assert_allclose(ours, scale * values, rtol=1e-14)
    means = metrics.precision_recall_fscore_support(
        *labels, labels=range(6), average="macro", zero_division=0
    )
    means_found = mean_over_classes(found, ("precision", "recall", "f1"))
    assert list(means_found.values()) == pytest.approx([100 * value for value in means[:3]], rel=1e-14)


def test_the_pairs_confused_most_come_first_with_their_share_of_the_truth():
    confusion = np.array([[5, 1, 4], [0, 10, 0], [2, 0, 0]])
    assert most_confused(confusion, NAMES[:3]) == [
        {"truth": "a", "prediction": "c", "count": 4, "share": 40.0},
        {"truth": "c", "prediction": "a", "count": 2, "share": 100.0},
        {"truth": "a", "prediction": "b", "count": 1, "share": 10.0},
    ]


def test_calibration_is_that_of_scikit_learn():
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    rng = np.random.default_rng(0)
    confidences = np.append(rng.random(400) ** 0.3, [0.2, 1 / 3, 1.0])
    correct = rng.random(403) < confidences**2
    bins = [row for row in calibration(confidences, correct) if row["count"]]
    accuracy, confidence = curve(correct, confidences, n_bins=15)
    np.testing.assert_allclose([row["accuracy"] for row in bins], accuracy, rtol=1e-12)
    np.testing.assert_allclose([row["confidence"] for row in bins], confidence, rtol=1e-12)
    counts = np.array([row["count"] for row in bins])
    expected = 100 * (counts / 403 * abs(accuracy - confidence)).sum()
    assert 5 < expected == pytest.approx(calibration_error(calibration(confidences, correct)), rel=1e-12)


def test_an_images_iou_is_the_mean_over_its_classes():
    counts = np.array([[[4, 2, 0], [3, 2, 1], [3, 1, 0]], [[0, 0, 0]] * 3], dtype=np.int32)
    first, second = image_ious(counts).tolist()
    assert first == pytest.approx(100 * (3 / 4 + 1 / 3 + 0) / 3)
    assert np.isnan(second)


@pytest.mark.parametrize("size", [(40, 90), (200, 30), (64, 64)])
@pytest.mark.parametrize("mode", ["border", "center"])
def test_boxes_return_to_the_whole_image(size, mode):
    transform = Transform(size=64, channels=3, train_crop="random-resized", crop_pct=0.875, crop_mode=mode)
    middle = np.array([size[1], size[0], size[1], size[0]]) / 2
    boxes = np.array([[3, *(middle + [-7, -5, 9, 6]), 0]], dtype=np.float32)
    geometry = eval_geometry(transform, np.array([size]))
    moved = move_boxes(boxes, geometry, 0, 64)
    np.testing.assert_allclose(in_whole_image(moved, transform, np.array(size)), boxes, atol=1e-3)


def random_boxes(seed: int, classes: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions near truths of all sizes, duplicates and strays; the last class is rare."""
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for i in range(12):
        count = int(rng.integers(0, 7))
        corner, sides = rng.uniform(0, 200, (count, 2)), rng.choice([20, 60, 150], (count, 1))
        label, crowd = rng.integers(0, classes - (i > 0), count), rng.random(count) < 0.15
        rows = np.column_stack([label, corner, corner + sides * rng.uniform(0.8, 1.2, (count, 2)), crowd])
        near = rows[rng.integers(0, count, 2 * count)] if count else rows
        near = near + np.array([0, 1, 1, 1, 1, 0]) * rng.normal(0, 3, near.shape)
        near[:, 5] = rng.random(len(near))
        predictions.append(near)
        truths.append(rows)
    return predictions, truths


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_sizes_and_classes_is_that_of_pycocotools(seed, capfd):
    coco = pytest.importorskip("pycocotools.coco").COCO
    evaluation_of = pytest.importorskip("pycocotools.cocoeval").COCOeval
    predictions, truths = random_boxes(seed)

    def annotations(images, last):
        return [
            {
                "id": 100 * i + k + 1,
                "image_id": i,
                "category_id": int(row[0]),
                "bbox": [row[1], row[2], row[3] - row[1], row[4] - row[2]],
                "area": (row[3] - row[1]) * (row[4] - row[2]),
                "iscrowd": 0,
                last: row[5] if last == "score" else int(row[5]),
            }
            for i, rows in enumerate(images)
            for k, row in enumerate(rows.tolist())
        ]

    theirs = coco()
    theirs.dataset = {
        "images": [{"id": i} for i in range(len(truths))],
        "categories": [{"id": i} for i in range(5)],
        "annotations": annotations(truths, "iscrowd"),
    }
    theirs.createIndex()
    evaluation = evaluation_of(theirs, theirs.loadRes(annotations(predictions, "score")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision, recall = evaluate_boxes(predictions, truths, 5)
    np.testing.assert_allclose(precision, evaluation.eval["precision"][..., -1], atol=1e-12)
    np.testing.assert_allclose(recall, evaluation.eval["recall"], atol=1e-12)
    stats = [average(precision[:, :, :, i]) for i in range(len(SIZES))]
    assert stats == pytest.approx([100 * evaluation.stats[i] for i in (0, 3, 4, 5)])
    assert average(precision[:, :, 4, 0]) is None  # a class without boxes


@pytest.mark.parametrize("count", [2, 40, 200, 1500])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(count):
    confusion = np.eye(count, dtype=np.int64) * 7
    confusion[0, 1] = 3
    figure = draw_confusion(confusion, [f"a class of a long name, {i}" for i in range(count)])
    (axes,) = figure.axes
    pixels = axes.images[0].get_array()
    assert len(pixels) == (count if count <= 1000 else count // 2)
    assert max(figure.get_size_inches()) <= 20
    assert len(axes.texts) == (3 if count == 2 else 0)
    assert pixels[0, 0, 2] > pixels[0, 0, 0]  # blue
    if count <= 1000:
        assert pixels[0, 1, 0] > pixels[0, 1, 2]  # red


def test_classes_get_the_numbers_of_the_network_in_targets_of_every_kind():
    rows = np.array([[1, 0, 0, 9, 9, 0], [0, 1, 1, 5, 5, 1]], dtype=np.float32)
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[[0, 100]] = 0, 1
    targets: dict[str, Any] = {
        "labels": None,
        "several": MultiLabels(np.array([[1, 0], [0, 1]], dtype=np.uint8)),
        "masks": Masks(table, MaskArrays([np.array([[0, 100], [7, 100]], dtype=np.uint8)] * 2)),
        "boxes": Boxes(np.array([0, 1, 2]), rows),
    }
    found: dict[str, Any] = {}
    for kind, target in targets.items():
        split = Split(np.array([0, 1]), annotations=target)
        source = Source(name="small", train=split, val=split, class_names=("dog", "cat"))
        found[kind] = with_numbers_of(source, ("ant", "cat", "dog"), data="small", file="best.pt").val
    assert found["labels"].labels.tolist() == [2, 1]
    assert found["several"].annotations.values.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert found["masks"].annotations.read(0).tolist() == [[2, 1], [IGNORE, 1]]
    assert found["boxes"].annotations.values[:, 0].tolist() == [1, 2]
    assert rows[:, 0].tolist() == [1, 0]  # the data itself stays
    with pytest.raises(ValueError, match="small: its classes are not those of best.pt: no dog among ant"):
        with_numbers_of(source, ("ant", "cat"), data="small", file="best.pt")
