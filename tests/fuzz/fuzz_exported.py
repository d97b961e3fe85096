"""Mutated ONNX files for `fastcnn predict`: bytes, metadata, shapes and values of the graph."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from fastcnn.cli.predict import Options, Wanted, predict
from fastcnn.inference.description import KEY, Description
from fuzz_harness import Kind
from fuzz_mutations import mutate_bytes, mutate_value

SIDE = 32
DIMENSIONS = (0, 1, 2, 7, 31, 10**6, 10**9, 2**40, -1)
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8


def description() -> Description:
    return Description(
        fastcnn="0.1.0",
        arch="lenet5",
        task="classification",
        multi_label=False,
        activation="softmax",
        class_names=("red", "green", "blue"),
        channels=3,
        size=SIDE,
        resize=SIDE,
        crop_pct=1.0,
        crop_mode="border",
        dct_scaling=True,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        exif="upright",
        levels="auto",
    )


def means() -> onnx.ModelProto:
    """Return a network whose logits are the means of the channels, with a weight for each."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["values"], axes=[2, 3], keepdims=0),
            helper.make_node("Mul", ["values", "weight"], ["logits"]),
        ],
        "means",
        [helper.make_tensor_value_info("images", UINT8, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", FLOAT, ["N", 3])],
        [helper.make_tensor("weight", FLOAT, [3], [1.0, 2.0, 3.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def prepare(folder: Path) -> None:
    """Draw images into `images`."""
    (folder / "images").mkdir()
    (folder / "input").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 50, 3), dtype=np.uint8)).save(folder / f"images/{i}.png")


def mutate(rng: random.Random) -> str:
    """Write `input/a.onnx`."""
    model, how = means(), rng.random()
    metadata = dataclasses.asdict(description())
    done = "nothing"
    if how < 0.35:
        done = f"metadata {mutate_value(rng, metadata)}"
    elif how < 0.7:
        done = _mutate_graph(rng, model)
    try:
        text = json.dumps(metadata)
        helper.set_model_props(model, {KEY: text})
    except Exception:  # a value that cannot be saved
        helper.set_model_props(model, {KEY: "{}"})
    data = model.SerializeToString()
    if how >= 0.7:
        data, done = mutate_bytes(rng, data)
    Path("input/a.onnx").write_bytes(data)
    return done


def _mutate_graph(rng: random.Random, model: onnx.ModelProto) -> str:
    """Change a shape, a node or the weight."""
    graph, action = model.graph, rng.randrange(6)
    if action < 2:
        value = rng.choice([*graph.input, *graph.output])
        place = rng.randrange(len(value.type.tensor_type.shape.dim))
        value.type.tensor_type.shape.dim[place].dim_value = rng.choice(DIMENSIONS)
        return f"dimension {place} of {value.name}"
    if action == 2:
        node = rng.choice(graph.node)
        node.op_type = rng.choice(["Add", "Loop", "Identity", "Reshape", "evil", "ConvInteger"])
        return f"operator {node.op_type}"
    if action == 3:
        graph.initializer[0].dims[0] = rng.choice(DIMENSIONS)
        return f"{graph.initializer[0].dims[0]} weights"
    if action == 4:  # weights of another file
        weight = graph.initializer[0]
        weight.data_location = TensorProto.EXTERNAL
        weight.ClearField("float_data")
        location = rng.choice(["../../outside", "/etc/passwd", "a.onnx", "missing"])
        weight.external_data.add(key="location", value=location)
        return f"weights of {location}"
    graph.node.add().CopyFrom(helper.make_node("ConstantOfShape", ["weight"], ["more"]))
    return "a node of no use"


def check() -> None:
    options = Options(batch_size=2, workers=1, device="cpu")
    predict(Path("input/a.onnx"), ["images"], Wanted(output_dir=Path("out/new")), options)


KINDS = (Kind("onnx", prepare, mutate, check),)
