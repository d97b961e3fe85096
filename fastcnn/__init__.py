"""Train convolutional networks as fast as the machine allows, with a report of the bottleneck.

    python -c "import fastcnn; fastcnn.fit(arch='lenet5', epochs=2)"

Importing this package loads neither torch nor DALI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastcnn.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from fastcnn.evaluation.result import Evaluation
    from fastcnn.exporter.result import Result as ExportResult
    from fastcnn.inference.predictor import Predictor
    from fastcnn.setup.loaders import Loaders
    from fastcnn.train import Result
    from fastcnn_kernels import Report

__all__ = ["Predictor", "__version__", "accelerate", "evaluate", "export", "fit", "load", "loaders"]


def __getattr__(name: str) -> Any:
    """Import `Predictor` when it is used first."""
    if name == "Predictor":
        from fastcnn.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'fastcnn' has no attribute {name!r}")


def fit(*, on_epoch: Any = None, **settings: Any) -> Result:
    """Train a network: `fastcnn.fit(arch="resnet50", data="photos", epochs=30)`.

    The settings are the fields of `fastcnn.config.Config`: the flags of `python -m fastcnn.train --help` with
    underscores for dashes.

    Args:
        on_epoch: function that rank 0 calls after each epoch, once it is saved, with a dict: "epoch", "step",
            "train" and "val" (metrics by name), "images_per_second" and others, as in metrics.jsonl. A true
            result stops the run, which can be resumed. An error in it ends the run on every rank.

    Returns:
        `fastcnn.train.Result`: the trained network, its best metrics, the throughput in images per second,
        the bottleneck, the records of the epochs and the run's folder.

    Raises:
        ValueError: a setting is unknown, of the wrong type or impossible; the message names the correction.
        fastcnn.errors.TrainingError: the loss became infinite or NaN.
    """
    from fastcnn.config.parse import from_settings
    from fastcnn.train import fit as run

    return run(from_settings(settings), on_epoch=on_epoch)


def load(checkpoint: str | Path, arch: str | None = None) -> nn.Module:
    """Return the network of a checkpoint in evaluation mode: `fastcnn.load("runs/resnet50-photos/best.pt")`.

    Normalize its images with the checkpoint's "mean" and "std".

    Args:
        arch: MODULE:FACTORY, for a checkpoint of that network: its code runs only if you name it.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or its network is from a package that is not
            installed.
    """
    from fastcnn.engine.checkpoint import load_network

    return load_network(checkpoint, arch)


def evaluate(
    checkpoint: str | Path | None = None,
    *,
    split: str = "val",
    output_dir: str | Path | None = None,
    predictions: str | Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Judge a trained network: `fastcnn.evaluate("runs/resnet50-photos/best.pt").metrics["acc1"]`.

    Args:
        checkpoint: file of a run; None: any state dict, by the settings `arch`, `weights` and `data`.
        split: part of the data, "val", "test" or "train".
        output_dir: folder for metrics.json, tables and pictures; None: they are not written.
        predictions: file for the prediction of each image, .csv, for detection .json; None: no such file.
        settings: flags of `fastcnn train` about data, loading and computing, with underscores for dashes;
            without `data`, the data of the training.

    Raises:
        ValueError: a setting is unknown or impossible, there is no such checkpoint or data, or the data has
            classes that the network does not have.
    """
    from pathlib import Path

    from fastcnn.config.parse import from_settings
    from fastcnn.errors import UserError
    from fastcnn.evaluation.run import PHASES, Request
    from fastcnn.evaluation.run import evaluate as run

    if split not in PHASES:
        raise UserError(f"split {split!r}: use one of {', '.join(PHASES)}")
    if output_dir is not None:
        settings["output_dir"] = str(output_dir)
    request = Request(
        checkpoint=None if checkpoint is None else Path(checkpoint),
        split=split,  # type: ignore[arg-type]
        writes=output_dir is not None,
        predictions=None if predictions is None else Path(predictions),
    )
    return run(request, from_settings(settings))


def export(checkpoint: str | Path, format: str = "onnx", **settings: Any) -> ExportResult:
    """Write a checkpoint's network to a file that runs without fastcnn: `fastcnn.export("best.pt", "pt2")`.

    Args:
        format: onnx, pt2, aoti or safetensors.
        settings: the flags of `fastcnn export` with underscores for dashes: `output`, `int8`, `images`,
            `calibration_images`, `tolerance`, `device`, and those of the data, such as `data`.

    Returns:
        `fastcnn.exporter.result.Result`: the file, its difference from PyTorch, and the latency of both.

    Raises:
        ValueError: no such checkpoint or data, an unknown setting, a package that is not installed, or a file
            whose outputs differ by more than the tolerance.
    """
    from fastcnn.exporter.run import export_with

    return export_with(checkpoint, format, settings)


def loaders(**settings: Any) -> Loaders:
    """Open the training and validation loaders alone: `fastcnn.loaders(data="photos", batch_size=64)`.

    The settings are those of `fit`; those of the training itself, such as `lr`, have no effect. `arch`
    decides the image size, and with `unet...` and `yolo...` the targets. Under torchrun each process gets its
    share of the images, after `torch.distributed.init_process_group()`.

    Returns:
        `fastcnn.setup.loaders.Loaders`: `train` and `val`, whose iterations yield a
        `fastcnn.data.batch.Batch` of images (uint8 [N, C, H, W], channels-last, on the device), targets and
        mask; class names, mean and deviation. Close it, or use it in a `with` block.

    Raises:
        ValueError: no such data, or a setting that is unknown, impossible or applied by the training step.
    """
    from fastcnn.setup.loaders import open_loaders

    return open_loaders(settings)


def accelerate(model: nn.Module, example_images: Tensor | None = None) -> Report:
    """Replace a model's slow layers by the Triton kernels, in place: see `fastcnn_kernels.accelerate`.

    Args:
        model: on its device and in its memory format.
        example_images: a batch as in training, to check and time the layers on.

    Returns:
        The report, with a row for each layer.
    """
    from fastcnn_kernels import accelerate as replace

    return replace(model, example_images)
