"""The task: boxes without duplicates, metrics over ranks, steps that do not wait, networks that learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import worker_two_detectors
from fastcnn.config import OptimizerSettings
from fastcnn.data.batch import Batch
from fastcnn.engine.state import TrainState, build_state
from fastcnn.engine.step import train_step
from fastcnn.models import build
from fastcnn.models.yolo import AnchorOutputs, GridOutputs
from fastcnn.optim.build import build_optimizer
from fastcnn.optim.schedules import Schedule
from fastcnn.tasks.detection.task import Detection, best_boxes
from networks import each
from ranks import run_ranks
from training import forbid_waiting
from worker_two_detectors import validate

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "yolo/resnet20": {"strides": (2, 4), "anchors": (12, 12, 24, 24, 24, 40, 40, 24)},
    "yolov1/resnet20": {"strides": (4,)},
}


def two_images() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    targets = torch.zeros(2, 3, 6)
    targets[..., 0] = -1
    targets[0, 0] = torch.tensor([0, 5, 5, 30, 30, 0])
    targets[0, 1] = torch.tensor([1, 20, 2, 31, 16, 0])
    targets[1, 0] = torch.tensor([2, 10, 3, 20, 30, 0])
    targets[1, 1] = torch.tensor([0, 0, 0, 6, 6, 1])
    return Batch(images.permute(0, 3, 1, 2), targets, torch.ones(2, dtype=torch.bool))


def state_of(arch: str, lr: float = 2e-3) -> TrainState:
    torch.manual_seed(0)
    network = build(arch, 3, **NETWORKS[arch])
    optimizer = build_optimizer(network, OptimizerSettings(opt="adamw", weight_decay=0.0), lr=lr)
    schedule = Schedule(peak=lr, steps_per_epoch=5, epochs=2, kind="constant")
    return build_state(network, optimizer, schedule, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("arch", each(NETWORKS, []))
def test_a_network_learns_two_images_by_heart(arch):
    state, task, batch = state_of(arch), Detection(3), two_images()
    training = task.metrics(CPU, train=True)
    for _ in range(60):
        training.reset()
        train_step(state, task, [batch], training)
    assert set(training.compute()) == {"samples", "loss"}
    metrics = task.metrics(CPU, train=False)
    state.eval_model.eval()
    with torch.no_grad():
        outputs = state.eval_model(batch.images)
        metrics.update(task.loss(outputs, batch, train=False), outputs, batch)
    result = metrics.compute()
    assert result["samples"] == 2
    assert result["map50"] > 90
    assert result["map"] > 50
    for found, targets in zip(task.predict(outputs), batch.targets.numpy()):
        best = {int(row[0]): row for row in found[::-1]}
        for label, *corners, crowd in targets.tolist():
            if label >= 0 and not crowd:
                np.testing.assert_allclose(best[label][1:5], corners, atol=4)


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_step_asks_nothing_of_the_device(arch, monkeypatch):
    state, task, batch = state_of(arch), Detection(3), two_images()
    metrics = task.metrics(CPU, train=True)
    train_step(state, task, [batch], metrics)
    forbid_waiting(monkeypatch)
    train_step(state, task, [batch], metrics)


@pytest.mark.parametrize("arch", NETWORKS)
def test_nothing_within_torch_asks_the_device_for_a_number_or_a_size(arch):
    task, batch = Detection(3), two_images()
    outputs = build(arch, 3, **NETWORKS[arch])(batch.images.float())
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        loss = task.loss(outputs, batch, train=True)
        loss.backward()
    operations = {event.name for event in seen.events()}
    assert "aten::sigmoid" in operations or arch.startswith("yolov1")
    questions = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
    assert not operations & set(questions)


@pytest.mark.parametrize("kind", ["anchors", "grid"])
def test_predictions_are_the_best_first_within_the_image_and_of_the_right_shape(kind):
    torch.manual_seed(0)
    if kind == "grid":
        outputs: object = GridOutputs(torch.randn(3, 7, 7, 13), (40, 60))
    else:
        cells = torch.cat([torch.rand(500, 2) * 5, torch.tensor([[8.0, 30, 20]]).expand(500, 3)], 1)
        outputs = AnchorOutputs(torch.randn(3, 500, 8), cells, ((10, 50),), (40, 60))
    predictions = Detection(3).predict(outputs)
    assert len(predictions) == 3
    for rows in predictions:
        assert rows.dtype == np.float32
        assert rows.shape[1] == 6
        assert 0 < len(rows) <= 100
        assert (np.diff(rows[:, 5]) <= 0).all()
        assert rows[:, 5].min() > 0.01
        assert (rows[:, 1:5] >= 0).all()
        assert (rows[:, 1:5] <= [60, 40, 60, 40]).all()
        assert set(rows[:, 0]) <= {0, 1, 2}


def test_duplicates_go_within_a_class_and_an_image():
    box = torch.tensor([10.0, 10, 20, 20])
    boxes = torch.stack([box, box + 1, box + 30, torch.tensor([-9.0, -9, 9, 9])]).expand(3, -1, -1)
    scores = torch.zeros(3, 4, 2)
    scores[0, :, 0] = torch.tensor([0.5, 0.9, 0.3, 0.005])  # the second hides the first, the last is too poor
    scores[1, 0, 0], scores[1, 1, 1] = 0.5, 0.9  # of different classes
    scores[1, 3, 0] = 0.2
    first, second, third = best_boxes(boxes, scores, (50, 50))
    np.testing.assert_allclose(first, [[0, 11, 11, 21, 21, 0.9], [0, 40, 40, 50, 50, 0.3]])
    np.testing.assert_allclose(
        second, [[1, 11, 11, 21, 21, 0.9], [0, 10, 10, 20, 20, 0.5], [0, 0, 0, 9, 9, 0.2]]
    )
    assert third.shape == (0, 6)


def test_what_an_image_is_given_does_not_depend_on_the_others():
    """To the last bit, in a batch so large that suppression goes class by class, and in a small one."""
    torch.manual_seed(0)
    corner = torch.rand(12, 200, 2) * 80
    boxes, scores = torch.cat([corner, corner + 20 * torch.rand(12, 200, 2)], 2), torch.rand(12, 200, 5)
    together = best_boxes(boxes, scores, (100, 100))
    for i in range(12):
        (alone,) = best_boxes(boxes[i : i + 1], scores[i : i + 1], (100, 100))
        assert np.array_equal(together[i], alone)


def test_padded_samples_count_for_nothing():
    task, outputs = Detection(2), GridOutputs(torch.rand(2, 3, 3, 12), (32, 32))
    targets = torch.tensor([[[0, 4, 4, 20, 20, 0]], [[1, 2, 2, 9, 9, 0]]], dtype=torch.float32)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    masked = task.metrics(CPU, train=False)
    batch = Batch(images, targets, torch.tensor([True, False]))
    masked.update(task.loss(outputs, batch, train=False), outputs, batch)
    alone = task.metrics(CPU, train=False)
    batch = Batch(*(x[:1] for x in batch[:3]))
    outputs = outputs._replace(raw=outputs.raw[:1])
    alone.update(task.loss(outputs, batch, train=False), outputs, batch)
    assert masked.compute() == alone.compute()
    assert alone.compute()["samples"] == 1
    alone.reset()
    assert alone.compute() == {"samples": 0, "loss": 0, "map": 0, "map50": 0}


@pytest.mark.slow
def test_two_processes_give_the_same_precision_as_one():
    found = run_ranks(worker_two_detectors.results)
    one = validate(0, 1, batch_size=3)
    assert 1 < one["map"] < one["map50"] < 99
    for result in found:
        assert {name: result[name] for name in ("samples", "map", "map50")} == {
            name: one[name] for name in ("samples", "map", "map50")
        }
        assert result["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_metrics_read_as_a_line():
    task = Detection(2)
    assert task.best_metric == "map"
    assert task.describe({"loss": 1.2341, "map": 60.21, "map50": 85.14}) == (
        "loss 1.234  map50 85.1%  map 60.2%"
    )
    assert task.describe({"loss": 1.2341}) == "loss 1.234"
