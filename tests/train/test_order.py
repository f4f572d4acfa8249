"""The order of samples is a pure function of (seed, epoch), whoever asks and from wherever."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_cloud.train.order import BatchOrder, Draw, epoch_order

ORDERS = st.builds(
    BatchOrder,
    samples=st.integers(1, 60),
    batch_size=st.integers(1, 16),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    sampling=st.sampled_from(["random", "sequential"]),
    max_steps_per_epoch=st.none() | st.integers(1, 5),
)


@given(ORDERS, st.data())
def test_going_on_from_any_batch_gives_the_rest_of_the_straight_sequence(
    order: BatchOrder, data: st.DataObject
) -> None:
    straight = list(order.batches(0))
    start = data.draw(st.integers(0, order.steps))
    assert list(order.batches(start)) == straight[start:]
    assert len(straight) == order.steps


@given(ORDERS, st.integers(1, 4))
def test_processes_divide_every_batch_among_them(order: BatchOrder, world: int) -> None:
    shares = [list(BatchOrder(**{**vars(order), "rank": rank, "world": world}).batches(0)) for rank in range(world)]
    for whole, *parts in zip(order.batches(0), *shares, strict=True):
        assert Counter(whole) == Counter(draw for part in parts for draw in part)


def test_an_epoch_without_a_limit_visits_every_sample_of_whole_batches_once() -> None:
    order = BatchOrder(samples=23, batch_size=5, epochs=2, seed=1, sampling="random")
    draws = [draw for batch in order.batches(0) for draw in batch]
    for epoch in range(2):
        seen = [draw.sample for draw in draws if draw.epoch == epoch]
        assert len(seen) == len(set(seen)) == 20


def test_sequential_sampling_is_the_order_on_disk() -> None:
    order = BatchOrder(samples=4, batch_size=2, epochs=1, seed=9, sampling="sequential")
    assert list(order.batches(0)) == [[Draw(0, 0), Draw(0, 1)], [Draw(0, 2), Draw(0, 3)]]


def test_a_split_smaller_than_a_batch_is_one_batch() -> None:
    order = BatchOrder(samples=3, batch_size=16, epochs=1, seed=0, sampling="random")
    assert [len(batch) for batch in order.batches(0)] == [3]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_permutations_are_uniform(seed: int) -> None:
    """Where each sample lands over many epochs: chi-square of 20 x 20 counts, with its 99.9 % quantile."""
    size, epochs = 20, 2000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[np.arange(size), epoch_order(size, seed=seed, epoch=epoch, sampling="random")] += 1
    expected = epochs / size
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 451  # scipy.stats.chi2.ppf(0.999, 19 * 19) = 450.6


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed=s, epoch=e, sampling="random")) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_a_long_job_starts_at_once() -> None:
    """Resuming at the millionth step computes one permutation, not a thousand epochs of them."""
    order = BatchOrder(samples=1000, batch_size=1, epochs=10_000, seed=0, sampling="random")
    assert len(list(islice(order.batches(5_000_000), 3))) == 3
