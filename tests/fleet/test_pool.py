import os
import signal
import time

import pytest

from konvoi.errors import FleetError, PlanError, WorkerError
from tests.fleet import pool_rows


def test_a_row_runs_on_the_first_few_workers_in_order(pool):
    found = pool.run(pool_rows.where, "x", 3)
    assert [(worker, of, payload) for worker, of, _, payload in found] == [(n, 3, "x") for n in range(3)]


def test_the_workers_stay_from_row_to_row(pool):
    first, second = (pool.run(pool_rows.where, None, 2) for _ in range(2))
    assert [row[2] for row in first] == [row[2] for row in second]


def test_each_row_meets_anew_on_as_many_workers_as_it_wants(pool):
    for num_workers in (2, 4, 1, 3):
        assert pool.run(pool_rows.add, 10, num_workers) == [sum(10 + n for n in range(num_workers))] * num_workers


def test_an_entry_may_be_named(pool):
    assert pool.run("tests.fleet.pool_rows:where", 7, 1)[0][3] == 7


def test_a_row_costs_milliseconds(pool):
    pool.run(pool_rows.where, None, 2)
    begin = time.perf_counter()
    for _ in range(10):
        pool.run(pool_rows.where, None, 2)
    assert time.perf_counter() - begin < 1.0


def test_a_row_that_hangs_is_named_and_its_silent_workers_are_replaced(pool):
    before = [row[2] for row in pool.run(pool_rows.where, None, 3)]
    with pytest.raises(WorkerError, match=r"the sleeper: hangs: no answer from workers \[1\] in 0.3 s"):
        pool.run(pool_rows.hang, 1, 3, name="the sleeper", timeout_s=0.3)
    after = [row[2] for row in pool.run(pool_rows.where, None, 3)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(ProcessLookupError):
        os.kill(before[1], 0)


def test_the_answers_of_a_row_that_hung_are_not_taken_for_the_next_ones(pool):
    with pytest.raises(WorkerError, match="hangs"):
        pool.run(pool_rows.hang, 0, 2, timeout_s=0.3)
    assert pool.run(pool_rows.add, 1, 2) == [3.0, 3.0]


def test_after_a_hang_inside_a_collective_the_next_row_meets(pool):
    with pytest.raises(WorkerError, match="hangs"):
        pool.run(pool_rows.hang_in_a_collective, 1, 3, timeout_s=0.5)
    assert pool.run(pool_rows.add, 0, 4) == [6.0] * 4


def test_a_worker_that_is_killed_is_named_and_replaced(pool):
    with pytest.raises(WorkerError, match="the victim: worker 1 died") as caught:
        pool.run(pool_rows.die, 1, 2, name="the victim")
    assert caught.value.worker == 1
    assert pool.run(pool_rows.add, 0, 2) == [1.0, 1.0]


def test_after_a_meeting_that_broke_off_the_next_row_meets(pool):
    with pytest.raises(WorkerError, match="connectFullMesh failed"):
        pool.run(pool_rows.lose_a_neighbour_while_meeting, 0, 2)
    assert pool.run(pool_rows.add, 0, 2, timeout_s=10) == [1.0, 1.0]


def test_a_worker_that_is_killed_between_two_rows_is_replaced(pool):
    victim = pool.run(pool_rows.where, None, 2)[1][2]
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerError, match="worker 1 died"):
        pool.run(pool_rows.add, 0, 2)
    assert pool.run(pool_rows.add, 0, 2) == [1.0, 1.0]


def test_a_workers_exception_comes_with_its_own_traceback(pool):
    with pytest.raises(WorkerError, match="ZeroDivisionError: a slice of nothing") as caught:
        pool.run(pool_rows.explode, 2, 3, name="divided")
    assert caught.value.message == "divided: ZeroDivisionError: a slice of nothing"
    assert caught.value.worker == 2
    assert 'raise ZeroDivisionError("a slice of nothing")' in caught.value.remote_traceback
    assert "pool_rows.py" in caught.value.remote_traceback
    assert pool.run(pool_rows.add, 0, 3) == [3.0] * 3


def test_an_error_of_our_own_arrives_whole(pool):
    with pytest.raises(PlanError, match="no such thing") as caught:
        pool.run(pool_rows.refuse, 0, 2)
    assert caught.value.hint == "try another"


def test_events_on_the_way_are_no_answers(pool):
    assert pool.run(pool_rows.speak_late, 5, 2) == [5, 5]


def test_more_workers_than_there_are_is_refused(pool):
    with pytest.raises(FleetError, match="more workers than the pool has"):
        pool.run(pool_rows.where, None, pool.num_workers + 1)
