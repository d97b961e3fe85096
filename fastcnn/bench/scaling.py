"""A model of weak scaling: how efficient data-parallel training would be with more processes than measured.

Torch-free. Nothing here is measured; what prints its results says "modelled".
"""

from __future__ import annotations

import math

BUCKET_BYTES = 25 * 2**20
"""Of gradients in one all-reduce: DDP's own limit."""
BACKWARD_SHARE = 2 / 3
"""Of a step: backward makes two products, for inputs and for weights, where forward makes one."""


def ring_all_reduce_seconds(size: float, processes: int, bandwidth: float, latency: float) -> float:
    """Seconds to sum `size` bytes over a ring of processes.

    2(N - 1) steps: in each every process sends 1/N of the bytes to its neighbour. No all-reduce sends fewer
    (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009).

    Args:
        bandwidth: bytes a second in each direction over the slowest link of the ring.
        latency: seconds of each step besides.
    """
    return 2 * (processes - 1) * (size / processes / bandwidth + latency)


def exposed_seconds(
    step: float,
    gradient_bytes: float,
    processes: int,
    bandwidth: float,
    latency: float,
    bucket_bytes: float = BUCKET_BYTES,
    backward_share: float = BACKWARD_SHARE,
) -> float:
    """Seconds of a step in which nothing is computed because gradients are on their way.

    As DDP works (Li et al., "PyTorch Distributed", VLDB 2020, section 3.2): gradients travel in buckets, one
    after the other, each while the backward pass computes the next. What of that takes longer than computing
    is exposed, and so is the last bucket, which is full when the backward pass ends. Assumed are

    - equal buckets, filled evenly over the backward pass;
    - communication that takes nothing from computing: no cores, no memory bandwidth;
    - processes that are equally fast, and a network that nobody else uses;
    - a ring. For small buckets on many nodes NCCL has trees with less latency.

    Args:
        step: seconds of a step of one process.
        bandwidth, latency: as for `ring_all_reduce_seconds`.
        backward_share: of the step.
    """
    if processes == 1:
        return 0.0
    buckets = max(1, math.ceil(gradient_bytes / bucket_bytes))
    one = ring_all_reduce_seconds(gradient_bytes / buckets, processes, bandwidth, latency)
    return one + (buckets - 1) * max(0.0, one - backward_share * step / buckets)


def efficiency(step: float, exposed: float) -> float:
    """Throughput of N processes over N times that of one, each with a batch of its own."""
    return step / (step + exposed)
