"""`export`: build a file, open it in its own runtime, compare and time it beside PyTorch, and write it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from fastcnn import files
from fastcnn.config import Config
from fastcnn.config.parse import from_settings
from fastcnn.errors import UserError
from fastcnn.exporter import check
from fastcnn.exporter.comparison import Comparison
from fastcnn.exporter.formats import SUFFIXES, WRITERS, Format
from fastcnn.exporter.images import Images, open_images
from fastcnn.exporter.plain import with_plain_layers
from fastcnn.exporter.quantize import quantize
from fastcnn.exporter.result import Result
from fastcnn.inference.description import describe
from fastcnn.inference.exported import INSTALL, open_exported
from fastcnn.inference.trained import Trained, open_trained
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.runtime.environment import environment
from fastcnn.tasks.detection.task import Detection

TOLERANCE = 1e-4
"""Largest difference in fp32, relative to the largest output."""
MIN_AGREEMENT = 0.99
"""Least share of boxes that a file in fp32 must have in common with PyTorch."""
INT8: Final = "int8"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an export beside those of the data."""

    format: Format = "onnx"
    output: Path | None = None
    """The file; None: beside the checkpoint, such as best.onnx."""
    int8: bool = False
    images: int = 200
    """Maximum number of validation images to compare on."""
    calibration_images: int = 256
    """Maximum number of training images for the scales of int8."""
    tolerance: float = TOLERANCE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of the check, and the one that aoti compiles for."""


def export_with(checkpoint: str | Path, format: str, settings: dict[str, Any]) -> Result:
    """Export with Python keywords: fields of `Options`, and of `Config` for the data.

    Raises:
        UserError: as `export`, or an unknown setting.
    """
    if format not in WRITERS:
        raise UserError(f"format={format!r}: use {', '.join(WRITERS)}")
    names = {f.name for f in dataclasses.fields(Options)}
    own = {name: value for name, value in settings.items() if name in names}
    others = {name: value for name, value in settings.items() if name not in names}
    if own.get("output") is not None:
        own["output"] = Path(own["output"])
    own["device"] = choose_device(own.get("device", "cpu"), Ranks())
    return export(Path(checkpoint), Options(format=format, **own), from_settings(others), "fastcnn.export")


def export(path: Path, options: Options, flags: Config, source_flag: str = "fastcnn export") -> Result:
    """Write the network of a checkpoint to a file, and the figures of its check beside it.

    Args:
        flags: settings of the data; those that are not written are the checkpoint's.

    Raises:
        UserError: no such checkpoint or data, a package that is not installed, or a file whose outputs differ
            by more than the tolerance.
        WriteError: the file cannot be written.
    """
    if options.int8 and options.format != "onnx":
        raise UserError(f"--int8: for --format onnx, and this is {options.format}; omit one of them")
    trained = open_trained(path, source_flag, flags.arch if "arch" in flags.written else None)
    images = open_images(trained, flags)
    suffix = SUFFIXES[options.format]
    file = options.output or path.with_suffix(f".{INT8}{suffix}" if options.int8 else suffix)
    try:
        content = WRITERS[options.format](trained, options.device)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 is a difference of its own
        with tempfile.TemporaryDirectory() as folder, exact:
            return _checked(trained, images, content, options, Folders(Path(folder), file))
    except ImportError as error:
        raise UserError(f"--format {options.format}: needs packages: {INSTALL}") from error


@dataclass(frozen=True)
class Folders:
    """Place of files that are not checked yet, and the final file."""

    temporary: Path
    file: Path


def _checked(trained: Trained, images: Images, content: bytes, options: Options, places: Folders) -> Result:
    """Check the content of a file and write it under its name."""
    task = trained.build_task()
    candidate = places.temporary / f"model{SUFFIXES[options.format]}"
    files.write_bytes(candidate, content, "the exported file")
    calls = {check.EAGER: check.eager(trained, options.device)}
    calls[options.format] = _open(candidate, trained, options)
    if options.int8:
        description = dataclasses.replace(describe(trained), precision=INT8)
        calibration = images.batches(images.source.train, options.calibration_images)
        content = quantize(content, description, (b.images[b.mask].numpy() for b in calibration))
        candidate = places.temporary / f"{INT8}.onnx"
        files.write_bytes(candidate, content, "the exported file")
        calls[INT8] = _open(candidate, trained, options)
    batches = images.batches(images.source.val, options.images)
    comparisons, scores, seen = check.compare(calls, batches, trained, task)
    _limit(comparisons[options.format], options)

    # Files suppress boxes themselves.
    finish = task.predict if isinstance(task, Detection) else lambda outputs: outputs
    latency = check.measure(calls, seen, options.device, finish)
    comparison = comparisons[list(calls)[-1]]
    result = Result(
        file=places.file,
        bytes=len(content),
        format=options.format,
        precision=INT8 if options.int8 else "fp32",
        arch=trained.config.arch,
        images=len(seen),
        difference=comparison.difference,
        tolerance=None if options.int8 else options.tolerance,
        agreement=comparison.agreement,
        metric=task.best_metric,
        sides=check.sides(scores, latency),
        environment=environment(options.device),
    )
    with files.of_flag("--output"):
        files.write_bytes(places.file, content, "the exported file")
        files.write_text(result.json_file, json.dumps(result.to_plain(), indent=2) + "\n", "the figures")
    return result


def _open(path: Path, trained: Trained, options: Options) -> check.Call:
    """Open a file in its own runtime."""
    if options.format != "safetensors":
        return open_exported(path, "fastcnn export", device=options.device, trust_code=True)
    copy = with_plain_layers(trained)
    for value in copy.network.state_dict().values():
        value.zero_()
    copy.network.load_state_dict(safetensors.torch.load_file(path))
    return check.eager(copy, options.device)


def _limit(comparison: Comparison, options: Options) -> None:
    """Raise UserError if a file in fp32 differs from PyTorch."""
    difference, agreement = comparison.difference, comparison.agreement
    if difference <= options.tolerance and agreement >= MIN_AGREEMENT:  # also False for NaN
        return
    raise UserError(
        f"--format {options.format}: its outputs differ from PyTorch's by {difference:.1e} of the largest, "
        f"above the tolerance of {options.tolerance:g}, and {100 * agreement:.1f}% of the predictions are "
        "equal; nothing was written; use another --format"
    )
