from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from konvoi.job.data.positions import Order, part


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 64, 65, 257, 1000, 4097])
def test_every_epoch_visits_every_index_once(length):
    order = Order(seed=7, length=length)
    for epoch in (0, 1, 5):
        epochs, indices = order.indices(epoch * length, (epoch + 1) * length)
        assert sorted(indices.tolist()) == list(range(length))
        assert set(epochs.tolist()) == {epoch}


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**64), length=st.integers(1, 700), start=st.integers(0, 2000), count=st.integers(0, 90)
)
def test_any_range_is_read_as_its_positions_one_by_one(seed, length, start, count):
    order = Order(seed, length)
    epochs, indices = order.indices(start, start + count)
    alone = [order.index(position) for position in range(start, start + count, 7)]
    assert list(zip(epochs.tolist(), indices.tolist(), strict=True))[::7] == alone


def test_epochs_and_seeds_have_different_orders():
    orders = [
        Order(seed, 1000).indices(epoch * 1000, epoch * 1000 + 1000)[1] for seed in (0, 1, 2) for epoch in (0, 1, 2)
    ]
    for place, one in enumerate(orders):
        for other in orders[place + 1 :]:
            assert (one == other).mean() < 0.01  # a random pair shares one place in 1,000


def test_the_order_is_stable_across_versions():
    # A change of these values changes the data order of every run that resumes.
    assert Order(seed=0, length=10).indices(0, 20)[1].tolist() == [
        8,
        0,
        4,
        9,
        1,
        3,
        5,
        6,
        2,
        7,
        6,
        5,
        3,
        4,
        7,
        2,
        8,
        0,
        1,
        9,
    ]
    assert Order(seed=1234567890123, length=1_000_000_007).indices(0, 4)[1].tolist() == [
        941918977,
        519041995,
        378400178,
        993455153,
    ]


def test_each_index_comes_at_each_place_equally_often():
    counts = np.zeros((8, 8))
    for epoch in range(400):
        indices = Order(seed=3, length=8).indices(epoch * 8, epoch * 8 + 8)[1]
        counts[np.arange(8), indices] += 1
    assert ((counts - 50) ** 2 / 50).sum() < 85  # chi-square, 49 degrees of freedom: 99.9 % lie below 85.4


def test_every_order_of_three_comes_up():
    seen = {tuple(Order(seed=0, length=3).indices(epoch * 3, epoch * 3 + 3)[1].tolist()) for epoch in range(100)}
    assert len(seen) == 6


@given(start=st.integers(0, 1000), length=st.integers(0, 200), count=st.integers(1, 17))
def test_parts_are_contiguous_whole_and_nearly_equal(start, length, count):
    parts = [part(start, start + length, rank, count) for rank in range(count)]
    assert parts[0][0] == start
    assert parts[-1][1] == start + length
    assert all(one[1] == other[0] for one, other in pairwise(parts))
    sizes = [stop - begin for begin, stop in parts]
    assert max(sizes) - min(sizes) <= 1
