"""The check of an exported file: outputs and speed beside eager PyTorch's, on validation images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fastcnn.bench.timing import in_turn, summary, wait_for
from fastcnn.data.batch import Batch
from fastcnn.exporter.comparison import Comparison
from fastcnn.exporter.result import Side
from fastcnn.inference.trained import Trained
from fastcnn.models.base import logits_of
from fastcnn.tasks.base import Task

Call = Callable[[Tensor], object]
"""uint8 images on the CPU -> outputs that `Task.predict` takes."""
EAGER = "eager"
BATCHES = 1, 32
"""Batch sizes of the latency measurement."""
SECONDS = 6.0
"""Time of the latency measurement, about."""
ROUNDS = 5, 100
"""Fewest and most calls of each kind."""


def eager(trained: Trained, device: torch.device) -> Call:
    """Return the network in PyTorch."""
    model = trained.normalized(device)

    @torch.inference_mode()
    def call(images: Tensor) -> object:
        return model(images.to(device))

    return call


def compare(
    calls: Mapping[str, Call], batches: Iterable[Batch], trained: Trained, task: Task
) -> tuple[dict[str, Comparison], dict[str, float], Tensor]:
    """Compare all sides with the eager one.

    Args:
        batches: at least one.

    Returns:
        The comparison of each other side; the metric of each side, in percent; and the compared images.
    """
    cpu = torch.device("cpu")
    comparisons = {name: Comparison(multi_label=trained.multi_label) for name in calls if name != EAGER}
    metrics = {name: task.metrics(cpu, train=False) for name in calls}
    seen = []
    for batch in batches:
        images, targets = batch.images[batch.mask], batch.targets[batch.mask]
        seen.append(images)
        real = Batch(images, targets, torch.ones(len(images), dtype=torch.bool))
        outputs = {name: _on_cpu(call(images)) for name, call in calls.items()}
        for name, values in outputs.items():
            metrics[name].update(torch.zeros(()), values, real)
        for name, comparison in comparisons.items():
            _add(comparison, outputs[EAGER], outputs[name], task, trained.size)
    scores = {name: metric.compute()[task.best_metric] for name, metric in metrics.items()}
    return comparisons, scores, torch.cat(seen)


def _add(comparison: Comparison, expected: object, found: object, task: Task, size: int) -> None:
    if isinstance(logits_of(expected), Tensor) and isinstance(found, Tensor):
        comparison.add_logits(logits_of(expected), found)
        return
    for rows, others in zip(task.predict(expected), task.predict(found), strict=True):
        comparison.add_boxes(rows, others, size)


def _on_cpu(outputs: object) -> object:
    """Copy the tensors of outputs to the CPU."""
    if isinstance(outputs, Tensor):
        return outputs.cpu()
    assert isinstance(outputs, tuple)
    values = [value.cpu() if isinstance(value, Tensor) else value for value in outputs]
    return type(outputs)(*values)


def measure(
    calls: Mapping[str, Call], images: Tensor, device: torch.device, finish: Callable[[object], object]
) -> dict[str, dict[int, dict[str, float]]]:
    """Time all sides in turn, for each of `BATCHES`.

    Args:
        finish: part of the work that files do themselves, and PyTorch does not: suppression.
        images: uint8 [N, C, H, W], repeated for the larger batches.

    Returns:
        `summary` of the seconds of a call, by side and batch size.
    """
    repeated = images[torch.arange(max(BATCHES)) % len(images)]

    def timed(call: Call, count: int) -> float:
        start = time.perf_counter()
        finish(call(repeated[:count]))
        wait_for(device)
        return time.perf_counter() - start

    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in calls}
    for count in BATCHES:
        turns = {name: lambda call=call, count=count: timed(call, count) for name, call in calls.items()}
        first = in_turn(turns, rounds=1, warmup=1)
        once = sum(seconds for times in first.values() for seconds in times)
        rounds = int(min(max(SECONDS / len(BATCHES) / once, ROUNDS[0]), ROUNDS[1]))
        for name, seconds in in_turn(turns, rounds=rounds, warmup=0).items():
            found[name][count] = summary(seconds)
    return found


def sides(
    scores: Mapping[str, float], latency: Mapping[str, dict[int, dict[str, float]]]
) -> tuple[Side, ...]:
    """Return a row for each side."""
    return tuple(Side(name, score, latency[name]) for name, score in scores.items())
