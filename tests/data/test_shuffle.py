from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retnet.data.shuffle import shuffled


@given(st.integers(1, 300), st.integers(0, 5))
def test_it_is_a_permutation(size: int, seed: int) -> None:
    places = [shuffled(index, size, seed=(seed, 1)) for index in range(size)]
    assert sorted(places) == list(range(size))


def test_seeds_differ_and_repeat() -> None:
    orders = [
        [shuffled(index, 1000, seed=seed) for index in range(1000)] for seed in ((0, 0), (0, 1))
    ]
    assert orders[0] != orders[1]
    assert orders[0] == [shuffled(index, 1000, seed=(0, 0)) for index in range(1000)]


def test_neighbours_are_torn_apart() -> None:
    """A shuffle leaves one pair in a thousand side by side, and its first half anywhere."""
    order = [shuffled(index, 1000, seed=(7,)) for index in range(1000)]
    pairs = sum(abs(a - b) == 1 for a, b in pairwise(order))
    assert pairs < 12
    assert 200 < sum(place < 500 for place in order[:500]) < 300


def test_it_needs_no_list() -> None:
    places = {shuffled(index, 10**12, seed=(1,)) for index in range(1000)}
    assert len(places) == 1000
    assert max(places) > 9 * 10**11


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"index must be in \[0, 5\), got 5"):
        shuffled(5, 5, seed=(0,))
