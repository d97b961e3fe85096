"""Analytical model of weak scaling: efficiency of data-parallel training with more processes than measured.

Torch-free. Nothing here is measured; its results are printed as "modelled".
"""

from __future__ import annotations

import math

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients in one all-reduce: DDP's default."""
BACKWARD_SHARE = 2 / 3
"""Backward pass's share of a step: two products, for inputs and for weights, where forward has one."""


def ring_all_reduce_seconds(size: float, processes: int, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of `size` bytes over a ring of processes.

    It has 2(N - 1) steps; in each, every process sends 1/N of the bytes to its neighbor. No all-reduce sends
    fewer bytes (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
    2009).

    Args:
        bandwidth: bytes per second, in each direction, over the slowest link of the ring.
        latency: further seconds of each step.
    """
    return 2 * (processes - 1) * (size / processes / bandwidth + latency)


def exposed_seconds(
    step: float,
    gradient_bytes: float,
    processes: int,
    *,
    bandwidth: float,
    latency: float,
    bucket_bytes: float = BUCKET_BYTES,
    backward_share: float = BACKWARD_SHARE,
) -> float:
    """Seconds of a step spent on all-reduces that the backward pass does not hide.

    DDP (Li et al., "PyTorch Distributed", VLDB 2020, section 3.2) reduces gradients in buckets, one after the
    other, while the backward pass computes the next bucket. Exposed are the part of an all-reduce that takes
    longer than computing, and the whole last bucket, which is full when the backward pass ends. Assumptions:

    - equal buckets, filled evenly over the backward pass;
    - no cost of communication to computing, in cores or memory bandwidth;
    - equally fast processes and an otherwise idle network;
    - a ring. For small buckets on many nodes NCCL has trees with less latency.

    Args:
        step: seconds of a step of one process.
        bandwidth, latency: as for `ring_all_reduce_seconds`.
        backward_share: share of the step that is the backward pass.
    """
    if processes == 1:
        return 0.0
    buckets = max(1, math.ceil(gradient_bytes / bucket_bytes))
    one = ring_all_reduce_seconds(gradient_bytes / buckets, processes, bandwidth, latency)
    return one + (buckets - 1) * max(0.0, one - backward_share * step / buckets)


def efficiency(step: float, exposed: float) -> float:
    """Throughput of N processes over N times that of one, with a constant batch size per process."""
    return step / (step + exposed)
