"""Two processes that sum a number with gloo, and with NCCL on two GPUs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from fastcnn.doctor.finding import Finding

SECONDS = 40


def check(data: str | None) -> Iterator[Finding]:
    import torch

    yield together("gloo")
    if torch.cuda.device_count() > 1 and torch.distributed.is_nccl_available():
        yield together("nccl")


def together(backend: str) -> Finding:
    """Start two ranks and wait for them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = f"from fastcnn.doctor.processes import rank; rank({backend!r})"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**shared, "RANK": str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    errors = []
    try:
        for process in ranks:
            _, err = process.communicate(timeout=SECONDS)
            if process.returncode:
                errors.append((err.strip().splitlines() or [f"status {process.returncode}"])[-1])
    except subprocess.TimeoutExpired:
        errors.append(f"no answer in {SECONDS} s")
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    if not errors:
        return Finding(backend, "OK", "two processes sum a number")
    advice = "check the firewall and the network of 127.0.0.1; GLOO_SOCKET_IFNAME=lo picks the interface"
    if backend == "nccl":
        advice = "run with NCCL_DEBUG=INFO; in a container, add --shm-size 8g"
    return Finding(backend, "FAIL", errors[0], advice)


def rank(backend: str) -> None:
    """Sum a number over the ranks; raise RuntimeError if the sum is wrong."""
    import torch
    import torch.distributed as dist

    number = int(os.environ["RANK"])
    device = torch.device("cuda", number) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend)
    total = torch.tensor([number + 1.0], device=device)
    dist.all_reduce(total)
    if total.item() != 3:
        raise RuntimeError(f"1 + 2 over two ranks is {total.item():g}")
    dist.destroy_process_group()
