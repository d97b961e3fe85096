"""Short timed trials on the CPU: data type, memory format, compilation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fastcnn.engine.state import Normalized
from fastcnn.models.base import logits_of
from fastcnn.runtime.machine import NO_BF16, is_native

Shape = tuple[int, int, int, int]
"""Shape of a batch of images, [N, C, H, W]."""


@dataclass(frozen=True)
class Arithmetic:
    """Data type and memory format of a network on the CPU."""

    dtype: str
    """A name in `fastcnn.runtime.machine.DTYPES`."""
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.dtype} {'channels-last' if self.channels_last else 'NCHW'}"


MARGIN = 0.95
"""Max time of another arithmetic to be chosen over fp32 channels-last, as a fraction: less is noise."""
TRIAL_PIXELS = 32 * 64 * 64
"""Max pixels of a trial step."""
TRIAL_SECONDS = 0.5
"""Max duration of a trial step."""
TRIAL_LIMIT = 10.0
"""Max duration, in seconds, of the first trial step; beyond it no other arithmetic is tried."""
MIN_TRIAL_IMAGES = 4
"""Min images of a trial step: batch norm needs several."""
WORTH_COMPILING = 3600
"""Min duration of a run, in seconds, for a trial of compilation on the CPU: it takes one or two minutes, and
speeds a step up by a tenth at best (benchmarks/LOG.md)."""


def probe_arithmetic(
    network: nn.Module,
    shape: Shape,
    *,
    dtype: str = "auto",
    channels_last: str = "auto",
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Arithmetic, str]:
    """Time forward and backward passes on the CPU in bf16 and fp32, channels-last and NCHW, in turn.

    None is fastest for every network: bf16 speeds up dense convolutions and slows down depthwise ones. It is
    skipped if the processor emulates it.

    Args:
        shape: of a batch of images, [N, C, H, W].
        dtype, channels_last: values of the flags; other than "auto" they are fixed.

    Returns:
        The fastest arithmetic, and the figures as the reason.
    """
    if dtype != "auto" and not is_native(dtype):  # each trial could take minutes
        return Arithmetic(dtype, channels_last != "off"), NO_BF16
    skipped = dtype == "auto" and not is_native("bf16")
    dtypes = [dtype] if dtype != "auto" else ["fp32"] if skipped else ["fp32", "bf16"]
    layouts = [channels_last == "on"] if channels_last != "auto" else [True, False]
    ways = [Arithmetic(name, layout) for layout in layouts for name in dtypes]
    if len(ways) == 1:
        return ways[0], NO_BF16
    batch_size, channels, height, width = shape
    count = max(MIN_TRIAL_IMAGES, min(batch_size, TRIAL_PIXELS // (height * width)))
    images = random_images((count, *shape[1:]))
    models = {layout: _trial_model(network, channels, channels_last=layout) for layout in layouts}
    elapsed = trial_step(models[layouts[0]], images[:MIN_TRIAL_IMAGES], ways[0], clock)
    if elapsed > TRIAL_LIMIT:
        return ways[0], f"a step of {MIN_TRIAL_IMAGES} images took {elapsed:.0f} s, too long to try others"
    if elapsed > 0:  # fewer images for a slow network
        count = max(MIN_TRIAL_IMAGES, min(count, int(MIN_TRIAL_IMAGES * TRIAL_SECONDS / elapsed)))
        images = images[:count]
    seconds = dict.fromkeys(ways, math.inf)
    for _ in range(3):  # the first round warms up
        for way in ways:
            elapsed = trial_step(models[way.channels_last], images, way, clock)
            seconds[way] = min(seconds[way], elapsed)
    best = min(ways, key=seconds.__getitem__)
    if seconds[best] > MARGIN * seconds[ways[0]]:
        best = ways[0]
    figures = ", ".join(f"{way} {1000 * elapsed:.0f} ms" for way, elapsed in seconds.items())
    return best, f"{count} images took {figures}" + (f"; {NO_BF16}" if skipped else "")


def probe_compile(
    network: nn.Module,
    shape: Shape,
    way: Arithmetic,
    *,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[bool, str]:
    """Decide whether to compile a run on the CPU, by a trial if the run is long.

    Args:
        shape: of a batch of images, [N, C, H, W].
        steps: length of the run.

    Returns:
        The choice, and its reason.
    """
    if steps == 0:
        return False, "nothing is trained"
    if not is_native(way.dtype):
        return False, NO_BF16
    batch_size, channels = shape[:2]
    eager = _trial_model(network, channels, channels_last=way.channels_last)
    some = random_images((min(batch_size, 4), *shape[1:]))
    usual = min(trial_step(eager, some, way, clock) for _ in range(2)) * batch_size / len(some)
    if steps * usual < WORTH_COMPILING:
        return False, f"{steps:,} steps take less than an hour"
    images = random_images(shape)
    fresh = _trial_model(network, channels, channels_last=way.channels_last)
    compiled = cast(nn.Module, torch.compile(fresh, dynamic=False))
    try:
        first = trial_step(compiled, images, way, clock)
    except Exception as error:  # any failure of the compiler: the network trains without it
        return False, f"compilation failed: {type(error).__name__}: {error}".partition("\n")[0]
    usual = faster = math.inf
    for _ in range(3):
        faster = min(faster, trial_step(compiled, images, way, clock))
        usual = min(usual, trial_step(eager, images, way, clock))
    figures = f"{1000 * faster:.0f} ms a step, {1000 * usual:.0f} without, after {first:.0f} s"
    return faster < MARGIN * usual and steps * (usual - faster) > first, figures


def random_images(shape: Shape, device: torch.device | None = None) -> Tensor:
    """Return random images, uint8 [N, C, H, W] in channels-last memory, as a loader yields them."""
    count, channels, height, width = shape
    images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, device=device)
    return images.permute(0, 3, 1, 2)


def _trial_model(network: nn.Module, channels: int, *, channels_last: bool) -> nn.Module:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    copied = copy.deepcopy(network).to(memory_format=layout)
    return Normalized(copied, [0.5] * channels, [0.5] * channels, channels_last=channels_last).train()


def trial_step(model: nn.Module, images: Tensor, way: Arithmetic, clock: Callable[[], float]) -> float:
    """Return the seconds of a forward and backward pass."""
    start = clock()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way.dtype == "bf16"):
        loss = logits_of(model(images)).float().square().mean()
    loss.backward()
    elapsed = clock() - start
    model.zero_grad()
    return elapsed
