"""An evaluation from start to end, in every process that torchrun started."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from fastcnn.config import Config, task_of
from fastcnn.config.auto import check_size
from fastcnn.config.duration import parse_time
from fastcnn.data.loaders.base import ImageLoader, Loader
from fastcnn.data.sources.dataset import Source, Split
from fastcnn.engine.state import Normalized
from fastcnn.engine.tta import mean_over_views
from fastcnn.errors import UserError
from fastcnn.evaluation import output, pictures
from fastcnn.evaluation.base import Findings, Judge, over_ranks
from fastcnn.evaluation.classification import ClassJudge
from fastcnn.evaluation.detection import BoxJudge
from fastcnn.evaluation.multilabel import LabelJudge
from fastcnn.evaluation.result import Evaluation
from fastcnn.evaluation.segmentation import PixelJudge
from fastcnn.inference.plain_weights import open_weights
from fastcnn.inference.trained import Trained, open_trained
from fastcnn.inference.validation import data_settings, evaluation_loader, fit_source, open_judged
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import (
    Ranks,
    choose_device,
    from_main,
    gather_to_all,
    local_main_first,
    process_group,
)
from fastcnn.runtime.machine import memory_errors_named
from fastcnn.setup.observe import observe_environment
from fastcnn.tasks.base import Task
from fastcnn.tasks.classification import Classification
from fastcnn.tasks.detection.task import Detection
from fastcnn.tasks.multilabel import MultiLabelClassification
from fastcnn.tasks.segmentation import Segmentation

COMMAND = "fastcnn evaluate"
SplitName = Literal["train", "val", "test"]
PHASES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is evaluated, and what is written."""

    checkpoint: Path | None = None
    """None: the weights of `Config.weights` or `Config.pretrained`."""
    split: SplitName = "val"
    writes: bool = True
    """Write the files of the evaluation."""
    predictions: Path | None = None
    """File of the predictions."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network and the images that it is judged by, on one rank."""

    trained: Trained
    split: Split
    model: nn.Module
    """For uint8 images, on the device."""
    task: Task
    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        return machine.autocast(self.device, self.dtype)


def evaluate(request: Request, flags: Config) -> Evaluation:
    """Evaluate a network; see `fastcnn.evaluate`. All ranks call it, and get the same result.

    Args:
        flags: the user's settings of data, loading and computing.

    Raises:
        UserError: no such checkpoint or data, data of other classes, or a folder that cannot be written.
    """
    ranks = Ranks.from_environment()
    device = choose_device(flags.device, ranks)
    group = process_group(ranks, device, parse_time(flags.peer_timeout, "--peer-timeout"))
    with group, memory_errors_named(device):
        machine.prepare(device, machine.cores_per_process(ranks), deterministic=flags.deterministic)
        subject = _open(request, flags, ranks, device)
        loader = evaluation_loader(
            subject.split,
            subject.trained,
            subject.trained.config,
            ranks=ranks,
            device=device,
            phase=PHASES[request.split],
        )
        try:
            judge = _judge_of(subject)
            _check_suffix(request.predictions, judge)
            _predict(subject, judge, loader, ranks)
        finally:
            loader.close()
        _share_bad_files(loader)
        rows = over_ranks(judge.rows())
        return from_main(lambda: _finish(request, subject, loader, judge, rows))


def _open(request: Request, flags: Config, ranks: Ranks, device: torch.device) -> Subject:
    """Open the network and the images of a split. All ranks call it."""
    if request.checkpoint is None:
        trained, source = open_weights(flags, ranks, device)
    else:
        trained, source = _open_checkpoint(request.checkpoint, flags, ranks, device)
    config = trained.config
    if source.name == "synthetic":
        raise UserError(f"--data {config.data}: random images and labels judge nothing; use other data")
    if config.tta != "none" and task_of(config.arch) != "classification":
        raise UserError(
            f"--tta {config.tta}: it does not move masks and boxes, and {config.arch} is for "
            f"{task_of(config.arch)}; omit it"
        )
    split = getattr(fit_source(trained, config, source), request.split)
    if split is None:
        raise UserError(
            f"--split test: --data {config.data} holds out no images; omit it, or add --test-split"
        )
    channels_last = config.channels_last == "on"
    network = trained.network.to(memory_format=torch.channels_last) if channels_last else trained.network
    model = Normalized(network, trained.mean, trained.std, channels_last=channels_last).to(device).eval()
    dtype = from_main(lambda: _data_type(config, flags, device))
    return Subject(
        trained=dataclasses.replace(trained, config=dataclasses.replace(config, amp_dtype=dtype)),
        split=split,
        model=model,
        task=trained.build_task(),
        device=device,
        dtype=machine.DTYPES[dtype],
    )


def _open_checkpoint(path: Path, flags: Config, ranks: Ranks, device: torch.device) -> tuple[Trained, Source]:
    """Open a checkpoint with the user's settings of data, and the data. All ranks call it."""
    for name in ("weights", "pretrained"):
        if getattr(flags, name):
            raise UserError(f"--{name} and the checkpoint {path}: use only one of them")
    arch = flags.arch if "arch" in flags.written else None
    trained = local_main_first(lambda: open_trained(path, COMMAND, arch), ranks)
    if arch not in (None, trained.config.arch):
        raise UserError(f"--arch {arch}: {path} holds {trained.config.arch}; omit it")
    config = data_settings(trained, flags, COMMAND)
    if "img_size" in flags.written and "val_img_size" not in flags.written:
        config = dataclasses.replace(config, val_img_size=config.img_size)
    if config.val_img_size == "auto":
        config = dataclasses.replace(config, val_img_size=trained.size)
    source = open_judged(config, ranks)
    environment = observe_environment(config, source, ranks, device)
    check_size(config.arch, environment, int(config.val_img_size), "--val-img-size")
    return dataclasses.replace(trained, config=config), source


def _data_type(config: Config, flags: Config, device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    """Return the data type: the user's, else that of the training if the device has it, else fp32."""
    dtype = config.amp_dtype
    usable = dtype != "auto" and (dtype != "fp16" or device.type == "cuda")
    if "amp_dtype" in flags.written and dtype != "auto":
        if not usable:
            raise UserError(f"--amp-dtype {dtype} needs a CUDA GPU: use bf16 or fp32")
        return dtype
    return dtype if usable and machine.is_native(dtype, device) else "fp32"  # type: ignore[return-value]


def _judge_of(subject: Subject) -> Judge:
    task, device = subject.task, subject.device
    if isinstance(task, Detection):
        return BoxJudge(task, subject.trained.transform, subject.split.sizes)
    if isinstance(task, Segmentation):
        return PixelJudge(task, device)
    if isinstance(task, MultiLabelClassification):
        return LabelJudge(task, device)
    assert isinstance(task, Classification)
    return ClassJudge(task, device)


@torch.inference_mode()
def _predict(subject: Subject, judge: Judge, loader: ImageLoader, ranks: Ranks) -> None:
    """Give a judge the predictions for this rank's images."""
    views, sampler = subject.trained.config.tta, loader.sampler
    order = sampler.order(epoch=0)
    for step, batch in enumerate(tqdm(loader, leave=False, disable=None if ranks.is_main else True)):
        with subject.autocast():
            outputs = mean_over_views(subject.model, batch.images, views)
        judge.add(outputs, batch, sampler.indices(order, step))


def _share_bad_files(loader: Loader) -> None:
    """Give all ranks the undecodable images of each; UserError above --max-bad-fraction. Collective."""
    for reasons in gather_to_all(loader.bad.reasons):
        loader.bad.merge(reasons)
    loader.bad.check_all()


def _finish(request: Request, subject: Subject, loader: Loader, judge: Judge, rows: Any) -> Evaluation:
    """Judge the predictions of all ranks, and write the files, on rank 0."""
    trained, split, config = subject.trained, subject.split, subject.trained.config
    images = len(split) - len(loader.bad)
    assert len(rows.samples) == images, f"judged {len(rows.samples)} + {len(loader.bad)} of {len(split)}"
    if not images:
        raise UserError(f"--data {config.data}: no image can be decoded ({loader.bad.lines()[0]})")
    found = judge.judge(rows, trained, split)
    result = Evaluation(
        task=judge.task,
        checkpoint=str(trained.path),
        arch=config.arch,
        data=config.data,
        split=request.split,
        images=images,
        undecodable=loader.bad.lines(),
        settings={
            **{name: getattr(config, name) for name in ("val_img_size", "tta", "amp_dtype")},
            "device": subject.device.type,
        },
        metrics=found.metrics,
        per_class=found.per_class,
        details=found.details,
        lines=found.lines,
    )
    if request.predictions is not None:
        output.write_predictions(request.predictions, judge.predictions(rows, trained, split))
    return _written(result, request, subject, found) if request.writes else result


def _written(result: Evaluation, request: Request, subject: Subject, found: Findings) -> Evaluation:
    """Write the files of a result, and return it with their folder."""
    beside = request.checkpoint.parent if request.checkpoint is not None else Path()
    folder = output.choose_folder(subject.trained.config.output_dir, beside, result)
    result = dataclasses.replace(result, folder=folder)
    drawn = {name: draw() for name, draw in found.figures.items()}
    for shown in found.pictures:
        with subject.autocast():
            samples = pictures.load_samples(
                subject.split, shown.samples, subject.trained.transform, subject.model, subject.task
            )
        drawn[shown.file] = shown.draw(samples)
    output.write(result, found.tables, drawn)
    return result


def _check_suffix(path: Path | None, judge: Judge) -> None:
    """Raise UserError for a file of predictions with another ending than the task's."""
    suffix = judge.predictions_suffix
    if path is not None and path.suffix != suffix:
        raise UserError(
            f"--predictions {path}: for {judge.task} it is {suffix[1:].upper()}; end it with {suffix}"
        )
