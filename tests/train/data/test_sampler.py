"""The order of samples is a pure function of (seed, epoch), for any number of processes and any start."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import replace
from itertools import accumulate, islice, pairwise, zip_longest

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from shuffle_quality import shuffle_quality

from mtl_cloud.errors import TrainingError
from mtl_cloud.jobspec.job import MixingSpec
from mtl_cloud.train.data.sampler import BatchSampler, Draw, apportion, epoch_order, interleave, shard_order

MIXINGS = st.builds(
    MixingSpec,
    schedule=st.sampled_from(["mixed", "round_robin"]),
    ratio=st.sampled_from(["uniform", "proportional", "sqrt", "temperature"]),
    temperature=st.floats(0.5, 10),
)


@st.composite
def orders(draw: st.DrawFn) -> BatchSampler:
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3).filter(lambda sizes: sum(sizes) >= 3))
    in_shards = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    return BatchSampler(
        sizes=tuple(sizes),
        shards=tuple(np.arange(size) % 5 if some else None for size, some in zip(sizes, in_shards, strict=True)),
        batch_size=draw(st.integers(1, max(1, sum(sizes) // 3))),
        epochs=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**32 - 1)),
        sampling=draw(st.sampled_from(["random", "sequential"])),
        mixing=draw(MIXINGS),
        max_steps_per_epoch=draw(st.none() | st.integers(3, 5)),
    )


ORDERS = orders()


@given(ORDERS, st.data())
def test_resuming_at_any_batch_gives_the_rest_of_the_straight_sequence(
    sampler: BatchSampler, data: st.DataObject
) -> None:
    straight = list(sampler.batches(0))
    start = data.draw(st.integers(0, sampler.steps))
    assert list(sampler.batches(start)) == straight[start:]
    assert len(straight) == sampler.steps


@given(ORDERS, st.integers(1, 4))
def test_processes_divide_every_batch_among_them(sampler: BatchSampler, world: int) -> None:
    shares = [list(replace(sampler, rank=rank, world=world).batches(0)) for rank in range(world)]
    for whole, *parts in zip(sampler.batches(0), *shares, strict=True):
        assert Counter(whole) == Counter(draw for part in parts for draw in part)


@given(ORDERS, st.data())
def test_a_job_that_changes_its_number_of_processes_anywhere_draws_the_same_samples_in_the_same_order(
    sampler: BatchSampler, data: st.DataObject
) -> None:
    changes = sorted(data.draw(st.lists(st.integers(0, sampler.steps), max_size=3)))
    drawn: list[list[Draw]] = []
    for start, stop in pairwise([0, *changes, sampler.steps]):
        world = data.draw(st.integers(1, 4))
        shares = [replace(sampler, rank=rank, world=world).batches(start) for rank in range(world)]
        for _, *parts in zip(range(start, stop), *shares, strict=False):
            drawn.append([draw for turn in zip_longest(*parts) for draw in turn if draw is not None])
    assert drawn == list(sampler.batches(0))


def test_an_epoch_without_a_limit_visits_every_sample_of_whole_batches_once() -> None:
    sampler = BatchSampler(sizes=(23,), batch_size=5, epochs=2, seed=1, sampling="random")
    draws = [draw for batch in sampler.batches(0) for draw in batch]
    for epoch in range(2):
        seen = [draw.sample for draw in draws if draw.epoch == epoch]
        assert len(seen) == len(set(seen)) == 20


def test_sequential_sampling_is_the_order_on_disk() -> None:
    sampler = BatchSampler(sizes=(4,), batch_size=2, epochs=1, seed=9, sampling="sequential")
    assert list(sampler.batches(0)) == [[Draw(0, 0), Draw(0, 1)], [Draw(0, 2), Draw(0, 3)]]


def test_a_split_smaller_than_a_batch_is_one_batch() -> None:
    sampler = BatchSampler(sizes=(3,), batch_size=16, epochs=1, seed=0, sampling="random")
    assert [len(batch) for batch in sampler.batches(0)] == [3]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_permutations_are_uniform(seed: int) -> None:
    """Chi-square test of the positions of samples over many epochs: 20 x 20 counts, 99.9 % quantile."""
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
    sampler = BatchSampler(sizes=(1000,), batch_size=1, epochs=10_000, seed=0, sampling="random")
    assert len(list(islice(sampler.batches(5_000_000), 3))) == 3


# --- several datasets ------------------------------------------------------------------------------------------------


def source_of(sampler: BatchSampler, sample: int) -> int:
    return bisect_right(list(accumulate(sampler.sizes)), sample)


def draws_of_epochs(sampler: BatchSampler) -> list[list[Draw]]:
    batches = list(sampler.batches(0))
    n = sampler.steps_per_epoch
    return [[draw for batch in batches[e * n : (e + 1) * n] for draw in batch] for e in range(sampler.epochs)]


@given(ORDERS)
def test_every_epoch_gives_each_dataset_its_share(sampler: BatchSampler) -> None:
    """To within one unit (an image, or a step); a dataset with a smaller share gets one unit."""
    assume(len(sampler.sizes) > 1)
    takes_turns = sampler.mixing.schedule == "round_robin"
    assume(takes_turns or sampler.mixing.ratio != "proportional")
    power = {"uniform": 0, "sqrt": 0.5, "proportional": 1, "temperature": 1 / sampler.mixing.temperature}
    weights = [size ** power[sampler.mixing.ratio] for size in sampler.sizes]
    for draws in draws_of_epochs(sampler):
        assert len(draws) == sampler.steps_per_epoch * sampler.batch_size
        unit = sampler.batch_size if takes_turns else 1
        drawn = Counter(source_of(sampler, draw.sample) for draw in draws)
        for source, weight in enumerate(weights):
            exact = len(draws) * weight / sum(weights)
            assert drawn[source] == unit or abs(drawn[source] - exact) < unit * len(weights)


@given(ORDERS)
def test_no_sample_of_a_dataset_comes_again_before_all_its_others_have_come(sampler: BatchSampler) -> None:
    assume(len(sampler.sizes) > 1)
    assume(sampler.mixing.schedule == "round_robin" or sampler.mixing.ratio != "proportional")
    drawn = [draw for draws in draws_of_epochs(sampler) for draw in draws]
    assert len(set(drawn)) == len(drawn)  # pass and sample key the augmentation: it never repeats
    counts = Counter(draw.sample for draw in drawn)
    for source, size in enumerate(sampler.sizes):
        first = sum(sampler.sizes[:source])
        own = [counts[sample] for sample in range(first, first + size)]
        assert max(own) - min(own) <= 1


@given(ORDERS)
def test_in_round_robin_a_batch_is_of_one_dataset_and_the_step_says_which(sampler: BatchSampler) -> None:
    takes_turns = len(sampler.sizes) > 1 and sampler.mixing.schedule == "round_robin"
    for step, batch in enumerate(sampler.batches(0)):
        sources = {source_of(sampler, draw.sample) for draw in batch}
        assert sampler.source(step) == (sources.pop() if takes_turns else None)


def test_equal_datasets_take_strict_turns() -> None:
    mixing = MixingSpec(schedule="round_robin", ratio="uniform")
    sampler = BatchSampler(sizes=(40, 4, 10), batch_size=6, epochs=1, seed=0, sampling="random", mixing=mixing)
    assert [sampler.source(step) for step in range(9)] == [0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_datasets_mixed_in_proportion_are_seen_once_an_epoch() -> None:
    sampler = BatchSampler(sizes=(7, 20, 3), batch_size=5, epochs=2, seed=1, sampling="random")
    for draws in draws_of_epochs(sampler):
        assert sorted(draw.sample for draw in draws) == list(range(30))


def test_the_processes_of_a_mixed_batch_get_every_dataset() -> None:
    """An even spread must not align with the number of processes."""
    mixing = MixingSpec(ratio="uniform")
    sampler = BatchSampler(sizes=(64, 64), batch_size=16, epochs=1, seed=0, sampling="random", mixing=mixing, world=2)
    drawn = Counter(source_of(sampler, draw.sample) for batch in sampler.batches(0) for draw in batch)
    assert min(drawn[0], drawn[1]) > 16


def test_an_epoch_too_short_for_every_dataset_is_refused() -> None:
    mixing = MixingSpec(schedule="round_robin")
    with pytest.raises(TrainingError, match="an epoch of 2 steps is too short for 3 datasets"):
        BatchSampler(
            sizes=(8, 8, 8), batch_size=4, epochs=1, seed=0, sampling="random", mixing=mixing, max_steps_per_epoch=2
        )


@given(st.integers(4, 200), st.lists(st.floats(0.01, 1000), min_size=1, max_size=4))
def test_parts_add_up_and_none_is_empty(total: int, shares: list[float]) -> None:
    parts = apportion(total, shares)
    assert parts.sum() == total
    assert parts.min() >= 1
    assert Counter(interleave(parts).tolist()) == Counter(dict(enumerate(parts.tolist())))


@given(st.integers(1, 400), st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_in_shards_too_every_sample_comes_once_an_epoch(samples: int, count: int, seed: int, epoch: int) -> None:
    shards = np.random.default_rng(seed).integers(count, size=samples)
    assert sorted(shard_order(shards, seed=seed, epoch=epoch).tolist()) == list(range(samples))


def test_at_any_time_few_shards_are_in_use_and_each_for_one_stretch_of_an_epoch() -> None:
    shards = np.repeat(np.arange(1000), 20)
    drawn = shards[shard_order(shards, seed=3, epoch=1)]
    for stretch in np.split(drawn, np.arange(64 * 20, len(drawn), 64 * 20)):
        assert len(set(stretch)) <= 64
    assert len({frozenset(drawn[: 64 * 20]), frozenset(shards[shard_order(shards, seed=3, epoch=2)][: 64 * 20])}) == 2


def test_the_shuffle_of_shards_is_near_a_perfect_permutation_and_that_of_a_window_is_not() -> None:
    """A tenth of ImageNet: 128,000 samples in 240 shards, compared with a shuffle buffer of 1,000 over shuffled shards,
    as in webdataset and others.
    """
    samples, count = 128_000, 240
    shards = np.random.default_rng(0).integers(count, size=samples)  # a shard is a random part of the split
    perfect = shuffle_quality([epoch_order(samples, seed=1, epoch=e, sampling="random") for e in range(4)])
    ours = shuffle_quality([shard_order(shards, seed=1, epoch=e) for e in range(4)])
    window = shuffle_quality([_windowed(shards, seed=e) for e in range(4)])
    print(f"moved, together: perfect {perfect}, ours {ours}, window of 1000 {window}")
    assert ours[0] == pytest.approx(perfect[0], abs=0.05)  # a shard is in one of 4 groups
    assert ours[1] < 1.2 * perfect[1]
    assert window[1] > 10 * perfect[1]


def _windowed(shards: np.ndarray, *, seed: int) -> np.ndarray:
    """Shards in a random order, each from its start to its end, through a buffer from which 1,000 are drawn."""
    rng = np.random.default_rng(seed)
    stream = np.argsort(rng.permutation(shards.max() + 1)[shards], kind="stable").tolist()
    buffer, out = stream[:1000], []
    for sample in stream[1000:]:
        place = rng.integers(1000)
        out.append(buffer[place])
        buffer[place] = sample
    return np.array(out + rng.permutation(buffer).tolist())
