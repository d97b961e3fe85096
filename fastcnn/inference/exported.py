"""`Exported`: a file of `fastcnn export`, ready to use, with the interface of `Trained`."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastcnn.data.transforms.transform import Transform
from fastcnn.errors import UserError
from fastcnn.inference.description import KEY, MAX_BYTES, Description, parse_description
from fastcnn.runtime.machine import is_out_of_memory
from fastcnn.runtime.tensor_file import check_regular
from fastcnn.tasks.base import Task
from fastcnn.tasks.detection.task import FixedBoxes

Run = Callable[[Tensor], tuple[Tensor, ...]]
"""uint8 images [N, C, H, W] -> the file's outputs."""

SUFFIXES = (".onnx", ".pt2")
"""Suffixes of exported files that run by themselves."""
INSTALL = 'pip install "fastcnn[export]"'


class Exported:
    """An exported network: a callable with the attributes of `Trained` that predictions need.

        exported = open_exported(Path("best.onnx"), "fastcnn predict")
        predictions = exported.build_task().predict(exported(images))

    Args:
        path: its file, for messages.
        run: the file in its runtime.
        device: place of its outputs; images may be anywhere.
    """

    def __init__(self, path: Path, description: Description, run: Run, device: torch.device) -> None:
        self.path = path
        self.description = description
        self.run = run
        self.device = device

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.description.size

    @property
    def channels(self) -> int:
        return self.description.channels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.description.class_names

    @property
    def task_name(self) -> str:
        """classification, segmentation or detection"""
        return self.description.task

    @property
    def multi_label(self) -> bool:
        """An image may have several classes, or none."""
        return self.description.multi_label

    @property
    def exif(self) -> Literal["upright", "ignore"]:
        """Treatment of the EXIF orientation of images."""
        return self.description.exif

    @property
    def levels(self) -> tuple[float, float] | Literal["auto"]:
        """Values that become 0 and 255 in images of more than 8 bits; "auto": those of each file."""
        return self.description.levels

    @property
    def transform(self) -> Transform:
        """Transform of the validation."""
        return self.description.transform

    def build_task(self) -> Task:
        """Build the task that turns the outputs of a call into predictions."""
        return self.description.build_task()

    def __call__(self, images: Tensor) -> Tensor | FixedBoxes:
        """Return the outputs for uint8 images [N, C, H, W] of any N; `Task.predict` takes them.

        Logits [N, classes] of classification, logits [N, classes, h, w] of segmentation, `FixedBoxes` of
        detection.

        Raises:
            UserError: images of another size or number of channels, or a file that fails on them or returns
                something else.
        """
        shape = self.channels, self.size, self.size
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise UserError(
                f"{self.path}: takes uint8 images [N, {', '.join(map(str, shape))}], and these are "
                f"{images.dtype} {list(images.shape)}"
            )
        try:
            outputs = self.run(images)
        except Exception as error:  # of any class
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.path}: its network fails on these images ({type(error).__name__}); use another file"
            ) from error
        if not self._fits(outputs, len(images)):
            raise UserError(f"{self.path}: its outputs do not fit its metadata; use another file")
        return FixedBoxes(*outputs) if self.task_name == "detection" else outputs[0]

    def _fits(self, outputs: tuple[Tensor, ...], count: int) -> bool:
        """Return whether outputs for `count` images have the shapes and ranges of their task."""
        classes = len(self.class_names)
        if self.task_name != "detection":
            (logits,) = outputs
            axes = 4 if self.task_name == "segmentation" else 2
            whole = tuple(logits.shape[:2]) == (count, classes) and logits.ndim == axes and logits.numel() > 0
            return whole and logits.is_floating_point()
        _, scores, labels, counts = outputs
        rows = scores.shape[-1]
        shapes = [tuple(output.shape) for output in outputs]
        if shapes != [(count, rows, 4), (count, rows), (count, rows), (count,)]:
            return False
        return bool(((0 <= labels) & (labels < classes)).all() and ((0 <= counts) & (counts <= rows)).all())


def is_exported(path: Path) -> bool:
    """Return whether a path is one of an exported file, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def open_exported(
    path: Path,
    source_flag: str,
    *,
    device: torch.device | None = None,
    trust_code: bool = False,
) -> Exported:
    """Open a file of `fastcnn export` of the formats onnx, pt2 and aoti in its runtime.

    Nothing of the file runs before `trust_code` is checked: the description is read from the archive alone.

    Args:
        source_flag: beginning of messages about the file, such as "fastcnn predict".
        device: device to compute on; None: the CPU.
        trust_code: open .pt2 files, which contain code: expressions, pickles or machine code.

    Raises:
        UserError: no such file, a foreign or damaged one, one that needs `trust_code` or another device, or
            a runtime that is not installed.
    """
    device = device or torch.device("cpu")
    try:
        check_regular(path)
    except OSError as error:
        raise UserError(
            f"{source_flag} {path}: {error.strerror}; use the path of an exported file"
        ) from error
    try:
        if zipfile.is_zipfile(path):
            return _open_pt2(path, device, source_flag, trust_code=trust_code)
        return _open_onnx(path, device)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{source_flag} {path}: needs a package: {INSTALL}") from error
    except ValueError as error:
        raise UserError(
            f"{source_flag} {path}: no file of fastcnn export, or a damaged one: {error}"
        ) from error


def _open_onnx(path: Path, device: torch.device) -> Exported:
    """Open an ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}.get(device.type)
    providers = [p for p in (wanted, "CPUExecutionProvider") if p in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # of classes of its own
        raise ValueError("ONNX Runtime cannot read it") from error
    metadata = session.get_modelmeta().custom_metadata_map
    if KEY not in metadata:
        raise ValueError("it has no metadata of fastcnn")
    description = parse_description(metadata[KEY])
    inputs, names = session.get_inputs(), [output.name for output in session.get_outputs()]
    side = description.size
    if len(inputs) != 1 or list(inputs[0].shape[1:]) != [description.channels, side, side]:
        raise ValueError("its metadata does not fit its inputs")
    _check_outputs(description, len(names))

    def run(images: Tensor) -> tuple[Tensor, ...]:
        values = session.run(names, {inputs[0].name: images.contiguous().cpu().numpy()})
        return tuple(torch.from_numpy(value) for value in values)

    return Exported(path, description, run, torch.device("cpu"))


def _open_pt2(path: Path, device: torch.device, source_flag: str, *, trust_code: bool) -> Exported:
    """Open an archive of `torch.export` or of AOTInductor."""
    description, native = read_archive(path)
    if not trust_code:
        kind = "native code" if native else "expressions and pickles that torch.export.load evaluates"
        raise UserError(
            f"{source_flag} {path}: it contains code ({kind}); add --trust-code if you trust it, or use ONNX"
        )
    import torchvision  # noqa: F401 - registers its operators

    run = _native_run(path, device) if native else _program_run(path, device)
    return Exported(path, description, run, device)


def read_archive(path: Path) -> tuple[Description, bool]:
    """Read the description of a .pt2 archive, and whether it holds native code, without running any.

    Raises:
        ValueError: it is no such archive; the reason alone.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = [name for name in names if name.endswith(f"/extra/{KEY}")]
            if not found:
                raise ValueError("it has no metadata of fastcnn")
            if archive.getinfo(found[0]).file_size > MAX_BYTES:
                raise ValueError("its metadata is too long")
            text = archive.read(found[0]).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError, EOFError, NotImplementedError) as error:
        raise ValueError("it is no archive") from error
    return parse_description(text), any("/data/aotinductor/" in name for name in names)


def _program_run(path: Path, device: torch.device) -> Run:
    """Load a program of `torch.export` onto a device."""
    try:
        program = torch.export.load(path)
    except Exception as error:  # of any class, on foreign bytes
        raise ValueError(f"torch.export.load: {type(error).__name__}") from error
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module: Any = program.module()

    @torch.inference_mode()
    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(images.to(device)))

    return run


def _native_run(path: Path, device: torch.device) -> Run:
    """Load a package of AOTInductor, which is compiled for one kind of device."""
    from torch._inductor import aoti_load_package

    try:
        module = aoti_load_package(str(path))
    except Exception as error:  # of any class
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"AOTInductor cannot load it on this machine: {reason}") from error

    @torch.inference_mode()
    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(images.contiguous().to(device)))

    return run


def _check_outputs(description: Description, count: int) -> None:
    expected = len(FixedBoxes._fields) if description.task == "detection" else 1
    if count != expected:
        raise ValueError("its metadata does not fit its outputs")
