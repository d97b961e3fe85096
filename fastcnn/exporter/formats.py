"""Content of the files, one function for each format: a trained network to bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch

from fastcnn.errors import UserError
from fastcnn.exporter.deployed import OUTPUTS, Deployed, export_program
from fastcnn.exporter.onnx_operators import suppress_onnx, translations
from fastcnn.inference.description import KEY, describe
from fastcnn.inference.trained import Trained

Format = Literal["onnx", "pt2", "aoti", "safetensors"]
OPSET = 20
PROTOBUF_LIMIT = 2**31 - 1


def to_onnx(trained: Trained, device: torch.device) -> bytes:
    """Return an ONNX file.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        UserError: it would be larger than protobuf allows.
    """
    import onnx

    description = describe(trained)
    with quiet():
        converted = torch.onnx.export(
            export_program(Deployed(trained, suppress_onnx), trained, torch.device("cpu")),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            output_names=list(OUTPUTS[description.task]),
            custom_translation_table=translations(),
        )
    assert converted is not None
    proto = converted.model_proto
    onnx.helper.set_model_props(proto, {KEY: description.to_json()})
    if proto.ByteSize() > PROTOBUF_LIMIT:
        raise UserError("--format onnx: the network has more than the 2 GB of an ONNX file; use --format pt2")
    return proto.SerializeToString()


def to_pt2(trained: Trained, device: torch.device) -> bytes:
    """Return an archive of `torch.export.save`."""
    stream = io.BytesIO()
    with quiet():
        program = export_program(Deployed(trained), trained, torch.device("cpu"))
        torch.export.save(program, stream, extra_files={KEY: describe(trained).to_json()})
    return stream.getvalue()


def to_aoti(trained: Trained, device: torch.device) -> bytes:
    """Return a package of AOTInductor, with machine code for a device like this one."""
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory() as folder, quiet():
        program = export_program(Deployed(trained), trained, device)
        path = Path(aoti_compile_and_package(program, package_path=f"{folder}/model.pt2"))
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/extra/{KEY}", describe(trained).to_json())
        return path.read_bytes()


def to_safetensors(trained: Trained, device: torch.device) -> bytes:
    """Return the network's weights under the keys of its state dict."""
    state = {name: value.contiguous() for name, value in trained.network.state_dict().items()}
    return safetensors.torch.save(state, metadata={"format": "pt", KEY: describe(trained).to_json()})


WRITERS: dict[Format, Callable[[Trained, torch.device], bytes]] = {
    "onnx": to_onnx,
    "pt2": to_pt2,
    "aoti": to_aoti,
    "safetensors": to_safetensors,
}
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "pt2": ".pt2",
    "aoti": ".aoti.pt2",
    "safetensors": ".safetensors",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress and the warnings of exporters; errors are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
