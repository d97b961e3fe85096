"""Average precision against pycocotools."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fastcnn.tasks.detection.average_precision import mean_average_precision

pytest.importorskip("faster_coco_eval")
COCO = pytest.importorskip("pycocotools.coco").COCO
COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval


def random_case(
    seed: int, classes: int = 3, crowds: float = 0.2
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions near truths, duplicates and strays, in ten images, some of them empty."""
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(10):
        count = int(rng.integers(0, 6))
        corner, sides = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2))
        label, crowd = rng.integers(0, classes, count), rng.random(count) < crowds
        rows = np.column_stack([label, corner, corner + sides, crowd])
        near = rows[rng.integers(0, count, 2 * count)] if count else rows
        near = near + np.array([0, 1, 1, 1, 1, 0]) * rng.normal(0, 3, near.shape)
        corner = rng.uniform(0, 60, (4, 2))
        strays = np.column_stack([rng.integers(0, classes + 1, 4), corner, corner + 20, np.zeros(4)])
        guesses = np.concatenate([near, strays]).astype(np.float32)
        guesses[:, 5] = rng.permutation(len(guesses)) / len(guesses) + rng.random() * 0.01
        found.append(guesses)
        truths.append(rows.astype(np.float32))
    return found, truths


def pycocotools(found: list[np.ndarray], truths: list[np.ndarray]) -> tuple[float, float]:
    annotations: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for i in range(len(truths)):
        for label, left, top, right, bottom, crowd in truths[i].tolist():
            box = [left, top, right - left, bottom - top]
            annotation = {"id": len(annotations) + 1, "image_id": i, "category_id": int(label), "bbox": box}
            annotations.append({**annotation, "area": box[2] * box[3], "iscrowd": int(crowd)})
        for label, left, top, right, bottom, score in found[i].tolist():
            box = [left, top, right - left, bottom - top]
            results.append({"image_id": i, "category_id": int(label), "bbox": box, "score": score})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(truths))],
        "annotations": annotations,
        "categories": [{"id": label} for label in range(10)],
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * evaluation.stats[0], 100 * evaluation.stats[1]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_that_of_pycocotools(seed):
    found, truths = random_case(seed, classes=1 + seed % 4, crowds=0.3 * (seed % 2))
    expected = pycocotools(found, truths)
    assert 5 < expected[0] < expected[1] < 100
    assert mean_average_precision(found, truths) == pytest.approx(expected, abs=1e-9)


def test_what_is_found_exactly_is_all_and_a_crowd_need_not_be():
    truths = [np.array([[2, 0, 0, 10, 10, 0], [2, 40, 40, 60, 60, 1], [5, 20, 20, 30, 30, 1]], np.float32)]
    found = [np.array([[2, 0, 0, 10, 10, 0.5], [2, 41, 41, 50, 50, 0.9]], np.float32)]
    assert mean_average_precision(found, truths) == (100, 100)


@pytest.mark.parametrize("crowd", [None, 1])
def test_without_a_truth_it_is_0(crowd):
    rows = np.array([[0, 1, 1, 9, 9, 1]], np.float32)[: 1 if crowd else 0]
    assert mean_average_precision([rows], [rows]) == (0, 0)
    assert mean_average_precision([], []) == (0, 0)


def test_without_a_prediction_it_is_0():
    truths = [np.array([[0, 1, 1, 9, 9, 0]], np.float32)]
    assert mean_average_precision([np.zeros((0, 6), np.float32)], truths) == (0, 0)


def test_nothing_is_printed(capfd, caplog):
    caplog.set_level(logging.DEBUG)
    mean_average_precision(*random_case(0))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
