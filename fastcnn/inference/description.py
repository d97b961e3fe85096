"""`Description`: class names and preprocessing, as exported files carry them in their metadata."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from fastcnn.config import LossSettings, task_of
from fastcnn.data.transforms.transform import Transform
from fastcnn.inference.trained import Trained
from fastcnn.tasks.base import Task
from fastcnn.tasks.build import build_task
from fastcnn.version import __version__
from fastcnn.viz.pictures import printable

KEY = "fastcnn"
"""Key of the description in the metadata of a file."""
FORMAT = 1
MAX_BYTES = 64_000_000
"""Maximum size of a description that is read."""
MAX_SIDE = 16_384


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything that the use of an exported file needs, in JSON; see docs/export.md for the keys."""

    format: int = FORMAT
    fastcnn: str
    """Version of fastcnn that wrote the file."""
    arch: str
    """Name of the network; it leads to no import."""
    task: Literal["classification", "segmentation", "detection"]
    multi_label: bool
    """An image may have several classes, or none."""
    activation: Literal["softmax", "sigmoid"]
    """Function that turns the logits of classes into probabilities."""
    class_names: tuple[str, ...]
    channels: int
    size: int
    """Side of the images in pixels."""
    resize: int
    """Short side in pixels before the center crop; with `crop_mode` "border" the long side."""
    crop_pct: float
    crop_mode: Literal["center", "border"]
    dct_scaling: bool
    mean: tuple[float, ...]
    """Per channel, of values from 0 to 1. The file applies it itself."""
    std: tuple[float, ...]
    exif: Literal["upright", "ignore"]
    levels: tuple[float, float] | Literal["auto"]
    """Values that become 0 and 255 in images of more than 8 bits; "auto": those of each file."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"

    @property
    def transform(self) -> Transform:
        """Transform of the validation."""
        return Transform(
            size=self.size,
            channels=self.channels,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            dct_scaling=self.dct_scaling,
        )

    def build_task(self) -> Task:
        """Build the task that turns the file's outputs into predictions."""
        loss = LossSettings(cls_loss="bce" if self.activation == "sigmoid" else "auto")
        return build_task(self.arch, loss, len(self.class_names), multi_label=self.multi_label)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def describe(trained: Trained, precision: Literal["fp32", "fp16", "int8"] = "fp32") -> Description:
    """Return the description of a trained network."""
    config, transform = trained.config, trained.transform
    sigmoid = trained.multi_label or config.cls_loss == "bce"
    return Description(
        fastcnn=__version__,
        arch=config.arch,
        task=task_of(config.arch),
        multi_label=trained.multi_label,
        activation="sigmoid" if sigmoid else "softmax",
        class_names=trained.class_names,
        channels=trained.channels,
        size=trained.size,
        resize=transform.resize,
        crop_pct=1.0 if transform.train_crop == "pad" else transform.crop_pct,
        crop_mode=transform.crop_mode,
        dct_scaling=transform.dct_scaling,
        mean=trained.mean,
        std=trained.std,
        exif=config.exif,
        levels=config.levels,
        precision=precision,
    )


def parse_description(text: str) -> Description:
    """Read a description out of a file, whose writer is unknown.

    Raises:
        ValueError: no description, or one with a missing, mistyped or impossible value; the reason alone.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    if len(text) > MAX_BYTES:
        raise ValueError("its metadata is too long")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("its metadata is no JSON") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"its metadata is not of format {FORMAT}")
    values: dict[str, Any] = {}
    for name, kind in get_type_hints(Description).items():
        if name not in content:
            raise ValueError(f"its metadata lacks {name}")
        value = content[name]
        values[name] = tuple(value) if isinstance(value, list) else value
        try:
            check_type(values[name], kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise ValueError(f"in its metadata {name} has the wrong type") from error
    values["class_names"] = tuple(map(printable, values["class_names"]))
    description = Description(**values)
    _check(description)
    return description


def _check(description: Description) -> None:
    """Raise ValueError for values that no file of fastcnn has."""
    d = description
    numbers = [*d.mean, *d.std, d.crop_pct, *(d.levels if isinstance(d.levels, tuple) else ())]
    in_range = 1 <= d.channels <= 1000 and 1 <= d.size <= MAX_SIDE and 1 <= d.resize <= 4 * MAX_SIDE
    if not in_range or not all(map(math.isfinite, numbers)):
        raise ValueError("its metadata has a number out of range")
    if len(d.mean) != d.channels or len(d.std) != d.channels or min(d.std) <= 0 or not 0 < d.crop_pct <= 1:
        raise ValueError("its metadata has a wrong mean, std or crop_pct")
    if d.task != task_of(d.arch) or not d.class_names:
        raise ValueError("its metadata has a task that is not its network's")
