"""torch, the CUDA driver and native bf16."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from fastcnn.doctor.finding import Finding

DRIVERS = {12: 525, 13: 580}
"""Oldest driver of each CUDA version (NVIDIA's CUDA Compatibility guide, minor version compatibility)."""


def check(data: str | None) -> Iterator[Finding]:
    import torch
    import torchvision

    from fastcnn.runtime.machine import NO_BF16, is_native

    yield Finding("torch", "OK", f"{torch.__version__}, torchvision {torchvision.__version__}")
    yield cuda(torch.version.cuda, driver_version())
    if torch.cuda.is_available():
        yield from devices()
    if is_native("bf16"):
        yield Finding("bf16 on the CPU", "OK", torch.backends.cpu.get_cpu_capability())
    else:
        yield Finding("bf16 on the CPU", "OK", f"{NO_BF16}; auto selects fp32")


def driver_version() -> str | None:
    """Return the NVIDIA driver's version; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def cuda(runtime: str | None, driver: str | None) -> Finding:
    """Compare the CUDA version of torch with the driver."""
    import torch

    name = "CUDA"
    if driver is None:
        with_cuda = f"torch has CUDA {runtime}" if runtime else "torch has none"
        return Finding(name, "OK", f"no NVIDIA GPU or driver; {with_cuda}")
    if runtime is None:
        advice = "install a torch with CUDA (pytorch.org/get-started)"
        return Finding(name, "FAIL", f"driver {driver}, but this torch is for the CPU alone", advice)
    text = f"torch has CUDA {runtime}, driver {driver}"
    needed = DRIVERS.get(int(runtime.split(".")[0]))
    if needed is not None and int(driver.split(".")[0]) < needed:
        advice = f"update the driver to {needed} or newer, or install a torch for an older CUDA"
        return Finding(name, "FAIL", text, advice)
    if not torch.cuda.is_available():
        advice = "check CUDA_VISIBLE_DEVICES, and docker's --gpus all"
        return Finding(name, "FAIL", f"{text}, but torch sees no GPU", advice)
    return Finding(name, "OK", text)


def devices() -> Iterator[Finding]:
    """Multiply on each GPU."""
    import torch

    for index in range(torch.cuda.device_count()):
        name = f"GPU {index}"
        try:
            ones = torch.ones(256, 256, device=torch.device("cuda", index))
            correct = (ones @ ones).sum().item() == 256**3
        except RuntimeError as error:
            yield Finding(name, "FAIL", str(error).splitlines()[0], "check nvidia-smi for errors of this GPU")
            continue
        free, total = (count / 1e9 for count in torch.cuda.mem_get_info(index))
        text = f"{torch.cuda.get_device_name(index)}, {free:.0f} of {total:.0f} GB free"
        if correct:
            yield Finding(name, "OK", text)
        else:
            yield Finding(name, "FAIL", f"{text}, wrong product", "check its memory (nvidia-smi -q -d ECC)")
