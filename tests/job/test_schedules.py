"""Factors stay between floor and 1, rise and fall where promised, and short runs stay possible."""

import itertools

import pytest

from konvoi.errors import JobError
from konvoi.job.schedules import constant, cosine, linear, wsd

WARMUPS = [0, 1, 7, 50, 1000, 0.05, 0.5, 0.999]
FLOORS = [0.0, 0.1, 1.0]
SCHEDULES = [
    *(constant(warmup=warmup) for warmup in WARMUPS),
    *(kind(warmup=warmup, floor=floor) for kind, warmup, floor in itertools.product([cosine, linear], WARMUPS, FLOORS)),
    *(
        wsd(warmup=warmup, decay=decay, floor=floor)
        for warmup, decay, floor in itertools.product(WARMUPS, [0, 10, 0.2, 0.999, 1000], FLOORS)
    ),
]
LENGTHS = [1, 2, 10, 50, 101]


def factors(schedule, num_steps):
    return [schedule.factor(step, num_steps) for step in range(1, num_steps + 1)]


def every_curve():
    return ((schedule, num_steps, factors(schedule, num_steps)) for schedule in SCHEDULES for num_steps in LENGTHS)


def test_factors_are_above_zero_and_at_most_one():
    for schedule, num_steps, curve in every_curve():
        assert all(0 < factor <= 1 for factor in curve), (schedule, num_steps)


def test_factors_rise_once_and_then_never_again():
    for schedule, num_steps, curve in every_curve():
        top = curve.index(max(curve))
        assert curve[:top] == sorted(curve[:top]), (schedule, num_steps)
        assert all(a >= b - 1e-15 for a, b in itertools.pairwise(curve[top:])), (schedule, num_steps)


def test_every_schedule_reaches_one():
    for schedule, num_steps, curve in every_curve():
        assert max(curve) == 1.0, (schedule, num_steps)


def test_decay_never_goes_below_the_floor():
    for schedule, num_steps, curve in every_curve():
        if not isinstance(schedule, constant):
            assert all(factor >= schedule.floor for factor in curve[curve.index(1.0) :]), (schedule, num_steps)


@pytest.mark.parametrize("schedule", [cosine(floor=0.25), linear(floor=0.25), wsd(floor=0.25)])
def test_beyond_the_last_step_the_floor_stays(schedule):
    assert [schedule.factor(step, 100) for step in (101, 500)] == [0.25, 0.25]


@pytest.mark.parametrize("kind", [constant, cosine, linear, wsd])
def test_warm_up_is_a_straight_line_that_ends_at_one(kind):
    curve = factors(kind(warmup=10), 100)
    assert curve[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert curve[10] == 1.0


@pytest.mark.parametrize("kind", [constant, cosine, linear, wsd])
def test_a_share_is_the_same_as_its_number_of_steps(kind):
    assert factors(kind(warmup=0.1), 200) == factors(kind(warmup=20), 200)


def test_wsd_is_stable_until_its_decay():
    curve = factors(wsd(warmup=10, decay=0.2), 100)
    assert set(curve[9:81]) == {1.0}
    assert curve[81] < 1.0
    assert curve[-1] == pytest.approx(1 / 20)


def test_wsd_can_be_continued_from_its_stable_part():
    short, long = factors(wsd(warmup=10, decay=20), 100), factors(wsd(warmup=10, decay=20), 1000)
    assert short[:80] == long[:80]


@pytest.mark.parametrize("kind", [constant, cosine, linear, wsd])
def test_a_warm_up_longer_than_the_run_is_cut_and_explained(kind):
    schedule = kind(warmup=100)
    assert factors(schedule, 5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert "warmup = 5 of 5 steps (100 asked for, more than the run has" in schedule.derived(5)[0]
    assert "more than" not in schedule.derived(200)[0]


def test_a_decay_that_does_not_fit_is_explained():
    assert wsd(warmup=0, decay=0.2).derived(100) == ("decay = 20 of 100 steps (0.2 asked for)",)
    assert "warm-up leaves no more" in wsd(warmup=90, decay=20).derived(100)[1]


@pytest.mark.parametrize("warmup", [-1, 1.5, float("nan"), float("inf")])
def test_a_length_that_is_neither_steps_nor_a_share_is_refused(warmup):
    with pytest.raises(JobError, match="warmup"):
        cosine(warmup=warmup)


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_a_floor_out_of_range_is_refused(floor):
    with pytest.raises(JobError, match="floor"):
        wsd(floor=floor)
