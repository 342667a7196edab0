"""Who takes part in a round, and whose work arrives."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

import konvoi as kv
from konvoi.population import cohorts

EVERYBODY = kv.data.iid(clients=200)
STEPS = [5] * 200


def test_a_cohort_is_drawn_anew_in_each_round_and_the_same_for_a_seed():
    fleet, plan = kv.fleet.simulated(EVERYBODY), kv.fedavg(rounds=9, cohort=20)
    found = [cohorts.of_round(number, plan, fleet, STEPS) for number in range(1, 10)]
    assert found == [cohorts.of_round(number, plan, fleet, STEPS) for number in range(1, 10)]
    assert all(len(set(one.asked)) == 20 and one.counted == one.asked for one in found)
    assert len({one.asked for one in found}) == 9


def test_who_is_not_there_is_not_asked_and_who_is_lost_does_not_count():
    fleet, plan = kv.fleet.simulated(EVERYBODY, available=0.5, dropout=0.25), kv.fedavg(rounds=1)
    found = [cohorts.of_round(number, plan, fleet, STEPS) for number in range(50)]
    assert np.mean([len(one.asked) for one in found]) == pytest.approx(100, rel=0.05)
    assert np.mean([len(one.counted) for one in found]) == pytest.approx(75, rel=0.05)
    assert all({*one.counted} <= {*one.asked} for one in found)


def test_a_round_with_too_few_comes_to_nothing():
    fleet, plan = kv.fleet.simulated(EVERYBODY, dropout=0.5), kv.fedavg(rounds=1, quorum=0.9)
    assert cohorts.of_round(1, plan, fleet, STEPS).counted == ()


def test_stragglers_are_waited_for_until_the_deadline():
    fleet = kv.fleet.simulated(EVERYBODY, spread=1.0)
    took = cohorts.durations(fleet, STEPS)
    patient = cohorts.of_round(1, kv.fedavg(rounds=1, deadline_s=1e9), fleet, STEPS)
    assert len(patient.counted) == 200
    assert patient.seconds == took.max()
    hasty = cohorts.of_round(1, kv.fedavg(rounds=1, quorum=0.8, deadline_s=0.0), fleet, STEPS)
    assert len(hasty.counted) == 160
    assert hasty.seconds < patient.seconds


def test_where_nobody_waits_each_round_has_as_many_updates():
    fleet, plan = kv.fleet.simulated(EVERYBODY, spread=0.7, dropout=0.1), kv.fedbuff(rounds=1, buffer=5, cohort=30)
    rounds = [*islice(cohorts.arrivals(plan, fleet, STEPS), 200)]
    assert all(len(here) == 5 for here, _, _ in rounds)
    clock = [now for _, now, _ in rounds]
    assert clock == sorted(clock)
    staleness = [number - one.since for number, (here, _, _) in enumerate(rounds) for one in here]
    assert min(staleness) == 0
    assert np.mean(staleness[500:]) == pytest.approx(30 / 5 - 1, rel=0.25)  # of 30 at work, 5 make a round
    for number, (here, _, oldest) in enumerate(rounds):
        assert oldest <= min([one.since for one in here] + [number])


def test_a_client_reads_all_of_its_own_in_each_pass():
    own = np.array([3, 9, 4, 7])
    batches = cohorts.order(0, 5, 2, own, (3, 3, 2))
    assert [len(one) for one in batches] == [3, 3, 2]
    assert sorted(np.concatenate(batches).tolist()) == sorted([*own, *own])
    assert sorted(np.concatenate(batches)[:4].tolist()) == sorted(own)
    assert not np.array_equal(np.concatenate(batches), np.concatenate(cohorts.order(0, 5, 3, own, (3, 3, 2))))
