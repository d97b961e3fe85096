"""Plan a run: observe the checkpoint, the data and the machine, resolve every "auto", build the network."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcnn.config import Config, has_anchors, task_of
from fastcnn.config.auto import resolve
from fastcnn.config.progressive import never_reached
from fastcnn.data.loaders.autoselect import MEMORY_SHARE, choose_backend
from fastcnn.data.loaders.registry import why_not
from fastcnn.data.sources.dataset import Source
from fastcnn.data.targets import Boxes
from fastcnn.data.transforms.transform import Transform
from fastcnn.engine.state import TrainState
from fastcnn.models.parts import image_sizes
from fastcnn.profiling.bottleneck import Headroom
from fastcnn.runtime import machine
from fastcnn.runtime.distributed import Ranks, from_main, gather_to_all
from fastcnn.setup.batch_size import find_batch_size
from fastcnn.setup.cpu_trials import Arithmetic, probe_arithmetic, probe_compile
from fastcnn.setup.network import create_network, initialize_from_images, load_initial_weights
from fastcnn.setup.observe import observe_data, observe_environment, observe_start
from fastcnn.setup.pixels import resolve_levels, resolve_normalization
from fastcnn.setup.run_folder import check_resumable
from fastcnn.setup.run_lock import RunLock
from fastcnn.setup.shape_check import check_shapes
from fastcnn.setup.transforms import transform_of
from fastcnn.tasks.class_weights import class_weights, describe_weights
from fastcnn.tasks.detection.anchors import box_sides, kmeans_anchors
from fastcnn.trackers.registry import chosen as chosen_trackers
from fastcnn.transfer.freeze import describe_frozen

Choice = tuple[Config, dict[str, str]]
"""Settings, and the reasons of those that were "auto"."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before its first step."""

    config: Config
    """Without "auto"."""
    reasons: dict[str, str]
    """Reasons of the settings that were "auto"."""
    source: Source
    transform: Transform
    """Transform of the training images."""
    network: nn.Module
    """On the CPU, with its initial weights, the same on every rank."""
    loaded: list[str]
    """Lines about the initial weights."""
    frozen: list[str]
    """Attribute paths of the frozen layers."""
    folder: Path
    checkpoint: dict[str, Any] | None
    """Checkpoint to resume."""
    checkpoint_path: Path | None
    ignored: list[str]
    """Lines about settings without effect on a resumed run."""

    def remarks(self, state: TrainState) -> list[str]:
        """Return the lines to log before the first step."""
        lines = [*self.source.remarks, *self.loaded]
        if state.frozen is not None:
            lines.append(describe_frozen(self.network, self.frozen, self.config.unfreeze_epoch))
            if self.checkpoint is None and not self.loaded:
                lines.append(
                    "warning: the frozen layers have random weights; add --pretrained or --weights FILE"
                )
        if self.checkpoint_path is not None:
            lines.append(f"Resuming from {self.checkpoint_path}, step {state.step}")
            lines += self.ignored
            lines += self._changed_images()
            if state.done:
                lines.append(f"Run already complete ({state.epoch:g} epochs); raise --epochs to continue")
        elif self.config.resume == "auto":
            lines.append(f"no checkpoint in {self.folder} yet: starting from scratch")
        if self.source.name == "synthetic":
            lines.append("synthetic images and labels are random: only the speed is meaningful")
        lines += self._remarks_on_balance()
        lines += filter(None, [never_reached(self.config, state.schedule.epochs)])
        if self.config.amp_dtype == "bf16" and not machine.is_native("bf16", state.device):
            lines.append(
                f"warning: --amp-dtype bf16: {machine.NO_BF16} and emulates it, many times slower; "
                "use --amp-dtype fp32"
            )
        if self.config.compile == "on":
            lines.append("compiling the network: the first steps take long")
        return lines

    def _remarks_on_balance(self) -> list[str]:
        """Return lines about class weights that were computed from the data."""
        weighting, source = self.config.class_weights, self.source
        if not isinstance(weighting, str) or task_of(self.config.arch) != "classification":
            return []
        weights = class_weights(weighting, int(self.config.num_classes), source.train)
        assert weights is not None
        lines = [describe_weights(weights[: len(source.class_names)], source.class_names)]
        if self.config.sampler == "balanced":
            lines.append(
                f"warning: --sampler balanced and --class-weights {weighting} correct the imbalance twice; "
                "omit one"
            )
        return lines

    def _changed_images(self) -> list[str]:
        """Return a warning if a resumed run trains on other images than before."""
        assert self.checkpoint is not None
        before, now = self.checkpoint["order"]["training images"], self.source.train.fingerprint
        if before == now:
            return []
        return [
            f"warning: other training images than before, {now} in place of {before}: some may have been "
            "validated on, and others trained on; keep the files and the split to compare accuracies"
        ]

    def room(self, ranks: Ranks) -> Headroom:
        """Return the options left to try against a bottleneck."""
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
            # If it was among the timed loaders, it is the fastest one or slower than the chosen one.
            can_cache=fits and not (timed and not reason(memory_share=MEMORY_SHARE)),
            threads_help=loads and (config.data_backend == "dali" or not needs_one_thread(train)),
            can_compile=importlib.util.find_spec("triton") is not None,
            can_record=ranks.world_size == 1,
        )


def make_plan(config: Config, ranks: Ranks, device: torch.device, lock: RunLock | None = None) -> Plan:
    """Plan a run. All ranks call it.

    Args:
        lock: receives the lock of the run's folder, on rank 0; without one, another run may write into it.

    Raises:
        ValueError: no such network, data or checkpoint, or settings that do not fit them.
    """
    # Observe the folder, the checkpoint, the data and the machine; resolve what they determine.
    start = observe_start(config, ranks, device, lock)
    from_main(lambda: chosen_trackers(start.config.tracker))  # before the data are read
    content = start.checkpoint
    machine.set_determinism(enabled=start.config.deterministic)  # before the trials of `resolved`
    config, reasons, source = resolved(start.config, ranks, device)
    reasons = {**start.kept, **reasons}
    if config.anchors == "auto" and has_anchors(config.arch):
        config, reasons = _with_anchors(config, reasons, source)
    if content is not None and start.checkpoint_path is not None:
        check_resumable(content, config, source, start.checkpoint_path)
    source = source.with_channels(int(config.in_chans)).with_classes(int(config.num_classes))
    config, measured, source = resolve_normalization(config, source, content)
    reasons |= measured
    if "data_backend" in start.kept and not all(gather_to_all(_can_load(config, source, ranks))):
        config = dataclasses.replace(config, data_backend="auto")  # chosen on another machine

    # Build the network, and resolve the rest by trials with it.
    machine.prepare(device, machine.cores_per_process(ranks), deterministic=config.deterministic)
    network, frozen = create_network(config)
    check_shapes(network, config, ranks.world_size)
    loaded: list[str] = []
    if content is None and (config.pretrained or config.weights is not None):
        source, loaded = load_initial_weights(network, config, source, ranks)
    transform = transform_of(config, source, reasons)
    if config.data_backend == "auto":
        backend, why = from_main(
            lambda: choose_backend(source, transform, config, device=device, ranks=ranks)
        )
        config, reasons = dataclasses.replace(config, data_backend=backend), {**reasons, "data_backend": why}
    if content is None and not loaded and config.data_backend != "synthetic":
        initialize_from_images(network, config, source, transform)
    config, reasons = _probe(config, reasons, network, source, ranks)
    if config.channels_last == "on":
        network = network.to(memory_format=torch.channels_last)
    return Plan(
        config=config,
        reasons=reasons,
        source=source,
        transform=transform,
        network=network,
        loaded=loaded,
        frozen=frozen,
        folder=start.folder,
        checkpoint=content,
        checkpoint_path=start.checkpoint_path,
        ignored=start.ignored,
    )


def resolved(config: Config, ranks: Ranks, device: torch.device) -> tuple[Config, dict[str, str], Source]:
    """Open the data, and resolve all settings that data and machine determine.

    Returns:
        The settings, the reasons of those that were "auto", and the data.

    Raises:
        UserError: no such data, or settings that do not fit it.
    """
    image_sizes(config.arch)  # an unknown network is an error before the data is opened
    config, measured, source = resolve_levels(config, observe_data(config, ranks))
    environment = observe_environment(config, source, ranks, device)
    if device.type != "cuda" or config.batch_size not in ("auto", "max"):
        config, reasons = resolve(config, environment)
        return config, {**measured, **reasons}, source

    # The batch size is limited by the GPU's memory.
    usual, reasons = resolve(dataclasses.replace(config, batch_size="auto"), environment)
    cap = int(usual.batch_size)
    if config.batch_size == "max":
        cap = max(1, len(source.train) // ranks.world_size)
    size = find_batch_size(lambda: create_network(usual)[0], usual, cap, device, ranks)
    why = reasons["batch_size"] if size == cap == usual.batch_size else "the most that fits the GPU"
    config, reasons = resolve(dataclasses.replace(config, batch_size=size), environment)
    return config, {**measured, **reasons, "batch_size": why}, source


def _probe(
    config: Config, reasons: dict[str, str], network: nn.Module, source: Source, ranks: Ranks
) -> Choice:
    """Resolve data type, memory format and compilation on the CPU by timed trials."""
    size, batch = int(config.img_size), int(config.batch_size)
    shape = batch, int(config.in_chans), size, size
    varied = [name for name in ("amp_dtype", "channels_last") if getattr(config, name) == "auto"]
    if varied:
        dtype, layout = config.amp_dtype, config.channels_last
        way, why = from_main(lambda: probe_arithmetic(network, shape, dtype=dtype, channels_last=layout))
        fastest = {"amp_dtype": way.dtype, "channels_last": "on" if way.channels_last else "off"}
        config = dataclasses.replace(config, **{name: fastest[name] for name in varied})  # type: ignore[arg-type]
        reasons = {**reasons, **dict.fromkeys(varied, why)}
    if config.compile == "auto":
        way = Arithmetic(config.amp_dtype, config.channels_last == "on")
        steps = int(float(config.epochs) * (len(source.train) // (batch * ranks.world_size)))
        steps = 0 if config.test_only else steps
        compiles, why = from_main(lambda: probe_compile(network, shape, way, steps=steps))
        config = dataclasses.replace(config, compile="on" if compiles else "off")
        reasons = {**reasons, "compile": why}
    return config, reasons


def _with_anchors(config: Config, reasons: dict[str, str], source: Source) -> Choice:
    """Choose anchors for the training boxes, three for each stride."""
    boxes = source.train.annotations
    assert isinstance(boxes, Boxes)
    sides = box_sides(boxes, source.train.sizes, int(config.img_size))
    anchors, overlap = kmeans_anchors(sides, 3 * len(config.strides), config.seed)
    rounded = tuple(float(f"{side:.4g}") for side in anchors.flatten())  # never 0, however small a box is
    why = f"k-means over {len(sides):,} training boxes, mean IoU {overlap:.2f}"
    return dataclasses.replace(config, anchors=rounded), {**reasons, "anchors": why}


def _can_load(config: Config, source: Source, ranks: Ranks) -> bool:
    """Return whether the loader of the checkpoint can be used here."""
    if config.data_backend == "auto" or config.data_backend == "synthetic":
        return True
    return not why_not(
        config.data_backend,
        source,
        channels=int(config.in_chans),
        workers=int(config.workers),
        local_world_size=ranks.local_world_size,
    )
