"""DALI: its import, its CUDA version against the driver, a pipeline on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import sys
from collections.abc import Iterator

from fastcnn.doctor.accelerator import DRIVERS, driver_version
from fastcnn.doctor.finding import Finding

BUILDS = {12: "nvidia-dali-cuda120", 13: "nvidia-dali-cuda130"}
"""Packages by CUDA version."""


def check(data: str | None) -> Iterator[Finding]:
    if not sys.platform.startswith("linux"):
        yield Finding("DALI", "OK", "not for this platform; images are loaded by torchvision")
        return
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        advice = 'pip install "fastcnn[dali]" for a faster loader'
        yield Finding("DALI", "WARN", "not installed; images are loaded by torchvision", advice)
        return
    import nvidia.dali

    yield against_driver(nvidia.dali.__version__, builds(), driver_version())
    yield pipeline()


def builds() -> list[int]:
    """Return the CUDA versions of the installed packages."""
    found = []
    for cuda, package in BUILDS.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(cuda)
    return found


def against_driver(version: str, cuda: list[int], driver: str | None) -> Finding:
    """Compare the installed packages with the driver."""
    text = f"{version} for CUDA {' and '.join(map(str, cuda))}" if cuda else version
    if len(cuda) > 1:
        advice = f"keep one of {' and '.join(BUILDS[n] for n in cuda)}, in a fresh environment"
        return Finding("DALI", "FAIL", f"{text}: their files have the same names", advice)
    if cuda and driver is not None and int(driver.split(".")[0]) < DRIVERS[cuda[0]]:
        remedy = f"update the driver to {DRIVERS[cuda[0]]} or newer"
        advice = f'{remedy}, or use "fastcnn[dali]" in a fresh environment' if cuda[0] > 12 else remedy
        return Finding("DALI", "FAIL", f"{text}, driver {driver}", advice)
    return Finding("DALI", "OK", text)


def pipeline() -> Finding:
    """Decode an image on the CPU."""
    import numpy as np
    from nvidia.dali import fn, pipeline_def
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(stream, "JPEG")
    content = np.frombuffer(stream.getvalue(), np.uint8)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decode():
        return fn.decoders.image(fn.external_source(lambda: [content], dtype=None), device="cpu")

    pipe = decode()
    pipe.build()
    shape = pipe.run()[0].at(0).shape
    if shape == (48, 64, 3):
        return Finding("DALI pipeline", "OK", "decodes a JPEG on the CPU")
    return Finding("DALI pipeline", "FAIL", f"decodes to {shape}", "reinstall DALI in a fresh environment")
