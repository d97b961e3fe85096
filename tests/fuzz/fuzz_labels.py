"""Mutated label files: YOLO, COCO, VOC, LabelMe, masks, tables."""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fastcnn.config.settings import DataSettings, TaskName
from fastcnn.data.decode import DecodeError
from fastcnn.data.sources.open import open_data
from fastcnn.data.targets import Masks
from fuzz_harness import Kind
from fuzz_mutations import TOKENS, mutate_bytes, mutate_text, mutate_value, odd_value
from fuzz_yaml import bomb

ROOT = Path("input")
SIDE = 24
IMAGES = ("a", "b", "c", "d")


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(IMAGES):
        Image.new("RGB", (SIDE, SIDE), (60 * i, 90, 30)).save(folder / f"{name}.jpg")


def opened(task: TaskName, **settings: Any) -> None:
    """Open the set, and read all of its labels, with each way to treat bad ones."""
    for bad_labels in ("stop", "skip"):
        try:
            source = open_data(
                DataSettings(data=str(ROOT), bad_labels=bad_labels, **settings), task=task, seed=0
            )
        except ValueError:
            if bad_labels == "skip":
                raise
            continue
        for split in filter(None, (source.train, source.val)):
            for i in range(len(split)):
                if isinstance(split.annotations, Masks):
                    with contextlib.suppress(DecodeError):  # a bad sample, which the loaders replace
                        split.annotations.read(i)


Text = Callable[[random.Random], str]


def of_text(path: str, text: str, more: Text | None = None) -> Callable[[random.Random], str]:
    """Return a mutation of a text file; now and then one of the inputs of `more` instead."""

    def mutate(rng: random.Random) -> str:
        if more is not None and rng.random() < 0.15:
            data, done = more(rng).encode(errors="replace"), "more"
        else:
            data, done = mutate_text(rng, text)
        (ROOT / path).write_bytes(data)
        return done

    return mutate


def of_json(path: str, content: Any, more: Callable[[random.Random, Any], str] | None = None) -> Any:
    """Return a mutation of a JSON file: of its values, sometimes of its text."""

    def mutate(rng: random.Random) -> str:
        changed = copy.deepcopy(content)
        how = rng.random()
        if how < 0.25:
            data, done = mutate_text(rng, json.dumps(changed, indent=1))
        elif how < 0.3:
            data, done = b"[" * 100_000, "nested"
        else:
            done = more(rng, changed) if more is not None and how < 0.5 else mutate_value(rng, changed)
            data = json.dumps(changed, default=str).encode(errors="replace")
        (ROOT / path).write_bytes(data)
        return done

    return mutate


# YOLO

YOLO = "0 0.5 0.5 0.2 0.4\n1 0.2 0.2 0.4 0.2 0.3 0.3\n1 0.4 0.4 0.1 0.1 0.9\n"
DATA_YAML = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\nkpt_shape: [2, 3]\n"


def prepare_yolo(folder: Path) -> None:
    for phase in ("train", "val"):
        images(folder / ROOT / "images" / phase)
        (folder / ROOT / "labels" / phase).mkdir(parents=True)
        for name in IMAGES:
            (folder / ROOT / "labels" / phase / f"{name}.txt").write_text(YOLO)
    (folder / ROOT / "data.yaml").write_text(DATA_YAML)


def data_yaml(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return bomb(rng)
    content = yaml.safe_load(DATA_YAML)
    mutate_value(rng, content)
    try:
        return yaml.safe_dump(content)
    except yaml.YAMLError:
        return str(content)


# COCO

RUNS = {"size": [SIDE, SIDE], "counts": [10, 20, SIDE * SIDE - 30]}
COCO: dict[str, Any] = {
    "images": [
        {"id": i, "file_name": f"{name}.jpg", "height": SIDE, "width": SIDE} for i, name in enumerate(IMAGES)
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 0,
            "category_id": 1,
            "bbox": [1, 2, 8, 9],
            "segmentation": [[1, 1, 9, 1, 9, 9]],
        },
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "segmentation": RUNS, "iscrowd": 1},
        {
            "id": 3,
            "image_id": 2,
            "category_id": 7,
            "bbox": [3, 3, 5, 5],
            "segmentation": [[2, 2, 8, 2, 5, 8]],
        },
        {
            "id": 4,
            "image_id": 3,
            "category_id": 1,
            "bbox": [2, 2, 9, 9],
            "segmentation": {"size": [SIDE, SIDE], "counts": "[16>00000000000000000000000Q3"},
        },
    ],
}


def prepare_coco(folder: Path) -> None:
    for phase in ("train", "val"):
        images(folder / ROOT / "images" / phase)
    (folder / ROOT / "annotations").mkdir()
    (folder / ROOT / "annotations" / "val.json").write_text(json.dumps(COCO))


def huge(rng: random.Random, content: Any) -> str:
    """State sizes of images and of run lengths that would take terabytes."""
    side = rng.choice([10**5, 2**31 - 1, 2**40, -5])
    number = rng.randrange(len(IMAGES))
    if rng.random() < 0.7:
        content["images"][number].update(height=side, width=side)
    counts = rng.choice(
        [[side * side], "0" * 5000, "\u1234", "o" * 50, None, 5, [0.5, "1"], [-1, side * side + 1]]
    )
    content["annotations"][1]["image_id"] = number
    content["annotations"][1]["segmentation"] = {"size": [side, side], "counts": counts}
    return f"side {side}, counts {str(counts)[:20]}"


# VOC

VOC = (
    '<?xml version="1.0"?>\n<annotation>\n<size><width>24</width><height>24</height></size>\n'
    "<object><name>cat</name><difficult>0</difficult>\n<bndbox><xmin>2</xmin><ymin>3</ymin>\n"
    "<xmax>12</xmax><ymax>13</ymax></bndbox></object>\n</annotation>\n"
)


def prepare_voc(folder: Path) -> None:
    images(folder / ROOT / "JPEGImages")
    (folder / ROOT / "Annotations").mkdir()
    for name in IMAGES:
        (folder / ROOT / "Annotations" / f"{name}.xml").write_text(VOC)


def entities(rng: random.Random) -> str:
    """Return XML whose entities expand without end, name a file of the machine, or are nested very deep."""
    levels = rng.choice((3, 8, 12))
    lines = ['<!ENTITY e0 "lollollollol">']
    lines += [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, levels)]
    laughs = f"<!DOCTYPE a [{''.join(lines)}]>"
    outside = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    again = f'<!DOCTYPE a [<!ENTITY e "{"x" * 50_000}">]>'
    return rng.choice(
        (
            VOC.replace("<annotation>", f"{laughs}<annotation>").replace("cat", f"&e{levels - 1};"),
            VOC.replace("<annotation>", f"{outside}<annotation>").replace("cat", "&e;"),
            VOC.replace("<annotation>", f"{again}<annotation>").replace("cat", "&e;" * 50_000),
            VOC.replace("cat", "<a>" * 50_000 + "</a>" * 50_000),
            VOC.replace("cat", "x" * 10**6),
            VOC.replace('"1.0"', '"1.0" encoding="x-evil"'),
        )
    )


# LabelMe


@functools.cache
def png(side: int) -> str:
    """Return a PNG in base64; one of many pixels is small."""
    stream = io.BytesIO()
    Image.new("1", (side, side), 1).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


LABELME: dict[str, Any] = {
    "imagePath": "a.jpg",
    "imageHeight": SIDE,
    "imageWidth": SIDE,
    "shapes": [
        {"label": "cat", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]]},
        {"label": "dog", "shape_type": "rectangle", "points": [[2, 2], [8, 8]]},
        {"label": "dog", "shape_type": "circle", "points": [[12, 12], [15, 12]]},
        {"label": "cat", "shape_type": "mask", "points": [[2, 2], [5, 5]], "mask": png(4)},
        {"label": "cat", "shape_type": "point", "points": [[2, 2]]},
    ],
}


def prepare_labelme(folder: Path) -> None:
    images(folder / ROOT)
    for name in IMAGES:
        (folder / ROOT / f"{name}.json").write_text(json.dumps({**LABELME, "imagePath": f"{name}.jpg"}))


def odd_shape(rng: random.Random, content: Any) -> str:
    shape = rng.choice(content["shapes"])
    shape["points"] = rng.choice(
        [[[1e300, 0], [0, 1e300]], [[0, 0], [float("nan"), 1]], [[-5, -5], [99, 99]], 5]
    )
    shape["mask"] = rng.choice(["", "AAAA", png(16_000), odd_value(rng)])
    content.update(imageHeight=rng.choice([SIDE, 10**6, 2**31 - 1]), imageWidth=rng.choice([SIDE, 10**6]))
    return f"shape {str(shape)[:100]}"


# Masks


def prepare_masks(folder: Path) -> None:
    for phase in ("train", "val"):
        images(folder / ROOT / "images" / phase)
        (folder / ROOT / "masks" / phase).mkdir(parents=True)
        for name in IMAGES:
            pixels = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 3
            Image.fromarray(pixels).save(folder / ROOT / "masks" / phase / f"{name}.png")


def mutate_mask(rng: random.Random) -> str:
    mode = rng.choice(("L", "P", "RGB", "1", "I;16", "RGBA", "LA"))
    size = rng.choice([(SIDE, SIDE)] * 5 + [(1, 1), (SIDE, 1), (5000, 5000)])
    image, stream = Image.new(mode, size, rng.choice([0, 1])), io.BytesIO()
    image.save(stream, format="PNG")
    data, done = stream.getvalue(), f"{mode} {size}"
    if rng.random() < 0.7:
        data, bytes_done = mutate_bytes(rng, data)
        done += f" {bytes_done}"
    (ROOT / "masks" / "train" / "a.png").write_bytes(data)
    return done


# Tables

CSV = "file,label,note\na.jpg,cat,x\nb.jpg,dog,y\nc.jpg,dog,\nd.jpg,cat,z\n"
RECORDS: list[dict[str, Any]] = [
    {"file": f"{name}.jpg", "label": "cat" if i % 2 else "dog"} for i, name in enumerate(IMAGES)
]


def prepare_table(folder: Path) -> None:
    images(folder / ROOT)


def wide(rng: random.Random) -> str:
    return rng.choice(
        (
            "file" + ",x" * 50_000,
            "file," + "\n" * 100_000,
            'file,label\n"a.jpg,cat\n' * 1000,
            "file,label\na.jpg," + "[" * 3000 + "]" * 3000,
            "file,label\na.jpg," + "x" * 200_000,
            "sep=\x00\nfile",
            "file,label\n" + "".join(f"a.jpg,{rng.choice(TOKENS)}\n" for _ in range(9)),
        )
    )


def mutate_records(rng: random.Random) -> str:
    records = copy.deepcopy(RECORDS)
    done = mutate_value(rng, records)
    if rng.random() < 0.1:
        records += [{f"k{i}": 1} for i in range(20_000)]
    lines = "\n".join(json.dumps(record, default=str) for record in records)
    data, more = mutate_text(rng, lines) if rng.random() < 0.4 else (lines.encode(errors="replace"), "")
    (ROOT / "labels.jsonl").write_bytes(data)
    return f"{done} {more}"


@functools.cache
def parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    columns = {name: [str(record[name]) for record in RECORDS] for name in RECORDS[0]}
    parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


def mutate_parquet(rng: random.Random) -> str:
    data, done = mutate_bytes(rng, parquet())
    (ROOT / "labels.parquet").write_bytes(data)
    return done


def table(name: str) -> Callable[[], None]:
    return lambda: opened("classification", labels=str(ROOT / name), val_split=0.5)


def boxes() -> None:
    opened("detection")


def masks() -> None:
    opened("segmentation")


def split_boxes() -> None:
    opened("detection", val_split=0.5)


def split_masks() -> None:
    opened("segmentation", val_split=0.5)


KINDS = (
    Kind("yolo", prepare_yolo, of_text("labels/train/a.txt", YOLO), boxes),
    Kind("data.yaml", prepare_yolo, of_text("data.yaml", DATA_YAML, data_yaml), boxes),
    Kind("coco-boxes", prepare_coco, of_json("annotations/train.json", COCO, huge), boxes),
    Kind("coco-masks", prepare_coco, of_json("annotations/train.json", COCO, huge), masks),
    Kind("voc", prepare_voc, of_text("Annotations/a.xml", VOC, entities), split_boxes),
    Kind("labelme-boxes", prepare_labelme, of_json("a.json", LABELME, odd_shape), split_boxes),
    Kind("labelme-masks", prepare_labelme, of_json("a.json", LABELME, odd_shape), split_masks),
    Kind("masks", prepare_masks, mutate_mask, masks),
    Kind("csv", prepare_table, of_text("labels.csv", CSV, wide), table("labels.csv")),
    Kind("json", prepare_table, of_json("labels.json", RECORDS), table("labels.json")),
    Kind("jsonl", prepare_table, mutate_records, table("labels.jsonl")),
    Kind("parquet", prepare_table, mutate_parquet, table("labels.parquet")),
)
