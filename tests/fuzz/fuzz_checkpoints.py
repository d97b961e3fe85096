"""Mutated checkpoints for `fastcnn predict`, `fastcnn.load`, `--resume` and `--weights`, and safetensors."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastcnn
from fastcnn.cli.predict import Options, Wanted, predict
from fastcnn.data.sources.demo import CLASS_NAMES
from fastcnn.models import build
from fastcnn.transfer.adapt import load_weights
from fastcnn.transfer.weights import read_weights
from fuzz_harness import Kind
from fuzz_mutations import mutate_bytes, mutate_value
from runs import QUICK_SETTINGS

ARCHS = (
    *("evil:make", "os:getcwd", "timm/resnet18", "timm/hf_hub:evil/make", "torchvision/resnet18", "resnet20"),
    *("lenet5_relu", "yolo/lenet5", "unet/lenet5", "../evil", "evil:make; ls", "timm/../evil", "lenet5\n"),
)
SIZES = (
    "num_classes",
    "in_chans",
    "img_size",
    "val_img_size",
    "head_hidden",
    "anchors",
    "strides",
    "data_root",
)
CONTENT: dict[str, Any] = {}
"""Content of the valid checkpoint, once it is trained."""
BYTES: dict[str, bytes] = {}


def prepare(folder: Path) -> None:
    """Draw a few images into `images`, and once train LeNet-5 on them."""
    rng = np.random.default_rng(0)
    for phase, count in (("train", 6), ("val", 2)):
        for name in CLASS_NAMES[:2]:
            place = folder / "images" / phase / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    (folder / "input").mkdir()
    if not CONTENT:
        _train(folder)


def _train(folder: Path) -> None:
    settings = {"arch": "lenet5", "data": str(folder / "images"), "data_backend": "torch", "epochs": 2}
    more = {"batch_size": 4, "checkpoint_steps": 1, "model_ema": True, "average_last": 1, "opt": "adamw"}
    fastcnn.fit(**{**QUICK_SETTINGS, **settings, **more}, output_dir=str(folder / "out"))
    CONTENT.update(torch.load(folder / "out" / "last.pt", weights_only=True))
    # As if it were stopped after two of the three updates of its last epoch.
    CONTENT.update(step=5, epoch=1, loader={"epoch": 1, "consumed": 8})
    BYTES["checkpoint"] = (folder / "out" / "last.pt").read_bytes()
    shutil.rmtree(folder / "out")


def mutate_checkpoint(rng: random.Random) -> str:
    """Write `input/last.pt`: another structure, sizes and names, bytes, or records of its zip."""
    path = Path("input/last.pt")
    how = rng.random()
    if how < 0.2:
        data, done = mutate_bytes(rng, BYTES["checkpoint"])
        path.write_bytes(data)
        return done
    content = copy.deepcopy(CONTENT)
    if how < 0.3:
        content["arch"] = content["config"]["arch"] = rng.choice(ARCHS)
        done = f"arch {content['arch']!r}"
    elif how < 0.45:
        name = rng.choice(SIZES)
        value = rng.choice([0, -1, 7, 10**5, 10**9, 2**62, [2, 10**9], "evil:make", "/dev/null/x"])
        content["config"][name] = value
        if name in content:
            content[name] = value
        done = f"{name} {value}"
    else:
        done = mutate_value(rng, content["config"] if how < 0.6 else content)
    stream = io.BytesIO()
    try:
        torch.save(content, stream)
    except Exception:  # a value that cannot be saved
        torch.save({**CONTENT, "step": "x"}, stream)
    path.write_bytes(stream.getvalue() if how < 0.9 else _rezipped(rng, stream.getvalue()))
    return done


def _rezipped(rng: random.Random, data: bytes) -> bytes:
    """Write the records of a zip again: compressed, some of them missing, empty, or of other numbers."""
    out = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for record in old.infolist():
            content = old.read(record)
            action = rng.choice(("keep",) * 12 + ("drop", "empty", "double", "bytes"))
            if action == "drop":
                continue
            if action == "bytes":
                content = mutate_bytes(rng, content)[0]
            new.writestr(record.filename, {"empty": b"", "double": content * 2}.get(action, content))
    return out.getvalue()


def check_predict() -> None:
    options = Options(batch_size=4, workers=1, device="cpu")
    predict(Path("input/last.pt"), ["images/val"], Wanted(output_dir=Path("out/new")), options)


def check_resume() -> None:
    settings = {"data": "images", "device": "cpu", "workers": 1, "epochs": 2}
    fastcnn.fit(resume="input/last.pt", output_dir="input", **settings)


def check_weights() -> None:
    network = build("lenet5", 2)
    load_weights(network, read_weights("input/last.pt").state, "--weights input/last.pt")


def mutate_safetensors(rng: random.Random) -> str:
    """Write `input/w.safetensors`: other bytes, or a header of other names, types, shapes and offsets."""
    from safetensors.torch import save

    data = save(build("lenet5", 2).state_dict())
    path = Path("input/w.safetensors")
    if rng.random() < 0.4:
        data, done = mutate_bytes(rng, data)
        path.write_bytes(data)
        return done
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    done = mutate_value(rng, header)
    text = json.dumps(header).encode(errors="replace")
    size = rng.choice([len(text)] * 6 + [0, 2**40, 2**63, length])
    path.write_bytes(struct.pack("<Q", size) + text + data[8 + length :])
    return f"header {done}"


def check_safetensors() -> None:
    network = build("lenet5", 2)
    load_weights(network, read_weights("input/w.safetensors").state, "--weights input/w.safetensors")


KINDS = (
    Kind("predict", prepare, mutate_checkpoint, check_predict),
    Kind("resume", prepare, mutate_checkpoint, check_resume),
    Kind("weights", prepare, mutate_checkpoint, check_weights),
    Kind("safetensors", lambda folder: (folder / "input").mkdir(), mutate_safetensors, check_safetensors),
)
