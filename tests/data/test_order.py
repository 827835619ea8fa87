"""The keyed order is a bijection for every size, and no order looks like another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.data.order import Permutation, mix


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 10**6))
def test_every_thing_stands_in_exactly_one_place(count, seed, epoch):
    placed = Permutation(count, seed, epoch)(np.arange(count))
    assert np.array_equal(np.sort(placed), np.arange(count))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**62 - 1), st.integers(0, 2**32), st.data())
def test_huge_counts_need_no_memory_and_stay_within_range(count, seed, data):
    drawn = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=50, unique=True))
    places = np.array(drawn, np.int64)
    placed = Permutation(count, seed)(places)
    assert placed.min() >= 0
    assert placed.max() < count
    assert len(np.unique(placed)) == len(places)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 500), st.integers(0, 100))
def test_a_slice_is_the_slice_of_the_whole(count, seed):
    order = Permutation(count, seed)
    whole = order(np.arange(count))
    parts = [order(np.arange(first, min(first + 7, count))) for first in range(0, count, 7)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_seed_epoch_and_purpose_each_change_the_order():
    places = np.arange(1000)
    keys = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    orders = [Permutation(1000, *key)(places) for key in keys]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two independent orders agree in one place on average.
            assert (one == other).sum() < 10


def test_order_is_pinned():
    """A change of the order would silently change every resumed run."""
    assert Permutation(10, 42, 3)(np.arange(10)).tolist() == PINNED


PINNED = [0, 4, 1, 7, 3, 2, 8, 6, 9, 5]


def test_places_are_even_over_seeds():
    count, seeds = 12, 600
    seen = np.zeros((count, count))
    for seed in range(seeds):
        seen[np.arange(count), Permutation(count, seed)(np.arange(count))] += 1
    expected = seeds / count
    chi2 = ((seen - expected) ** 2 / expected).sum()
    freedom = (count - 1) ** 2
    assert abs(chi2 - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours():
    placed = Permutation(100_000, 0)(np.arange(100_000))
    assert abs(np.corrcoef(placed[:-1], placed[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(placed)) == 1).sum() < 20


def test_mix_is_a_bijection_on_a_sample():
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64)))) == 100_000


@pytest.mark.parametrize("count", [0, -1, 2**62])
def test_count_out_of_range(count):
    with pytest.raises(ValueError, match="count"):
        Permutation(count, 0)
