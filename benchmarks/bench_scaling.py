"""Weak scaling of fastcnn's training step over the processes of one machine, and a model of more of them.

    python benchmarks/bench_scaling.py --arch resnet18 --img-size 64 --batch-size 32 --processes 1 2
    python benchmarks/bench_scaling.py --from FILE --model 8 16 64 --link-gbps 400

Every process has a batch of its own on its device (NCCL on GPUs, gloo on the CPU). For each number of
processes N these take turns, started together:
  alone      one more process that knows of no others; they wait meanwhile
  apart      N at once without DDP's all-reduce: what they lose to each other's cores and memory
  together   N as in training
Efficiency is the throughput of N over N times that of one alone, round by round; "together" less "apart" is
the communication that computing does not hide. On the CPU every process has the same number of threads: the
cores over the largest N. Then follow an all-reduce of the gradient's bytes by itself, and DDP with buckets of
other sizes.

Writes JSON to benchmarks/results/MACHINE/ after each N. What --model prints is computed, not measured:
benchmarks/scaling_model.py says from what, docs/scaling.md how to read it.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.multiprocessing as mp
import tyro
from torch import nn

import scaling_model as model
from comparison import results_file
from fastcnn import models
from fastcnn.bench import timing
from fastcnn.errors import UserError
from fastcnn.models.parts import image_sizes
from fastcnn.runtime import environment, machine
from fastcnn.runtime.distributed import Ranks, choose_device
from fastcnn.setup.cpu_trials import probe_arithmetic
from scaling_worker import ALONE, APART, TOGETHER, Job, Seconds, work

QUICK_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    arch: str = "resnet18"
    img_size: int = 64
    batch_size: int = 32
    """Images of each process."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes, measured one after the other."""
    bucket_mb: tuple[int, ...] = (1, 5, 25, 100)
    """MiB of gradients that DDP sends together; torch's own choice is measured too."""
    rounds: int = 15
    """Timed turns of each side."""
    quick: bool = False
    """Five rounds, and every other bucket size."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """auto: on with CUDA, as in training."""
    output: str | None = None
    """JSON file; by default under benchmarks/results/."""
    earlier: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Measure nothing: print what this JSON file of an earlier run says."""
    model: tuple[int, ...] = ()
    """Numbers of processes to compute the efficiency for."""
    link_gbps: float | None = None
    """Gbit/s over the slowest link between them, for --model; by default what the all-reduce reached here."""
    latency_us: float = 10
    """Microseconds for each step around the ring, for --model: an assumption."""


def measure(job: Job) -> dict[str, Any]:
    """Measure one number of processes and return its row."""
    n = job.processes
    count = n + 1 if n > 1 else 1
    mp.spawn(work, (job, mp.get_context("spawn").Barrier(count)), nprocs=count)
    found = [json.loads(Path(job.folder, f"{index}.json").read_text()) for index in range(count)]
    turns = {name: slowest([one["turns"] for one in found], name) for name in found[0]["turns"]}
    together = turns.get(TOGETHER, turns[ALONE])
    row: dict[str, Any] = {
        "processes": n,
        "step_seconds": {name: timing.summary(values) for name, values in turns.items()},
        "images_per_second": timing.summary([n * job.batch_size / s for s in together]),
        "efficiency": timing.summary(timing.ratios(turns[ALONE], together)),
    }
    if n > 1:
        group = found[:n]
        reduce = slowest([one["all_reduce"] for one in group], "all-reduce")
        moved = 2 * (n - 1) / n * job.gradient_bytes
        row["exposed_seconds"] = timing.summary([a - b for a, b in zip(together, turns[APART])])
        row["all_reduce_seconds"] = timing.summary(reduce)
        row["bus_bytes_per_second"] = timing.summary([moved / s for s in reduce])
        row["bucket_step_seconds"] = {
            size: timing.summary(slowest([one["buckets"] for one in group], size))
            for size in job.bucket_sizes
        }
    return row


def slowest(seconds: list[Seconds], name: str) -> list[float]:
    """Seconds of the last process to end in each round; all of them start together."""
    return [max(values) for values in zip(*(one[name] for one in seconds))]


def check(settings: Settings, places: int, what: str) -> None:
    """Check the settings against the machine.

    Args:
        places: number of cores or GPUs.
        what: their name.

    Raises:
        UserError: a setting cannot be measured or modelled here.
    """
    for flag, least in (
        ("--processes", min(settings.processes, default=0)),
        ("--model", min(settings.model, default=1)),
        ("--bucket-mb", min(settings.bucket_mb, default=1)),
    ):
        if least < 1:
            raise UserError(f"{flag} {least}: use at least 1")
    if settings.link_gbps is not None and settings.link_gbps <= 0:
        raise UserError(f"--link-gbps {settings.link_gbps:g}: use more than 0")
    if settings.latency_us < 0:
        raise UserError(f"--latency-us {settings.latency_us:g}: use at least 0")
    if settings.earlier is not None:
        return
    if max(settings.processes) > places:
        raise UserError(f"--processes {max(settings.processes)}: here are {places} {what}; use {places}")
    if settings.rounds < 2 or settings.batch_size < 2:
        raise UserError("--rounds and --batch-size: use at least 2")
    size, sizes = settings.img_size, image_sizes(settings.arch)
    fits = size >= sizes.minimum_image_size and size % sizes.image_size_multiple == 0
    if not fits or (sizes.fixed_image_size and size != sizes.default_image_size):
        raise UserError(
            f"--img-size {size}: {settings.arch} does not take it; use {sizes.default_image_size}"
        )


def run(settings: Settings) -> tuple[dict[str, Any], Path]:
    """Measure, and write the report after each number of processes."""
    kind = settings.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = choose_device(kind, Ranks())
    cores = machine.cores_per_process(Ranks())
    places = (torch.cuda.device_count(), "GPUs") if kind == "cuda" else (cores, "cores")
    check(settings, *places)
    threads = cores // max(settings.processes)
    network = models.build(settings.arch, num_classes=1000).to(memory_format=torch.channels_last)
    job = Job(
        arch=settings.arch,
        img_size=settings.img_size,
        batch_size=settings.batch_size,
        bucket_mb=settings.bucket_mb[:: 2 if settings.quick else 1],
        rounds=QUICK_ROUNDS if settings.quick else settings.rounds,
        device=kind,
        threads=threads,
        dtype="bf16" if kind == "cuda" else probe(network, settings.img_size, settings.batch_size, threads),
        compile=settings.compile == "on" or (settings.compile == "auto" and kind == "cuda"),
        gradient_bytes=sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad),
    )
    report: dict[str, Any] = {
        "what": "weak scaling of the training step over processes of one machine",
        "environment": environment.environment(device),
        "settings": vars(settings),
        "fastcnn_dtype": job.dtype,
        "compiled": job.compile,
        "threads_per_process": threads,
        "rounds": job.rounds,
        "gradient_bytes": job.gradient_bytes,
        "rows": [],
    }
    name = f"scaling-{settings.arch.replace('/', '-')}-{settings.img_size}px-batch{settings.batch_size}"
    path = results_file(name, settings.output, device)
    for processes in dict.fromkeys(settings.processes):
        with tempfile.TemporaryDirectory() as folder:
            report["rows"].append(measure(replace(job, processes=processes, port=free_port(), folder=folder)))
        timing.write_json(path, report)
        print(f"{processes} done", file=sys.stderr)
    return report, path


def probe(network: nn.Module, size: int, batch_size: int, threads: int) -> str:
    """Probe the CPU's dtype, with the number of threads of each process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    machine.keep_freed_memory()  # as before a training
    way, _ = probe_arithmetic(network, (batch_size, 3, size, size), channels_last="on")
    torch.set_num_threads(before)
    return way.dtype


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read(path: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--from {path}: {error}; use a JSON file of this script's") from error
    if not isinstance(report, dict) or not report.get("rows") or "gradient_bytes" not in report:
        raise UserError(f"--from {path}: holds no scaling; use a JSON file of this script's")
    return report


def table(report: dict[str, Any]) -> list[str]:
    settings, where, rows = report["settings"], report["environment"], report["rows"]
    megabytes = f"{report['gradient_bytes'] / 1e6:.1f} MB"
    lines = [
        f"{where.get('gpu', where['processor'])}, torch {where['torch']}, commit {where['commit']}",
        f"{settings['arch']}, {settings['img_size']} px, {settings['batch_size']} images and "
        f"{report['threads_per_process']} threads a process, {report['fastcnn_dtype']}, gradient {megabytes}",
        f"{'':<9}{'':>8}{'median ms a step':>25}",
        f"{'processes':<9}{'img/s':>8}{ALONE:>9}{APART:>8}{TOGETHER:>10}  exposed ms (quartiles)   "
        "efficiency",
    ]
    for row in rows:
        steps = {name: f"{1000 * value['median']:.1f}" for name, value in row["step_seconds"].items()}
        exposed = {key: 1000 * value for key, value in row.get("exposed_seconds", {}).items()}
        lines.append(
            f"{row['processes']:<9}{row['images_per_second']['median']:>8,.0f}{steps[ALONE]:>9}"
            f"{steps.get(APART, ''):>8}{steps.get(TOGETHER, ''):>10}  "
            f"{timing.spread(exposed) if exposed else '':<24} {timing.spread(row['efficiency'])}"
        )
    for row in rows:
        if row["processes"] > 1:
            seconds, speed = row["all_reduce_seconds"]["median"], row["bus_bytes_per_second"]["median"]
            lines += [
                f"{row['processes']} processes: all-reduce of {megabytes} by itself {1000 * seconds:.1f} ms, "
                f"{speed / 1e9:.2f} GB/s of bus bandwidth",
                f"{row['processes']} processes, ms a step (quartiles) by bucket size:",
            ]
            for size, value in row["bucket_step_seconds"].items():
                lines.append(f"  {size:<8} {timing.spread({key: 1000 * v for key, v in value.items()})}")
    return lines


def modelled(report: dict[str, Any], counts: Sequence[int], gbps: float | None, latency: float) -> list[str]:
    """Lines of the expected efficiency with `counts` processes, from the measured step of one.

    Args:
        gbps: Gbit/s of the slowest link; None: the rate of the all-reduce of the most processes measured.
        latency: seconds.
    """
    step = report["rows"][0]["step_seconds"][ALONE]["median"]
    bandwidth, origin = (gbps or 0) * 1e9 / 8, "as told"
    if gbps is None:
        speeds = [row["bus_bytes_per_second"]["median"] for row in report["rows"] if row["processes"] > 1]
        if not speeds:
            raise UserError("--model: no all-reduce was measured; add --link-gbps")
        bandwidth, origin = speeds[-1], "as the all-reduce here"
    lines = [
        f"modelled from {1000 * step:.1f} ms a step alone, {report['gradient_bytes'] / 1e6:.1f} MB, "
        f"{bandwidth * 8 / 1e9:.4g} Gbit/s {origin}, {1e6 * latency:g} us a ring step:"
    ]
    for count in counts:
        exposed = model.exposed_seconds(
            step, report["gradient_bytes"], count, bandwidth=bandwidth, latency=latency
        )
        lines.append(
            f"modelled, {count} processes: efficiency {model.efficiency(step, exposed):.2f}, "
            f"{1000 * exposed:.1f} ms exposed"
        )
    return lines


def main(settings: Settings) -> int:
    try:
        if settings.earlier is not None:
            check(settings, 0, "")
            report, path = read(settings.earlier), None
        else:
            report, path = run(settings)
        print("\n".join(table(report)))
        if settings.model:
            latency = settings.latency_us / 1e6
            print("\n".join(modelled(report, settings.model, settings.link_gbps, latency)))
        if path is not None:
            print(path)
    except UserError as error:
        print(f"bench_scaling: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings, description=__doc__)))
