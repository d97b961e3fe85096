"""Operators that the ONNX exporter of torch translates in another way, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcnn.tasks.detection.task import DUPLICATE_IOU, MIN_SCORE

BOOL = 9
"""Number of the type in ONNX."""

torch.library.define("fastcnn_export::suppress", "(Tensor boxes, Tensor scores) -> Tensor")


@torch.library.register_fake("fastcnn_export::suppress")
def _(boxes: Tensor, scores: Tensor) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def suppress_onnx(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Suppress by ONNX's operator, which keeps images and classes apart; works in traces alone."""
    classes = torch.arange(num_classes, device=boxes.device)[None, :, None]
    of_class = torch.where(labels[:, None] == classes, scores[:, None], 0)
    return torch.ops.fastcnn_export.suppress(boxes, of_class)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the translation of each operator, as of `torch.onnx.export`."""
    return {
        torch.ops.fastcnn_export.suppress.default: _suppress,
        torch.ops.aten.upsample_nearest2d.vec: _nearest,
    }


def _suppress(boxes: Any, scores: Any) -> Any:
    """Return the kept boxes, bool [N, K], for boxes [N, K, 4] and scores [N, C, K]."""
    from onnxscript import opset20 as op

    shape = op.Slice(op.Shape(boxes), _constant(0), _constant(2))
    limits = _constant(DUPLICATE_IOU, dtype=np.float32), _constant(MIN_SCORE, dtype=np.float32)
    chosen = op.NonMaxSuppression(boxes, scores, op.Slice(shape, _constant(1), _constant(2)), *limits)
    places = op.Gather(chosen, _constant(0, 2), axis=1)  # image and box, without the class
    ones = op.Expand(_constant(1), op.Slice(op.Shape(places), _constant(0), _constant(1)))
    return op.Cast(op.ScatterND(op.Expand(_constant(0), shape), places, ones), to=BOOL)


def _nearest(input: Any, output_size: Any, scale_factors: Any = None) -> Any:
    """Return nearest neighbors by whole factors as a Resize, else by the indices of PyTorch.

    ONNX Runtime rounds others to another neighbor: of 14 pixels to 32, it takes 6 for the 16th, not 7.
    """
    from onnxscript import opset20 as op

    before = [int(side) for side in input.shape[2:]]
    after = [int(side) for side in output_size] if output_size is not None else None
    after = after or [int(side * factor) for side, factor in zip(before, scale_factors)]
    if all(large % small == 0 for small, large in zip(before, after)):
        scales = [1, 1, *(large // small for small, large in zip(before, after))]
        return op.Resize(
            input,
            None,
            _constant(*scales, dtype=np.float32),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    for axis, (small, large) in enumerate(zip(before, after), start=2):
        scale = np.float32(small) / np.float32(large)
        nearest = (np.arange(large, dtype=np.float32) * scale).astype(np.int64).clip(max=small - 1)
        input = op.Gather(input, _constant(*nearest.tolist()), axis=axis)
    return input


def _constant(*values: float, dtype: type = np.int64) -> Any:
    import onnx
    from onnxscript import opset20 as op

    return op.Constant(value=onnx.numpy_helper.from_array(np.array(values, dtype=dtype)))
