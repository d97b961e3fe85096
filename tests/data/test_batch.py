"""The order of an epoch in which all classes are equally frequent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcnn.data.batch import ShardedSampler, balanced_order

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 4, 5], [60, 9, 2, 1]))


def sampler(rank: int = 0, world_size: int = 1, batch_size: int = 4) -> ShardedSampler:
    return ShardedSampler(
        count=len(LABELS),
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        train=True,
        seed=7,
        labels=LABELS,
    )


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    epoch=st.integers(0, 50),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_every_class_is_drawn_equally_often_and_each_draw_is_another(counts, epoch, seed):
    labels = np.repeat(np.arange(len(counts)) * 3, counts)
    order = balanced_order(seed, epoch, labels)
    assert len(order) == len(set(order.tolist())) == len(labels)
    samples = order % len(labels)
    of_classes = [np.count_nonzero(labels[samples] == label) for label in np.unique(labels)]
    assert max(of_classes) - min(of_classes) <= 1
    for label in np.unique(labels):  # passes over a class are complete, but the first and the last one
        uses = np.bincount(samples, minlength=len(labels))[labels == label]
        assert uses.max() - uses.min() <= 2


def test_over_many_epochs_the_samples_of_a_class_are_drawn_equally_often():
    total = np.zeros(len(LABELS), dtype=int)
    for epoch in range(25):
        total += np.bincount(balanced_order(3, epoch, LABELS) % len(LABELS), minlength=len(LABELS))
    for label in np.unique(LABELS):
        assert np.ptp(total[LABELS == label]) <= 1
    of_classes = [total[LABELS == label].sum() for label in np.unique(LABELS)]
    assert max(of_classes) - min(of_classes) <= 1


def test_the_order_is_a_function_of_seed_and_epoch():
    assert balanced_order(0, 1, LABELS).tolist() == balanced_order(0, 1, LABELS).tolist()
    others = [balanced_order(0, 2, LABELS), balanced_order(1, 1, LABELS)]
    assert all(balanced_order(0, 1, LABELS).tolist() != other.tolist() for other in others)


def test_classes_are_spread_over_the_epoch():
    labels = LABELS[balanced_order(0, 0, LABELS) % len(LABELS)]
    first = np.bincount(labels[: len(labels) // 2], minlength=6)[[0, 1, 4, 5]]
    assert first.min() >= 3


@pytest.mark.parametrize(("world_size", "consumed"), [(1, 0), (3, 0), (2, 24)])
def test_the_ranks_together_consume_a_prefix(world_size, consumed):
    whole = sampler().order(4)
    parts = [sampler(rank, world_size).order(4, consumed) for rank in range(world_size)]
    length = min(map(len, parts))
    together = np.stack([part[:length] for part in parts], axis=1).ravel()
    assert together.tolist() == whole[consumed:][: len(together)].tolist()
    assert sampler().steps == 18
