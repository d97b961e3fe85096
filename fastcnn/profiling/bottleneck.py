"""What holds a run back: where its time went, and a sentence that says so and what to try. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from fastcnn.config import Config

Bottleneck = Literal["data", "computing", "launching", "synchronising", "communication"]

WORTH_SAYING = 0.15
"""Share of the time from which on something holds a run back: without it, the run is 18% faster."""
MIN_REPORTED_SHARE = 0.02
"""From which on a share is named beside the others."""

NAMES: dict[Bottleneck, str] = {
    "data": "waiting for data",
    "launching": "launching",
    "synchronising": "log lines and saves",
    "communication": "communication",
}
"""What need not be; computing must."""


@dataclass(frozen=True)
class Timing:
    """Where the time of some steps went: seconds on the device's time line."""

    steps: int = 0
    data: float = 0.0
    """Idle, or copying, until the loader's batch was there."""
    computing: float = 0.0
    launching: float = 0.0
    """Idle within steps, because the host had not queued the next kernel yet; 0 where host and device are
    one."""
    synchronising: float = 0.0
    """Idle between steps, at log lines and saves."""
    communication: float = 0.0
    """After the last gradient, until those of all ranks were averaged."""
    cpu_contention: float = 0.0
    """Of all this, how long the host's thread could have run and had no processor core."""

    def __add__(self, other: Timing) -> Timing:
        return Timing(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    @property
    def seconds(self) -> float:
        return self.data + self.computing + self.launching + self.synchronising + self.communication

    def shares(self) -> dict[Bottleneck, float]:
        """Of each kind, 0 to 1; empty if no step was measured."""
        if not self.steps or not self.seconds:
            return {}
        return {
            "data": self.data / self.seconds,
            "computing": self.computing / self.seconds,
            "launching": self.launching / self.seconds,
            "synchronising": self.synchronising / self.seconds,
            "communication": self.communication / self.seconds,
        }


@dataclass(frozen=True)
class Headroom:
    """What this machine and these images leave to try."""

    cores: int
    """For each process."""
    images: int
    """Training images of each process."""
    can_cache: bool
    """Whether the images can be cached, and were not found to load slower so."""
    threads_help: bool
    """Whether the loader uses as many threads as it is given."""
    can_compile: bool
    can_record: bool
    """Whether a step may become a CUDA graph."""


@dataclass(frozen=True)
class Verdict:
    bound: Bottleneck | None
    """None if nothing can be said."""
    sentence: str
    avoidable: bool = False
    """Whether anything but computing holds the run back."""


def verdict(timings: Sequence[Timing], config: Config, chosen: Collection[str], room: Headroom) -> Verdict:
    """What bounds a run.

    Args:
        timings: of every rank, after start-up.
        config: without "auto".
        chosen: the settings that were "auto".
    """
    if config.device == "mps":
        return Verdict(None, "What bounds the run is not measured on mps.")
    shares = [timing.shares() for timing in timings]
    if not all(shares):
        return Verdict(None, "The run was too short to tell what bounds it.")
    together = sum(timings, Timing())
    crowd = _contention_sentence(together)
    images = int(config.batch_size) * config.grad_accum_steps * len(timings)
    waits = [share["communication"] for share in shares]
    late = waits.index(min(waits))
    waited = max(waits) - min(waits)
    if waited >= WORTH_SAYING:  # not for the network, but for the rank that waits for nobody
        bound = _bound({**shares[late], "communication": 0.0})
        start = f"Bound by rank {late}: the others wait for it {waited:.0%} of the time. "
        if bound == "computing":
            text = f"{start}It computes longest: see what else its processor or GPU does."
            return Verdict(bound, text + crowd, True)
        start, timing = f"{start}It is held up by ", timings[late]
    else:
        bound = _bound(together.shares())
        start, timing = "Bound by ", together
    what, advice = _measured(bound, timing, images), _advice(bound, config, chosen, room)
    return Verdict(bound, start + what + crowd + advice, bound != "computing" or bool(crowd))


def _bound(shares: dict[Bottleneck, float]) -> Bottleneck:
    """The largest share that need not be, if it is worth saying."""
    largest = max(NAMES, key=shares.__getitem__)
    return largest if shares[largest] >= WORTH_SAYING else "computing"


def _contention_sentence(timing: Timing) -> str:
    share = timing.cpu_contention / timing.seconds
    if share < WORTH_SAYING:
        return ""
    return f" The processor is crowded: {share:.0%} of the time the main thread waits for a core."


def _measured(bound: Bottleneck, timing: Timing, images: int) -> str:
    """The bound with its figures, as a sentence's end. Throughput leaves log lines out, as elsewhere.

    Args:
        images: of a step of all ranks.
    """
    shares = timing.shares()
    seconds = timing.seconds - timing.synchronising
    rate = f"{images * timing.steps / seconds:,.0f}"
    if bound == "synchronising":
        return f"{bound}: {shares[bound]:.0%} of the time the device idles at log lines and saves."
    if bound == "computing":
        others = [f"{name} {shares[b]:.0%}" for b, name in NAMES.items() if shares[b] >= MIN_REPORTED_SHARE]
        return "; ".join([f"computing: {shares[bound]:.0%} of the time", *others]) + "."
    without = f"{images * timing.steps / max(seconds - getattr(timing, bound), 1e-9):,.0f}"
    if bound == "data":
        return f"data: the loader gives {rate} img/s, the model could take {without}."
    if bound == "launching":
        return f"launching: the host queues work for {rate} img/s, the device could compute {without}."
    return f"communication: {rate} img/s, and {without} if gradients were there at once."


def _advice(bound: Bottleneck, config: Config, chosen: Collection[str], room: Headroom) -> str:
    """What to try, as further sentences; "" where no setting is left."""
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
    if interval < room.images // (int(config.batch_size) * config.grad_accum_steps):  # steps of an epoch
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
