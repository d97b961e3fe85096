"""Counter-based random numbers by seed, epoch and sample, so that a run can resume anywhere."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(
    seed: int,
    epoch: int,
    samples: np.ndarray,
    count: int,
    *,
    stream: tuple[int, ...] = (),
    first: int | None = None,
) -> np.ndarray:
    """Return random numbers from 0 to 1 that depend only on seed, epoch and sample.

    They are outputs of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), with one stream per (seed, epoch) and
    `count` consecutive positions per sample.

    Args:
        samples: int64 [N].
        count: numbers per sample.
        stream: key of a further independent stream.
        first: compute only the first numbers of each sample; None: all.

    Returns:
        float64 [N, count] or [N, first], 1 excluded.
    """
    key = np.random.SeedSequence((seed, epoch), spawn_key=stream).generate_state(1, np.uint64)[0]
    columns = np.arange(1, (count if first is None else first) + 1, dtype=np.uint64)
    place = samples.astype(np.uint64)[:, None] * np.uint64(count) + columns
    with np.errstate(over="ignore"):
        z = key + place * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
