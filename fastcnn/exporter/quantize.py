"""Static quantization of an ONNX file to int8, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastcnn import files
from fastcnn.exporter.formats import quiet
from fastcnn.inference.description import KEY, Description

CONVOLUTIONS = ["Conv", "Gemm", "MatMul"]
OTHERS = ["Relu", "Clip", "Add", "MaxPool", "GlobalAveragePool", "AveragePool", "ReduceMean"]
"""Operators between convolutions that have a form in int8."""


def quantize(content: bytes, description: Description, batches: Iterable[np.ndarray]) -> bytes:
    """Return an ONNX file with int8 weights and uint8 activations, in the form of QDQ.

    Weights have a scale for each channel; activations have one, from their range over the images.
    Decoding of boxes and normalization stay in fp32.

    Args:
        content: the file in fp32.
        description: of the quantized file.
        batches: calibration images, uint8 [N, C, H, W] each.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    detects = description.task == "detection"
    with tempfile.TemporaryDirectory() as name, quiet(), _without_log():
        folder = Path(name)
        source, prepared, result = (folder / f"{part}.onnx" for part in ("fp32", "prepared", "int8"))
        files.write_bytes(source, content, "the network")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(result),
            _Reader(batches),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,  # signed ones are slow on x86
            per_channel=True,
            op_types_to_quantize=CONVOLUTIONS if detects else CONVOLUTIONS + OTHERS,
            nodes_to_exclude=_before_first_convolution(onnx.load(prepared)),
        )
        proto = onnx.load(result)
    onnx.helper.set_model_props(proto, {KEY: description.to_json()})
    return proto.SerializeToString()


class _Reader:
    """Calibration images in the form of onnxruntime's `CalibrationDataReader`."""

    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.batches, None)
        return None if images is None else {"images": images}


def _before_first_convolution(proto: Any) -> list[str]:
    """Return the names of the nodes of the normalization."""
    names = []
    for node in proto.graph.node:
        if node.op_type in CONVOLUTIONS:
            break
        names.append(node.name)
    return names


@contextlib.contextmanager
def _without_log() -> Any:
    """Silence the advice that onnxruntime logs to the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
