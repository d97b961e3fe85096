"""From settings to a plan: data, folder and machine are looked at, and nothing is "auto" any more."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcnn.config import Config, has_anchors, task_of
from fastcnn.config.auto import Environment, ignored_on_resume, merge_resumed_config, resolve
from fastcnn.config.progressive import never_reached
from fastcnn.data.loaders.autoselect import MEMORY_SHARE, choose_backend
from fastcnn.data.loaders.first_images import first_images
from fastcnn.data.loaders.registry import has_dali, why_not
from fastcnn.data.sources.dataset import Source
from fastcnn.data.sources.open import open_data
from fastcnn.data.targets import Boxes
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine import checkpoint
from fastcnn.engine.state import TrainState
from fastcnn.errors import UserError
from fastcnn.models.create import build_network
from fastcnn.models.external import check_outputs, is_external
from fastcnn.models.parts import image_sizes, map_strides
from fastcnn.profiling.bottleneck import Headroom
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, from_main, gather_to_all, local_main_first
from fastcnn.setup import probe
from fastcnn.setup.batch_size import find_batch_size
from fastcnn.setup.run_folder import check_resumable, choose_folder
from fastcnn.setup.transforms import transform_of
from fastcnn.tasks.detection.anchors import kmeans_anchors
from fastcnn.transfer.adapt import load_weights
from fastcnn.transfer.freeze import describe_frozen, frozen_layers
from fastcnn.transfer.weights import download_pretrained, read_weights

FIRST_IMAGES, FIRST_PIXELS = 5000, 5000 * 64**2
"""The most that a network that starts from training images is shown."""


@dataclass(frozen=True)
class Plan:
    """A run before anything of it runs."""

    config: Config
    """Without "auto"."""
    reasons: dict[str, str]
    """Of what was "auto"."""
    source: Source
    transform: Transform
    """How training images become samples."""
    network: nn.Module
    """On the CPU, as it starts, the same on every rank."""
    loaded: list[str]
    """Of the weights that it starts from, for people."""
    frozen: list[str]
    """Attribute paths of the layers that do not train at first."""
    folder: Path
    checkpoint: dict[str, Any] | None
    """What to go on from."""
    checkpoint_path: Path | None
    ignored_on_resume: list[str]
    """Of settings that do nothing more in a run that goes on, for people."""

    def remarks(self, state: TrainState) -> list[str]:
        """What a person should know before the first step of this start."""
        lines = [*self.source.remarks, *self.loaded]
        if state.frozen is not None:
            lines.append(describe_frozen(self.network, self.frozen, self.config.unfreeze_epoch))
            if self.checkpoint is None and not self.loaded:
                lines.append("warning: what is frozen is random; add --pretrained or --weights FILE")
        if self.checkpoint_path is not None:
            lines.append(f"going on from {self.checkpoint_path}, step {state.step}")
            lines += self.ignored_on_resume
            if state.done:
                lines.append(
                    f"nothing left to train: it has {state.epoch:g} epochs; write more with --epochs"
                )
        elif self.config.resume == "auto":
            lines.append(f"no checkpoint in {self.folder} yet: starting from the beginning")
        if self.source.name == "synthetic":
            lines.append("synthetic images and labels are random: only the speed means anything")
        lines += filter(None, [never_reached(self.config, state.schedule.epochs)])
        if self.config.amp_dtype == "bf16" and not machine.is_native("bf16", state.device):
            lines.append(
                f"warning: --amp-dtype bf16: {machine.NO_BF16} and emulates it, many times slower; "
                "use --amp-dtype fp32"
            )
        if self.config.compile == "on":
            lines.append("compiling the network first: the first steps take long")
        return lines

    def room(self, ranks: Ranks) -> Headroom:
        """What is left to try, should something hold the run back."""
        from fastcnn.data.loaders.threads import needs_one_thread

        config, train = self.config, self.source.train
        loads = config.data_backend != "synthetic"
        timed = "data_backend" in self.reasons and not config.deterministic
        reason = functools.partial(
            why_not,
            "cached",
            self.source,
            channels=int(config.in_chans),
            workers=int(config.workers),
            local_world_size=ranks.local_world_size,
        )
        fits = loads and not reason()
        return Headroom(
            cores=machine.cores_per_process(ranks),
            images=len(train) // ranks.world_size,
            # Where it was among the loaders that were timed, it is the fastest or was found to be slower.
            can_cache=fits and not (timed and not reason(memory_share=MEMORY_SHARE)),
            threads_help=loads and (config.data_backend == "dali" or not needs_one_thread(train)),
            can_compile=importlib.util.find_spec("triton") is not None,
            can_record=ranks.world_size == 1,
        )


def make_plan(config: Config, ranks: Ranks, device: torch.device) -> Plan:
    """Looks at the data, the folder and the machine, and settles everything that is "auto".

    Raises:
        ValueError: no such network, data or checkpoint, or settings that do not fit them.
    """
    folder, path = from_main(lambda: choose_folder(config))
    content = None
    kept: dict[str, str] = {}
    done: list[str] = []
    if path is not None:
        content = local_main_first(lambda: checkpoint.load(path), ranks)
        if config.weights not in (None, content["config"].get("weights")):
            raise UserError(
                f"--weights {config.weights}: the run goes on with the weights of {path}; leave it out"
            )
        told, same_ranks = config, len(content["ranks"]) == ranks.world_size
        config, kept = merge_resumed_config(
            told, content["config"], content["chosen"], same_ranks, device.type
        )
        done = ignored_on_resume(told, config)
        dtype = config.amp_dtype
        if "amp_dtype" in kept and not from_main(lambda: machine.is_native(dtype, device)):
            config = dataclasses.replace(config, amp_dtype="auto")  # it was another processor
            del kept["amp_dtype"]
    config, reasons, source = resolved(config, ranks, device)
    reasons = {**kept, **reasons}
    if config.anchors == "auto" and has_anchors(config.arch):
        config, reasons = _with_anchors(config, reasons, source)
    if content is not None and path is not None:
        check_resumable(content, config, source, path)

    source = source.with_channels(int(config.in_chans))
    if "data_backend" in kept and not all(gather_to_all(_can_load(config, source, ranks))):
        config = dataclasses.replace(config, data_backend="auto")  # it was another machine

    machine.prepare(device, machine.cores_per_process(ranks), config.deterministic)
    network, frozen = _network(config)
    loaded: list[str] = []
    if content is not None:
        source = dataclasses.replace(source, mean=tuple(content["mean"]), std=tuple(content["std"]))
    elif config.pretrained or config.weights is not None:
        source, loaded = _start_from_weights(network, config, source, ranks)
    transform = transform_of(config, source, reasons)
    if config.data_backend == "auto":
        backend, why = from_main(
            lambda: choose_backend(source, transform, config, device=device, ranks=ranks)
        )
        config = dataclasses.replace(config, data_backend=backend)
        reasons = {**reasons, "data_backend": why}
    if content is None and not loaded and config.data_backend != "synthetic":
        _start_from_images(network, config, source, transform)
    config, reasons = _probe(config, reasons, network, source, ranks)
    if config.channels_last == "on":
        network = network.to(memory_format=torch.channels_last)
    return Plan(config, reasons, source, transform, network, loaded, frozen, folder, content, path, done)


def resolved(config: Config, ranks: Ranks, device: torch.device) -> tuple[Config, dict[str, str], Source]:
    """Settings without "auto" as far as the data and the machine decide that alone; the reasons; the data.

    Raises:
        UserError: no such data, or settings that do not fit it.
    """
    sizes = image_sizes(config.arch)
    source = local_main_first(lambda: open_data(config, task=task_of(config.arch), seed=config.seed), ranks)
    cores = machine.cores_per_process(ranks)
    facts = Environment(
        data_name=source.name,
        train_images=len(source.train),
        num_classes=len(source.class_names),
        channels=source.channels,
        native_size=source.native_size,
        mirror=source.mirror,
        model_size=sizes.default_image_size,
        fixed_size=sizes.fixed_image_size,
        minimum_size=sizes.minimum_image_size,
        size_multiple=sizes.image_size_multiple,
        strides=map_strides(config.arch) if task_of(config.arch) == "detection" else (),
        device=device.type,  # type: ignore[arg-type]
        bf16_gpu=device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0),
        has_dali=has_dali(),
        has_triton=importlib.util.find_spec("triton") is not None,
        has_compiler=machine.has_compiler(),
        world_size=ranks.world_size,
        cores=cores,
    )
    if device.type != "cuda" or config.batch_size not in ("auto", "max"):
        return *resolve(config, facts), source
    usual, reasons = resolve(dataclasses.replace(config, batch_size="auto"), facts)
    cap = int(usual.batch_size)
    if config.batch_size == "max":
        cap = max(1, len(source.train) // ranks.world_size)
    size = find_batch_size(lambda: _network(usual)[0], usual, cap, device, ranks)
    why = reasons["batch_size"] if size == cap == usual.batch_size else "the most that fits the GPU"
    config, reasons = resolve(dataclasses.replace(config, batch_size=size), facts)
    return config, {**reasons, "batch_size": why}, source


def _probe(
    config: Config, reasons: dict[str, str], network: nn.Module, source: Source, ranks: Ranks
) -> tuple[Config, dict[str, str]]:
    """The settings of the network's arithmetic that are still "auto", as a trial on the CPU finds them."""
    size, channels, batch = int(config.img_size), int(config.in_chans), int(config.batch_size)
    asked = [name for name in ("amp_dtype", "channels_last") if getattr(config, name) == "auto"]
    if asked:
        told = config.amp_dtype, config.channels_last
        way, why = from_main(lambda: probe.probe_arithmetic(network, size, channels, batch, *told))
        found = {"amp_dtype": way.dtype, "channels_last": "on" if way.channels_last else "off"}
        config = dataclasses.replace(config, **{name: found[name] for name in asked})  # type: ignore[arg-type]
        reasons = {**reasons, **dict.fromkeys(asked, why)}
    if config.compile == "auto":
        way = probe.Arithmetic(config.amp_dtype, config.channels_last == "on")
        steps = int(float(config.epochs) * (len(source.train) // (batch * ranks.world_size)))
        steps = 0 if config.test_only else steps
        compile, why = from_main(lambda: probe.probe_compile(network, size, channels, batch, way, steps))
        config = dataclasses.replace(config, compile="on" if compile else "off")
        reasons = {**reasons, "compile": why}
    return config, reasons


def _with_anchors(config: Config, reasons: dict[str, str], source: Source) -> tuple[Config, dict[str, str]]:
    """Anchors for the training boxes, three for each stride."""
    boxes, size = source.train.annotations, int(config.img_size)
    assert isinstance(boxes, Boxes)
    longest = np.repeat(source.train.sizes.max(axis=1), np.diff(boxes.first)).clip(min=1)
    sides = (boxes.values[:, 3:5] - boxes.values[:, 1:3]) * (size / longest)[:, None]
    anchors, overlap = kmeans_anchors(sides[boxes.values[:, 5] == 0], 3 * len(config.strides), config.seed)
    rounded = tuple(round(float(side), 1) for side in anchors.flatten())
    why = f"k-means over {len(sides):,} training boxes, mean IoU {overlap:.2f}"
    return dataclasses.replace(config, anchors=rounded), {**reasons, "anchors": why}


def _network(config: Config) -> tuple[nn.Module, list[str]]:
    """A fresh network, and the layers that are to be frozen."""
    torch.manual_seed(config.seed)
    network = build_network(config)
    if is_external(config.arch):
        shape = int(config.num_classes), int(config.in_chans)
        check_outputs(network, config.arch, *shape, int(config.img_size))
    return network, frozen_layers(network, config.freeze, config.freeze_until)


def _start_from_weights(
    network: nn.Module, config: Config, source: Source, ranks: Ranks
) -> tuple[Source, list[str]]:
    """Loads what `--pretrained` or `--weights` names.

    Returns:
        The data with the normalization of the weights, where that is known, and what to tell.
    """
    if config.weights is not None:
        told, file = f"--weights {config.weights}", config.weights
        weights = local_main_first(lambda: read_weights(file), ranks)
    else:
        told = "--pretrained"
        weights = local_main_first(lambda: download_pretrained(config.arch), ranks)
    if weights.arch not in (None, config.arch):  # it may fit all the same
        told += f", of {weights.arch}"
    other_classes = weights.class_names is not None and weights.class_names != tuple(source.class_names)
    backbone = getattr(network, "backbone", None)
    if backbone is None or any(name.startswith("backbone.") for name in weights.state):
        adapted = load_weights(network, weights.state, told, other_classes=other_classes)
    else:  # of a network for classification, whose last layers are not needed
        adapted = load_weights(backbone, backbone.without_head(weights.state), told)
    remarks = [f"starting from {weights.origin}", *adapted]
    if weights.mean is None or weights.std is None:
        return source, remarks
    mean, std = weights.mean, weights.std
    if len(mean) != source.channels:  # grey images under weights for RGB, or the other way round
        mean, std = (((sum(values) / len(values),) * source.channels) for values in (mean, std))
    return dataclasses.replace(source, mean=mean, std=std), remarks


def _start_from_images(network: nn.Module, config: Config, source: Source, transform: Transform) -> None:
    """Lets a network, or its backbone, that starts from training images see some of them, where its method
    `init_from_images` asks for that; all ranks get what rank 0 found.

    The method takes images as the network will, float [N, C, H, W], and sets parameters and buffers.
    """
    for part in (part for part in network.modules() if hasattr(part, "init_from_images")):

        def compute(part: Any = part) -> dict[str, Tensor]:
            count = min(FIRST_IMAGES, max(1, FIRST_PIXELS // int(config.img_size) ** 2))
            images = first_images(
                source.train,
                transform,
                mean=source.mean,
                std=source.std,
                count=count,
                workers=int(config.workers),
            )
            part.init_from_images(images)
            return part.state_dict()

        part.load_state_dict(from_main(compute))


def _can_load(config: Config, source: Source, ranks: Ranks) -> bool:
    """Whether the loader that was chosen before can be used here."""
    if config.data_backend == "auto" or config.data_backend == "synthetic":
        return True
    return not why_not(
        config.data_backend,
        source,
        channels=int(config.in_chans),
        workers=int(config.workers),
        local_world_size=ranks.local_world_size,
    )
