import numpy as np
import pytest

from tests.plan.split import split_rows

HOW = [{}, {"accumulate": 3}, {"forget": True}, {"accumulate": 2, "forget": True}]
HOW += [{"apart": True}, {"apart": True, "accumulate": 2, "forget": True}]


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_buckets_equal_their_slow_twin(pool, num_workers, how):
    """Several buckets, and a model with a frozen weight, a reused block, and parameters that are never reached."""
    for fast, slow, num_buckets in pool.run(split_rows.fast_and_slow, how, num_workers):
        assert num_buckets > 3
        for mine, other in zip(fast, slow, strict=True):
            assert mine.keys() == other.keys()
            for name in other:
                np.testing.assert_allclose(mine[name], other[name], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("apart", [False, True])
def test_on_two_workers_the_twin_is_met_bit_by_bit(pool, apart):
    """Two numbers have one sum; that every worker has the same one is what keeps the copies of a model equal."""
    how = {"accumulate": 2, "apart": apart}
    (fast, slow, _), (fast_of_other, _, _) = pool.run(split_rows.fast_and_slow, how, 2)
    for mine, other, third in zip(fast, slow, fast_of_other, strict=True):
        for name in other:
            assert (mine[name] == other[name]).all(), name
            assert (mine[name] == third[name]).all(), name


@pytest.mark.parametrize("num_workers", [2, 3])
def test_memory_in_common_is_added_up_whatever_the_shapes(pool, num_workers):
    for found, files in pool.run(split_rows.sums_in_common, None, num_workers):
        ones = 2**num_workers - 1
        assert found == [{3.0 * ones}, {6.0 * ones}, {9.0 * ones}, set(), {15.0 * ones}]
        assert files == []


def test_buckets_do_not_outlive_who_holds_them(pool):
    assert pool.run(split_rows.is_freed, None, 2) == [True, True]


def test_what_the_objective_does_not_reach_is_zero_on_every_worker(pool):
    for fast, _, _ in pool.run(split_rows.fast_and_slow, {}, 2):
        assert not fast[0]["unused"].any()
        assert not fast[0]["blocks.2.1.weight"].any()
        assert fast[0]["blocks.0.1.weight"].any()
