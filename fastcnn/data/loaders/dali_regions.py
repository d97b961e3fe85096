"""Find out whether DALI decodes regions of JPEGs on this GPU, in a process of its own.

nvImageCodec 0.9.0, which DALI 2.3 and 2.4 bring, fails at ordinary regions on some GPUs, with an error or a
segmentation fault (https://github.com/NVIDIA/nvImageCodec/issues/55). The outcome is cached by GPU and
versions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from fastcnn import files
from fastcnn.data.cache import cache_root
from fastcnn.data.sources.remote import error_cause
from fastcnn.errors import WriteError

SECONDS = 120.0
"""Time limit of the trial; it takes some seconds."""
WORKS, FAILED = "works", "failed"
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""Signals of a crash; others come from outside."""
LONGEST = 120
"""Characters of a reason."""
CODECS = ("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13")
SIZES = ((375, 500), (500, 333), (224, 224), (97, 131))
BATCHES, BATCH_SIZE = 8, 64
MAX_DEVIATION = 3.0
"""Mean deviation of a region from the whole image, of 255; decoders round differently."""


@cache
def regions_work(device: Any, *, announce: bool = True) -> bool:
    """Return whether regions are decoded on a CUDA device, a `torch.device`.

    Args:
        announce: say in one line that they are not.
    """
    import torch

    name = torch.cuda.get_device_name(device)
    kept = cache_root() / "dali" / f"regions-{_digest(name, *_versions())}.txt"
    outcome = _recall(kept)
    if not outcome:
        outcome, is_lasting = try_regions(device.index)
        if is_lasting:
            _keep(kept, outcome)
    if outcome != WORKS and announce:
        remedy = "whole images are decoded, then cut"
        print(f"DALI: regions of images on {name}: {outcome}; {remedy}", file=sys.stderr, flush=True)
    return outcome == WORKS


def try_regions(index: int | None, *, program: str = __name__, seconds: float = SECONDS) -> tuple[str, bool]:
    """Decode regions in a process of its own.

    Args:
        index: number of the GPU; None: on the CPU.
        program: module that the process runs.

    Returns:
        `WORKS` or a reason; and whether it will be the same next time.
    """
    command = [sys.executable, "-m", program, *([] if index is None else [str(index)])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:g} s", False
    except OSError as error:
        return f"not tried: {error.strerror}", False
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0 and last == WORKS:
        return WORKS, True
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}", -done.returncode in CRASHES
    if last.startswith(FAILED):
        return last[:LONGEST], "memory" not in last
    reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
    return f"{FAILED}: {reason[:LONGEST]}", False


def _versions() -> tuple[str, ...]:
    """Return the versions of DALI and nvImageCodec."""
    import nvidia.dali

    found = [nvidia.dali.__version__]
    for package in CODECS:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:24]


def _recall(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _keep(path: Path, outcome: str) -> None:
    """Keep an outcome; without a cache it is tried again next time."""
    try:
        files.make_folder(path.parent, "the cache")
        files.write_text(path, f"{outcome}\n", "the cache", shared=True)
    except WriteError as error:
        print(f"warning: {error}; regions are tried again next time", file=sys.stderr)


# In the process of its own


def main(index: int | None) -> str:
    """Decode regions, and compare them with whole images; return `WORKS`, or `FAILED` with the reason."""
    images = list(_jpegs())
    settings = {"num_threads": 2, "device_id": index, "prefetch_queue_depth": 2}
    whole = _whole(images, gpu=index is not None, batch_size=len(images), **settings)
    whole.build()
    (decoded,) = whole.run()
    pixels = [_to_host(decoded[i]) for i in range(len(images))]
    feed, fed = itertools.tee(_batches(images, pixels))
    regions = _regions(feed, gpu=index is not None, batch_size=BATCH_SIZE, **settings)
    regions.build()
    for (_, starts, shapes), chosen in zip(fed, _choices(len(images))):
        try:
            (found,) = regions.run()
        except RuntimeError as error:
            return f"{FAILED}: {error_cause(str(error))}"
        for i, (start, shape) in enumerate(zip(starts, shapes)):
            (y, x), (h, w) = start.tolist(), shape.tolist()
            expected = pixels[chosen[i]][y : y + h, x : x + w].astype(np.int16)
            region = _to_host(found[i])
            if region.shape != expected.shape or abs(region - expected).mean() > MAX_DEVIATION:
                return f"{FAILED}: other pixels than those of the whole image"
    return WORKS


def _to_host(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.as_cpu() if hasattr(tensor, "as_cpu") else tensor)


def _jpegs() -> Iterator[bytes]:
    """Yield JPEGs of usual sizes and samplings, smooth with some grain."""
    rng = np.random.default_rng(0)
    for (height, width), subsampling, progressive in itertools.product(SIZES, (0, 1, 2), (False, True)):
        coarse = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        grain = rng.integers(-6, 7, smooth.shape)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(
            stream, "JPEG", quality=90, subsampling=subsampling, progressive=progressive
        )
        yield stream.getvalue()


def _choices(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, count, BATCH_SIZE) for _ in range(BATCHES)]


def _batches(images: list[bytes], pixels: list[np.ndarray]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield batches of encoded images, corners and shapes of regions; the last batch for ever."""
    rng = np.random.default_rng(2)
    encoded = [np.frombuffer(image, dtype=np.uint8) for image in images]
    chosen = _choices(len(images))
    for numbers in itertools.chain(chosen, itertools.repeat(chosen[-1])):
        sizes = np.array([pixels[i].shape[:2] for i in numbers])
        shapes = (sizes * rng.uniform(0.1, 1, sizes.shape)).astype(np.int32) + 1
        shapes = np.minimum(shapes, sizes).astype(np.int32)
        starts = (rng.uniform(0, 1, sizes.shape) * (sizes - shapes + 1)).astype(np.int32)
        yield [encoded[i] for i in numbers], list(starts), list(shapes)


@pipeline_def
def _whole(images: list[bytes], *, gpu: bool) -> Any:
    data = fn.external_source([[np.frombuffer(image, dtype=np.uint8) for image in images]], cycle=True)
    return fn.decoders.image(data, device="mixed" if gpu else "cpu", output_type=types.RGB)


@pipeline_def
def _regions(batches: Iterator[Any], *, gpu: bool) -> Any:
    data, start, shape = fn.external_source(batches, num_outputs=3)
    device = "mixed" if gpu else "cpu"
    return fn.decoders.image_slice(data, start, shape, axes=(0, 1), device=device, output_type=types.RGB)


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else None))
