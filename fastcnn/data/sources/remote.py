"""Read files from a remote store with DALI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import DataNode

SINGLE_SAMPLE: dict[str, Any] = {
    "batch_size": 1,
    "num_threads": 1,
    "device_id": None,
    "prefetch_queue_depth": 1,
}
"""Arguments of a pipeline for one sample."""


def error_cause(text: str) -> str:
    """Return the cause from DALI's multi-line error message."""
    _, found, rest = text.partition("encountered:")
    lines = [line.strip() for line in (rest if found else text).splitlines() if line.strip()]
    return lines[0] if lines else "cannot be decoded"


def read_remote(uri: str) -> bytes:
    """Read an object of `s3://` or `gs://`; RuntimeError with the cause if that fails."""
    try:
        pipeline = _one_file(iter([[np.frombuffer(uri.encode(), dtype=np.uint8)]]), **SINGLE_SAMPLE)
        pipeline.build()
        (content,) = pipeline.run()
    except RuntimeError as error:
        raise RuntimeError(error_cause(str(error))) from error
    return content.at(0).tobytes()


@pipeline_def
def _one_file(source: Iterator[Any]) -> DataNode:
    return fn.io.file.read(fn.external_source(source), dont_use_mmap=True)
