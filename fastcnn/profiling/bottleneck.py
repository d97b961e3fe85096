"""The bottleneck of a run: time per activity, and a sentence with the diagnosis and advice. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from fastcnn.config import Config

Bottleneck = Literal["data", "computing", "launching", "synchronising", "communication"]

WORTH_SAYING = 0.15
"""Min fraction of the time to count as a bottleneck: without it, the run is 18% faster."""
MIN_REPORTED_SHARE = 0.02
"""Min fraction of the time to be listed beside others."""

NAMES: dict[Bottleneck, str] = {
    "data": "data wait",
    "launching": "launch-bound",
    "synchronising": "host sync",
    "communication": "communication",
}
"""Avoidable activities, all but computing, with their names in the log."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of some steps by activity, in seconds on the device's timeline."""

    steps: int = 0
    data: float = 0.0
    """Idle, or copying, until the loader delivered a batch."""
    computing: float = 0.0
    launching: float = 0.0
    """Idle within steps, until the host queued the next kernel; 0 if the host is the device."""
    synchronising: float = 0.0
    """Idle between steps, at log lines and saves."""
    communication: float = 0.0
    """Exposed all-reduce: from the last gradient to the average over all ranks."""
    cpu_contention: float = 0.0
    """Part of the total in which the host's thread was runnable without a core."""

    def __add__(self, other: Timing) -> Timing:
        names = [field.name for field in dataclasses.fields(self)]
        return Timing(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def seconds(self) -> float:
        return self.data + self.computing + self.launching + self.synchronising + self.communication

    def shares(self) -> dict[Bottleneck, float]:
        """Return the fraction of each activity, 0 to 1; empty if no step was measured."""
        if not self.steps or not self.seconds:
            return {}
        return {
            "data": self.data / self.seconds,
            "computing": self.computing / self.seconds,
            "launching": self.launching / self.seconds,
            "synchronising": self.synchronising / self.seconds,
            "communication": self.communication / self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """Options left to try on this machine and with these images."""

    cores: int
    """Cores per process."""
    images: int
    """Training images per process."""
    can_cache: bool
    """The images fit in memory, and the cached loader was not slower in a trial."""
    threads_help: bool
    """More threads speed up the loader."""
    can_compile: bool
    can_record: bool
    """The step can be captured in a CUDA graph."""


@dataclass(frozen=True)
class Diagnosis:
    bound: Bottleneck | None
    """None if unknown."""
    sentence: str
    avoidable: bool = False
    """The bottleneck is not compute alone."""


def diagnose(timings: Sequence[Timing], config: Config, chosen: Collection[str], room: Headroom) -> Diagnosis:
    """Diagnose the bottleneck of a run.

    Args:
        timings: time of each rank, after start-up.
        config: settings without "auto".
        chosen: names of the settings that were "auto".
    """
    if config.device == "mps":
        return Diagnosis(None, "The bottleneck is not measured on mps.")
    shares = [timing.shares() for timing in timings]
    if not all(shares):
        return Diagnosis(None, "The run was too short to find its bottleneck.")
    together = sum(timings, Timing())
    crowd = _contention_sentence(together)
    images = int(config.batch_size) * config.grad_accum_steps * len(timings)
    waits = [share["communication"] for share in shares]
    late = waits.index(min(waits))
    waited = max(waits) - min(waits)
    if waited >= WORTH_SAYING:  # waits for a straggler rank, not for the network
        bound = _bound({**shares[late], "communication": 0.0})
        start = f"Bottleneck: rank {late}, for which the others wait {waited:.0%} of the time. "
        if bound == "computing":
            text = f"{start}It computes longest: check the load of its processor or GPU."
            return Diagnosis(bound, text + crowd, avoidable=True)
        start, timing = f"{start}It is limited by ", timings[late]
    else:
        bound = _bound(together.shares())
        start, timing = "Bottleneck: ", together
    what, advice = _measured(bound, timing, images), _advice(bound, config, chosen, room)
    avoidable = bound != "computing" or bool(crowd)
    return Diagnosis(bound, start + what + crowd + advice, avoidable=avoidable)


def _bound(shares: dict[Bottleneck, float]) -> Bottleneck:
    """Return the largest avoidable activity if it is large enough, else computing."""
    largest = max(NAMES, key=shares.__getitem__)
    return largest if shares[largest] >= WORTH_SAYING else "computing"


def _contention_sentence(timing: Timing) -> str:
    share = timing.cpu_contention / timing.seconds
    if share < WORTH_SAYING:
        return ""
    return f" CPU contention: the main thread waits for a core {share:.0%} of the time."


def _measured(bound: Bottleneck, timing: Timing, images: int) -> str:
    """Format the bottleneck with its figures. Throughput excludes log lines, as elsewhere.

    Args:
        images: images per step over all ranks.
    """
    shares = timing.shares()
    seconds = timing.seconds - timing.synchronising
    rate = f"{images * timing.steps / seconds:,.0f}"
    if bound == "synchronising":
        return f"host sync: the device idles at log lines and saves {shares[bound]:.0%} of the time."
    if bound == "computing":
        others = [f"{name} {shares[b]:.0%}" for b, name in NAMES.items() if shares[b] >= MIN_REPORTED_SHARE]
        return "; ".join([f"compute: {shares[bound]:.0%} of the time", *others]) + "."
    without = f"{images * timing.steps / max(seconds - getattr(timing, bound), 1e-9):,.0f}"
    if bound == "data":
        return f"data: the loader delivers {rate} img/s, the model could process {without}."
    if bound == "launching":
        return f"launch-bound: the host queues work for {rate} img/s, the device could compute {without}."
    return f"communication: {rate} img/s, and {without} without the exposed all-reduce."


def _advice(bound: Bottleneck, config: Config, chosen: Collection[str], room: Headroom) -> str:
    """Return advice as further sentences; "" if no setting is left."""
    tries = {
        "data": _faster_loading,
        "computing": _faster_computing,
        "launching": _fewer_launches,
        "synchronising": _fewer_stops,
        "communication": _fewer_messages,
    }[bound](config, chosen, room)
    text = f" Try {' or '.join(tries)}." if tries else ""
    if bound != "data":
        return text
    cores = f"the {room.cores} cores" if room.cores > 1 else "one core"
    if config.device == "cpu":
        return f" Both share {cores}{', so a faster loader helps twice.' if text else '.'}{text}"
    return text or f" It has {cores} of each process: more would help."


def _faster_loading(config: Config, chosen: Collection[str], room: Headroom) -> list[str]:
    tries = []
    if config.data_backend != "cached" and room.can_cache:
        tries.append("--data-backend cached")
    elif "data_backend" not in chosen and config.data_backend != "synthetic":
        tries.append("--data-backend auto")
    if room.threads_help and int(config.workers) < room.cores:
        tries.append(f"--workers {room.cores}")
    return tries


def _faster_computing(config: Config, chosen: Collection[str], room: Headroom) -> list[str]:
    tries = []
    if config.device == "cuda" and config.compile == "off" and room.can_compile:
        tries.append("--compile on")
    if config.amp_dtype == "fp32" and "amp_dtype" not in chosen:
        tries.append("--amp-dtype auto")
    if config.channels_last == "off" and "channels_last" not in chosen:
        tries.append("--channels-last auto")
    if config.device == "cuda" and config.deterministic:
        tries.append("--no-deterministic")
    return tries


def _fewer_launches(config: Config, chosen: Collection[str], room: Headroom) -> list[str]:
    tries = [] if config.compile == "on" or not room.can_compile else ["--compile on"]
    if room.can_record and not config.cuda_graph and config.amp_dtype != "fp16":
        tries.append("--cuda-graph")
    return [*tries, *_larger_batch(config, room)]


def _fewer_stops(config: Config, chosen: Collection[str], room: Headroom) -> list[str]:
    tries = []
    interval = int(config.log_interval)
    if interval < room.images // (int(config.batch_size) * config.grad_accum_steps):  # steps per epoch
        tries.append(f"--log-interval {10 * interval}")
    if config.checkpoint_steps is not None:
        tries.append(f"--checkpoint-steps {10 * config.checkpoint_steps}")
    if config.checkpoint_minutes is not None:
        tries.append(f"--checkpoint-minutes {10 * config.checkpoint_minutes:g}")
    return tries


def _fewer_messages(config: Config, chosen: Collection[str], room: Headroom) -> list[str]:
    accumulated = 2 * config.grad_accum_steps
    fits = int(config.batch_size) * accumulated <= room.images
    return [*_larger_batch(config, room), *([f"--grad-accum-steps {accumulated}"] if fits else [])]


def _larger_batch(config: Config, room: Headroom) -> list[str]:
    twice = 2 * int(config.batch_size)
    return [f"--batch-size {twice}"] if twice * config.grad_accum_steps <= room.images else []
