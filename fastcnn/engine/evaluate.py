"""Evaluation over a validation loader."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from fastcnn.data.batch import Batch
from fastcnn.data.loaders.base import Loader
from fastcnn.engine.state import TrainState
from fastcnn.engine.tta import mean_over_views
from fastcnn.runtime.distributed import average_buffers, sum_over_ranks
from fastcnn.tasks.base import Task
from fastcnn.tasks.metrics import Metrics


def evaluate_batch(state: TrainState, task: Task, batch: Batch, metrics: Metrics) -> object:
    """Add a batch to the metrics of a validation, and return the outputs."""
    with state.autocast():
        outputs = mean_over_views(state.eval_model, batch.images, state.options.tta)
        loss = task.loss(outputs, batch, train=False)
    metrics.update(loss, outputs, batch)
    return outputs


@torch.no_grad()
def evaluate(
    state: TrainState, task: Task, loader: Loader, on_batch: Callable[[Batch, object], None] | None = None
) -> dict[str, float]:
    """Return the task's metrics over every decodable sample of `loader`, once, over all ranks.

    Uses the moving average of the weights if there is one, and test-time augmentation by `state.options.tta`.
    All ranks call it.

    Args:
        on_batch: called with each batch and its outputs.

    Returns:
        The metrics, "samples" with their number, and "bad" with the number of undecodable samples.
    """
    fixed = state.frozen.buffers() if state.frozen is not None else []
    average_buffers(state.network, fixed)
    metrics = task.metrics(state.device, train=False)
    state.eval_model.eval()
    with state.ema.swapped_in() if state.ema is not None else nullcontext():
        if state.ema is not None:
            average_buffers(state.network, fixed)
        for batch in loader:
            outputs = evaluate_batch(state, task, batch, metrics)
            if on_batch is not None:
                on_batch(batch, outputs)
    result = metrics.compute()
    samples = int(result.pop("samples"))
    (bad,) = sum_over_ranks([loader.skipped], state.device)
    assert samples + bad == loader.num_samples, f"validated {samples} + {bad} of {loader.num_samples}"
    return {**result, "samples": samples, "bad": bad}
