"""`fastcnn predict`: print, draw and write the predictions for each image.

fastcnn predict runs/yolo-demo/best.pt photos/
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from fastcnn import files
from fastcnn.cli.folders import new_folder
from fastcnn.cli.predict_outputs import STDOUT, Coco, Csv, JsonLines, LabelPngs, Output, text_file
from fastcnn.cli.predict_truths import Truths, truths_of
from fastcnn.data.loaders.cached import free_memory
from fastcnn.errors import UserError
from fastcnn.inference.find_images import NamedImage, find_images
from fastcnn.inference.predictor import Outcome, Predictor
from fastcnn.inference.trained import Trained
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.gallery import rgb
from fastcnn.tasks.multilabel import MultiLabelClassification
from fastcnn.tasks.segmentation import Segmentation

BYTES = 5
"""Bytes of a pixel's channel: as loaded, and normalized."""


class Options(NamedTuple):
    """Options of the network, as of `Predictor`."""

    batch_size: int = 16
    workers: int = 2
    device: str = "auto"
    arch: str | None = None
    top_k: int | None = None
    threshold: float | None = None
    trust_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Outputs of a call; None: not wanted."""

    pictures: bool = True
    output_dir: Path | None = None
    """Folder of the pictures; None: predictions, then predictions-2, ..."""
    csv: Path | None = None
    jsonl: Path | None = None
    coco: Path | None = None
    label_pngs: Path | None = None
    """Folder of the label PNGs."""

    @property
    def on_stdout(self) -> bool:
        """Return whether a machine reads standard output."""
        return STDOUT in (str(self.csv), str(self.jsonl))


def predict(path: Path, words: Sequence[str], wanted: Wanted, options: Options) -> int:
    """Predict images: a line and a picture for each, and files for machines.

    Args:
        path: checkpoint or exported file.
        words: images, see `find_images`.

    Returns:
        The number of undecodable images; they are named on stderr.

    Raises:
        UserError: no such checkpoint, no images, an output that does not fit the network's task, or an output
            folder that is read-only or holds such files.
    """
    predictor = Predictor(path, **options._asdict(), source_flag="fastcnn predict")
    with predictor, ExitStack() as stack:
        _check_wanted(wanted, predictor.task)
        images = find_images(words)
        truths = truths_of(images, predictor) if len(words) == 1 and Path(words[0]).is_dir() else None
        _check_free(wanted, images, predictor)
        if isinstance(predictor.trained, Trained):
            _check_memory(predictor.trained, min(options.batch_size, len(images)))
        outputs, coco = _open_outputs(wanted, predictor, stack)
        pictures = _Pictures(wanted, predictor) if wanted.pictures else None
        bad = _predict_all(images, predictor, outputs, pictures, truths, quiet=wanted.on_stdout)
        if coco is not None:
            assert wanted.coco is not None
            with text_file(wanted.coco, "--coco") as file:
                file.write(coco.text())
        if len(bad) == len(images):
            raise UserError(f"{' '.join(words)}: no image can be decoded ({bad[0]}); use another folder")
    lines = [f"warning: undecodable image: {line}" for line in bad]
    if truths is not None:
        print(truths.summary(), file=sys.stderr if wanted.on_stdout else sys.stdout)
        if pictures is not None:
            pictures.save(truths.picture(), "grid.png")
    written = [wanted.csv, wanted.jsonl, wanted.coco, wanted.label_pngs, pictures and pictures.folder]
    lines += [f"wrote {place}" for place in written if place is not None and str(place) != STDOUT]
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
    return len(bad)


def _predict_all(
    images: Sequence[NamedImage],
    predictor: Predictor,
    outputs: Sequence[Output],
    pictures: _Pictures | None,
    truths: Truths | None,
    *,
    quiet: bool,
) -> list[str]:
    """Send each prediction to all outputs; return a line for each undecodable image."""
    bad = []
    for number, outcome in enumerate(predictor.outcomes(images)):
        if outcome.prediction is None:
            image = images[number].image
            name = image if isinstance(image, str) else outcome.name
            line = f"{name}: {outcome.problem}"
            bad.append(line.encode("utf-8", "backslashreplace").decode())  # a name may hold any bytes
            continue
        assert outcome.raw is not None
        if not quiet:
            text = predictor.task.format_prediction(outcome.raw, predictor.class_names)
            print(f"{outcome.name}: {text}", flush=True)
        truth = None if truths is None else truths.add(number, outcome)
        for output in outputs:
            output.add(outcome.prediction, truth)
        if pictures is not None:
            pictures.add(outcome)
    return bad


def _open_outputs(wanted: Wanted, predictor: Predictor, stack: ExitStack) -> tuple[list[Output], Coco | None]:
    """Open the files for machines; a COCO file is written at the end."""
    outputs: list[Output] = []
    if wanted.csv is not None:
        outputs.append(Csv(stack.enter_context(text_file(wanted.csv, "--csv"))))
    if wanted.jsonl is not None:
        outputs.append(JsonLines(stack.enter_context(text_file(wanted.jsonl, "--jsonl"))))
    if wanted.label_pngs is not None:
        outputs.append(LabelPngs(wanted.label_pngs, predictor.class_names))
    coco = None if wanted.coco is None else Coco(predictor.class_names)
    return [*outputs, *([] if coco is None else [coco])], coco


def _check_wanted(wanted: Wanted, task: Any) -> None:
    """Raise UserError for an output that does not fit the task, or two outputs in one place."""
    if wanted.coco is not None and isinstance(task, Classification | MultiLabelClassification):
        raise UserError("--coco: for boxes and masks, and this network has neither; use --csv or --jsonl")
    if wanted.label_pngs is not None and not isinstance(task, Segmentation):
        raise UserError("--label-pngs: for segmentation, and this network has no masks; omit it")
    if str(wanted.coco) == STDOUT:
        raise UserError("--coco -: it is written at the end, into a file; use --coco FILE")
    if str(wanted.csv) == str(wanted.jsonl) == STDOUT:
        raise UserError("--csv - --jsonl -: only one of them fits standard output; use a file for the other")


def _check_free(wanted: Wanted, images: Sequence[NamedImage], predictor: Predictor) -> None:
    """Raise UserError if a picture or label file would replace another one."""
    folder = wanted.output_dir
    if wanted.pictures and folder is not None:
        folder = files.expand_user(folder, "--output-dir")
        for image in images:
            if (folder / f"{image.name}.png").exists():
                raise UserError(f"--output-dir {folder}: holds {image.name}.png already; use another folder")
    if wanted.label_pngs is not None:
        labels, seen = LabelPngs(wanted.label_pngs, predictor.class_names), dict[Path, str]()
        for image in images:
            path = labels.path(image.name)
            if path.exists():
                raise UserError(f"--label-pngs: {path} exists already; use another folder")
            if path in seen:
                raise UserError(f"--label-pngs: {seen[path]} and {image.name} would get one file; rename one")
            seen[path] = image.name


class _Pictures:
    """Pictures with the predictions drawn in, in a folder that is created for the first of them."""

    def __init__(self, wanted: Wanted, predictor: Predictor) -> None:
        given = wanted.output_dir
        self.folder = None if given is None else files.expand_user(given, "--output-dir")
        self.predictor = predictor

    def add(self, outcome: Outcome) -> None:
        assert outcome.pixels is not None
        assert outcome.raw is not None
        pixels = rgb(torch.tensor(outcome.pixels).permute(2, 0, 1))
        drawn = self.predictor.task.draw(pixels, outcome.raw, self.predictor.class_names)
        self.save(drawn, f"{outcome.name}.png")

    def save(self, picture: Image.Image, name: str) -> None:
        if self.folder is None:
            self.folder = new_folder("predictions")
        path = self.folder / name
        with files.of_flag("--output-dir"):
            files.make_folder(path.parent, "the folder")
            files.save_picture(picture, path, "the picture")


def _check_memory(trained: Trained, batch_size: int) -> None:
    """Raise UserError if a batch of images of the checkpoint's size does not fit into memory."""
    size, channels = trained.size, trained.channels
    shape = batch_size, channels, size, size
    needed = BYTES * math.prod(shape) + 2 * _largest_output(trained.network, shape)
    if needed > free_memory():
        raise UserError(
            f"{batch_size} images of {channels} x {size} x {size}, the checkpoint's size, take at least "
            f"{needed / 1e9:.1f} GB; use a smaller --batch-size, or another checkpoint"
        )


def _largest_output(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the bytes of a layer's largest output, found on shapes alone; 0 if the network needs data."""
    largest = 0

    def look(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    handles = [module.register_forward_hook(look) for module in network.modules()]
    try:
        torch.func.functional_call(network, empty, torch.empty(shape, device="meta"))
    except Exception:  # a network may raise anything
        return 0
    finally:
        for handle in handles:
            handle.remove()
    return largest
